"""Which part of a pretrained transformer is trained."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from torch import nn

from mmnar_lightning.encoders.pretrained import PretrainedError

Trained = Literal["frozen", "last_n", "full", "lora"]
# norms between the last layer and the output, where an architecture has one
FINAL_NORMS = ("final_norm", "norm", "final_layer_norm", "ln_f")


def transformer_layers(backbone: nn.Module) -> nn.ModuleList:
    """Return the transformer's blocks: the first list of as many modules as its config says there are layers.

    Raises:
        PretrainedError: If there is none (some architectures share one layer).
    """
    config: Any = backbone.config
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise PretrainedError(
        f"model of type {config.model_type!r}: its {config.num_hidden_layers} layers can't be told apart; train it "
        "full, frozen or with lora"
    )


def choose_trained(backbone: nn.Module, trained: Trained, last_layers: int, lora: dict[str, Any]) -> None:
    """Mark the parameters that are trained, and put adapters in for ``lora``.

    Args:
        backbone: A transformers model; changed.
        trained: Nothing, the last layers and a norm after them, everything, or adapters alone.
        last_layers: How many layers ``last_n`` trains.
        lora: Arguments of peft's `LoraConfig`.

    Raises:
        ValueError: If there are fewer layers, peft is not installed, or no layer is named as `target_modules` says.
    """
    backbone.requires_grad_(trained == "full")
    if trained == "lora":
        _adapt(backbone, lora)
    if trained != "last_n":
        return
    layers = transformer_layers(backbone)
    if last_layers > len(layers):
        raise ValueError(f"last_layers {last_layers} is more than the model's {len(layers)}")
    layers[-last_layers:].requires_grad_(True)
    siblings = next(list(m.named_children()) for m in backbone.modules() if layers in list(m.children()))
    for name, module in siblings:
        if name in FINAL_NORMS:
            module.requires_grad_(True)


def _adapt(backbone: nn.Module, lora: dict[str, Any]) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ValueError("train 'lora' needs peft; pip install 'mmnar-lightning[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    try:
        inject_adapter_in_model(LoraConfig(**lora), backbone)
    except ValueError as error:
        linear = {n.rpartition(".")[2] for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
        raise ValueError(
            f"give lora_targets that the model has; its linear layers are {', '.join(sorted(linear))}"
        ) from error
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            # also where the rest is held in bfloat16, in which small updates would be rounded away
            parameter.data = parameter.data.float()


def set_training(backbone: nn.Module, mode: bool, trained: Trained, last_layers: int) -> None:
    """Switch to training mode; what is frozen stays in evaluation mode, without dropout."""
    backbone.train(mode and trained not in ("frozen", "last_n"))
    if trained == "last_n":
        transformer_layers(backbone)[-last_layers:].train(mode)


def recompute_activations(backbone: Any) -> None:
    """Compute activations anew in the backward pass rather than keep them."""
    how = {"use_reentrant": False}
    if hasattr(backbone, "activation_checkpointing_enable"):  # its name in later versions of transformers
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
