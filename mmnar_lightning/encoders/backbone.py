"""Image backbones of timm: found, built, filled with safetensors weights, and divided into layers."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mmnar_lightning.encoders.pretrained import (
    NotDownloadedError,
    Pretrained,
    PretrainedError,
    locate,
    provenance,
)

Trained = Literal["frozen", "last_n", "full"]
HUB = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class Architecture:
    """What timm builds a backbone from: plain types, which a checkpoint holds.

    Args:
        name: Name in timm.
        arguments: Of `timm.create_model`.
        source: timm's `pretrained_cfg`: where weights come from, and how films are prepared for them.
    """

    name: str
    arguments: dict[str, Any]
    source: dict[str, Any]


def find(
    model: str, *, revision: str | None, download: bool, pretrained: bool, weights: str | None
) -> tuple[Architecture, Pretrained | None, NotDownloadedError | None]:
    """Find a model and its weights.

    Args:
        model: Name in timm, or a folder or hub repository with timm's ``config.json``.
        revision: Of a hub repository.
        download: Whether to fetch from the hub what is not in the local cache.
        pretrained: Whether the weights are wanted that timm, the folder or the repository offers.
        weights: A safetensors file to take in their place, or None.

    Returns:
        The architecture; its weights, None where none are wanted; why they are not there, None where they are.

    Raises:
        NotDownloadedError: If not even the architecture is on this machine.
        PretrainedError: If there is no such model, or it has no safetensors weights.
    """
    found: Pretrained | None = None
    missing: NotDownloadedError | None = None
    registered = _registered(model)
    if registered is None:
        found = locate(
            next((model.removeprefix(p) for p in HUB if model.startswith(p)), model), revision, download=download
        )
        architecture = _described(found)
    else:
        architecture = registered
        if pretrained and weights is None:
            try:
                found = _from_hub(architecture, revision, download)
            except NotDownloadedError as error:
                missing = error
    if weights is None:
        return architecture, found if pretrained else None, missing
    file = Path(weights).expanduser()
    if not file.is_file():
        return architecture, None, NotDownloadedError(f"model {model!r}: its weights are not there: {weights}")
    if file.suffix != ".safetensors":
        raise PretrainedError(f"model {model!r}: weights are read from safetensors alone, not from {file.name}")
    return architecture, Pretrained(model, file.parent, None, (file,)), None


def _registered(model: str) -> Architecture | None:
    """One of timm's own models; None where the name is a folder's or a repository's."""
    import timm

    name = model.partition(".")[0]
    if "/" in model or (not timm.is_model(name) and Path(model).is_dir()):
        return None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; near it are: {', '.join(near)}" if near else ""
        raise PretrainedError(f"timm has no model {model!r}, and it is no folder{hint}")
    try:
        cfg = timm.models.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise PretrainedError(f"timm knows no weights {model!r}") from error
    return Architecture(model, {}, {} if cfg is None else cfg.to_dict())  # type: ignore[no-untyped-call]


def _from_hub(architecture: Architecture, revision: str | None, download: bool) -> Pretrained:
    repository = architecture.source.get("hf_hub_id")
    if not repository:
        raise PretrainedError(f"timm names no repository for the weights of {architecture.name!r}; give `weights`")
    return locate(repository, revision, download=download)


