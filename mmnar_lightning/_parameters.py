"""Which parameter learns at which rate: parts of the model, layers of a pretrained backbone, and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

PARTS = ("backbones", "encoders", "fusion", "heads")
RATES = ("lr", "weight_decay")


def check_part_rates(rates: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse rates of parts there aren't.

    Raises:
        ValueError: If a part or a rate is unknown, or a rate is negative; lists those there are.
    """
    for part, given in rates.items():
        if part not in PARTS:
            raise ValueError(f"part_rates: no part {part!r}; there are: {', '.join(PARTS)}")
        if strange := sorted(set(given) - set(RATES)):
            raise ValueError(f"part_rates.{part}: no {', '.join(strange)}; there are: {', '.join(RATES)}")
        if any(value < 0 for value in given.values()):
            raise ValueError(f"part_rates.{part}: a rate must not be negative")


def part_of(name: str) -> str:
    """The part that a parameter of the module belongs to: one of `PARTS`."""
    if name.startswith("encoders."):
        return "backbones" if name.split(".")[2] == "backbone" else "encoders"
    return "fusion" if name.startswith("fusion.") else "heads"


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, rates: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Group all trained parameters for an optimiser.

    Matrices decay; biases, norms, single vectors and the linear evidence, which has a prior of its own, don't. An
    encoder with a `parameter_groups(lr, weight_decay)` of its own (layer-wise decay) scales the rates of its part.

    Args:
        module: With children `encoders`, `fusion` and heads.
        lr: Learning rate, where its part has none.
        weight_decay: Likewise.
        rates: ``lr`` and ``weight_decay`` by part.

    Returns:
        A group for each pair of rates, in the order of the parameters; the decayed ones first.
    """
    scales: dict[int, tuple[float, bool]] = {}
    for encoder in module.get_submodule("encoders").children():
        own = getattr(encoder, "parameter_groups", None)
        for group in own(1.0, 1.0) if callable(own) else ():
            scales |= {id(p): (float(group["lr"]), group["weight_decay"] > 0) for p in group["params"]}
    found: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        given = rates.get(part_of(name), {})
        decays = parameter.ndim > 1 and not name.startswith("linear.")
        scale, decays = scales.get(id(parameter), (1.0, decays))
        decay = given.get("weight_decay", weight_decay) if decays else 0.0
        found.setdefault((not decays, given.get("lr", lr) * scale, decay), []).append(parameter)
    order = sorted(found, key=lambda key: key[0])  # stable: otherwise as they came
    return [{"params": found[key], "lr": key[1], "weight_decay": key[2]} for key in order]


def warmup_cosine(warmup: int, steps: int, floor: float) -> Callable[[int], float]:
    """Return step → share of the learning rate: linear over `warmup` steps, then a cosine to `floor` at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