def data_config(architecture: Architecture, channels: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return how films are prepared for a backbone, as timm says.

    Args:
        architecture: Of the backbone.
        channels: C; for grey the mean of what is stated of colours.
        wanted: What overrides it: `image_size`, `crop_pct`, `crop_mode`; None takes timm's.

    Returns:
        `input_size` (C, H, W), `mean` and `std` (C numbers on a scale of 0 to 1), `interpolation`, `crop_pct`,
        `crop_mode`, as lists and plain types.
    """
    from timm.data import resolve_data_config  # type: ignore[attr-defined]

    stated: dict[str, Any] = resolve_data_config(  # type: ignore[no-untyped-call]
        pretrained_cfg=architecture.source or {"input_size": (3, 224, 224)}
    )
    size = wanted["image_size"]
    height, width = stated["input_size"][1:] if size is None else (size, size)
    config = {**stated, "input_size": [channels, int(height), int(width)]}
    for name in ("mean", "std"):
        values = [float(v) for v in stated[name]]
        config[name] = values if len(values) == channels else [sum(values) / len(values)] * channels
    for name in ("crop_pct", "crop_mode"):
        if wanted[name] is not None:
            config[name] = wanted[name]
    return config


def _described(found: Pretrained) -> Architecture:
    path = found.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        # timm's older form has everything on one level
        source = dict(config.get("pretrained_cfg", config))
        name = str(config.get("architecture") or source["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainedError(
            f"model {found.name!r} has no config.json of timm, which names an architecture"
        ) from error
    for key in ("num_classes", "tag"):
        if key in config:
            source[key] = config[key]
    return Architecture(name, dict(config.get("model_args") or {}), source)


def build(architecture: Architecture) -> nn.Module:
    """Build a backbone without a classifier, weights drawn at random.

    Raises:
        PretrainedError: If timm doesn't know it or one of its arguments.
    """
    import timm

    try:
        # a folder that timm saved may state the classes of its own classifier
        arguments = {**architecture.arguments, "num_classes": 0}
        backbone: nn.Module = timm.create_model(architecture.name, pretrained=False, **arguments)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        given = ", ".join(architecture.arguments)
        raise PretrainedError(f"timm can't build {architecture.name!r} with {given} ({error})") from error
    return backbone


def fill(backbone: nn.Module, architecture: Architecture, found: Pretrained, channels: int) -> None:
    """Load safetensors weights, adapted to the number of channels and the image size as timm does.

    Raises:
        PretrainedError: If one of the backbone's weights is not among them, or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models import load_pretrained

    lacking: list[str] = []
    note: Any = backbone.register_load_state_dict_post_hook
    hook = note(lambda _, keys: lacking.extend(keys.missing_keys))
    try:
        weights = {name: tensor for path in found.weights for name, tensor in load_file(path).items()}
        source = {"num_classes": None, **architecture.source, "state_dict": weights, "source": "", "custom_load": False}
        load_pretrained(backbone, source, num_classes=0, in_chans=channels, filter_fn=_filter(backbone), strict=False)
    except (RuntimeError, SafetensorError, KeyError) as error:
        first = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise PretrainedError(f"model {found.name!r}: its weights don't fit {architecture.name!r} ({first})") from error
    finally:
        hook.remove()
    if lacking:
        raise PretrainedError(
            f"model {found.name!r}: {len(lacking)} weights of {architecture.name!r} are not in its file, the first "
            f"{lacking[0]!r}"
        )


def _filter(backbone: nn.Module) -> Any:
    """Return what timm passes an architecture's weights through: older names, positions for another image size."""
    home = sys.modules[type(backbone).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn", "pretrained_filter_fn")
    return next((getattr(home, name) for name in names if hasattr(home, name)), None)


def origin(model: str, found: Pretrained | None) -> dict[str, Any]:
    """Return `pretrained.provenance`, or that nothing was loaded."""
    if found is not None:
        return provenance(found)
    nothing: Mapping[str, Any] = {"weights": {}, "licence": None, "datasets": [], "base_model": []}
    return {"model": model, "revision": None, **nothing}


def layers(backbone: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each layer, from the input on, as timm groups them."""
    from timm.models import group_parameters

    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    return list(group_parameters(backbone, matcher).values())


def choose_trained(backbone: nn.Module, trained: Trained, last_layers: int) -> None:
    """Mark the parameters that are trained: none, those of the last layers and of norms after them, or all.

    Raises:
        ValueError: If there are fewer layers.
    """
    backbone.requires_grad_(trained == "full")
    if trained != "last_n":
        return
    named, groups = dict(backbone.named_parameters()), layers(backbone)
    # norms after the last layer come with it
    first = len(groups)
    for _ in range(last_layers):
        first -= 1
        while first >= 0 and all(named[n].ndim < 2 for n in groups[first]):
            first -= 1
        if first < 0:
            raise ValueError(f"last_layers {last_layers} is more than the model's layers")
    for name in (n for group in groups[first:] for n in group):
        named[name].requires_grad_(True)


def set_training(module: nn.Module, batch_norm: bool) -> None:
    """Switch what is trained to training mode and the rest to evaluation mode, batch norms only with `batch_norm`."""
    trained = [p.requires_grad for p in module.parameters()]
    if trained and not any(trained):
        module.eval()
    elif trained and all(trained):
        module.train()
        for norm in batch_norms(module) if not batch_norm else ():
            norm.eval()
    else:
        # between trained and frozen parts: neither has a dropout of its own
        module.training = False
        for child in module.children():
            set_training(child, batch_norm)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return all batch norms in a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
