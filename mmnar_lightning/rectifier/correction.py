"""What a fit leaves behind: a global step and, by pattern, a shift and a slope; fitted, applied and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmnar_lightning.rectifier.additive import fit_additive, shifted
from mmnar_lightning.rectifier.intercepts import Intercepts, fit_intercepts
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree
from mmnar_lightning.rectifier.recalibration import SLOPE_FLOOR, fit_recalibration
from mmnar_lightning.rectifier.slopes import REACH, Slopes, centred, fit_slopes, shared_slope

Rung = Literal["global", "intercepts", "slopes"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
"""The ladder, simplest first."""
ROUNDS = 2
"""Times the shared slope is fitted: shifts hardly depend on it, so that a round leaves a tenth of the error or less."""
Scale = Literal["logit", "probability"]
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True)
class Correction:
    """Global bias and temperature of each task, and what is added to them by pattern.

    Args:
        tree: Patterns and counts, on the CPU.
        bias: b [K].
        temperature: T [K].
        table: a [P + C + 1, K], shifts of patterns, counts and globally; on the logit or the probability scale.
        sd: [P, K], posterior sd of the patterns' shifts.
        tau_count: τ₁ [K] of the shifts.
        tau_pattern: τ₂ [K] of the shifts.
        slope: b [P + C + 1, K], slopes relative to the global one; on the rung `intercepts` the same for all.
        slope_sd: [P, K].
        slope_tau_count: [K].
        slope_tau_pattern: [K].
        centre: c [K], the logit at which a slope moves nothing.
        labelled: [P, K], labelled rows.
    """

    tree: PatternTree
    bias: Tensor
    temperature: Tensor
    table: Tensor
    sd: Tensor
    tau_count: Tensor
    tau_pattern: Tensor
    slope: Tensor
    slope_sd: Tensor
    slope_tau_count: Tensor
    slope_tau_pattern: Tensor
    centre: Tensor
    labelled: Tensor

    def recalibrate(self, logits: Tensor) -> Tensor:
        """Correct logits [n, K] by bias and temperature alone."""
        return logits / self.temperature.to(logits) + self.bias.to(logits)

    def apply(self, logits: Tensor, pattern: Tensor, scale: Scale) -> Tensor:
        """Correct logits [n, K] of patterns int64 [n]; an unseen pattern gets its parent's effects."""
        values = self.recalibrate(logits)
        node = self.tree.to(values.device).node(pattern)
        shift = self.table.to(values)[node]
        if scale == "probability":
            return shifted(values, shift)
        # a pattern's ranking may be flattened, never turned round
        slope = self.slope.to(values)[node].clamp(min=SLOPE_FLOOR - 1)
        return values + shift + slope * (values - self.centre.to(values)).clamp(-REACH, REACH)


def fit_rungs(
    rows: Rows, tree: PatternTree, labelled: Tensor, scale: Scale, wanted: Mapping[Rung, Tensor]
) -> dict[Rung, Correction]:
    """Fit rungs on the same rows; each builds on the one below.

    Args:
        rows: Calibration rows of this device.
        tree: Patterns over all devices.
        labelled: [P, K], labelled rows over all devices.
        scale: Where shifts are added.
        wanted: The rungs to fit, and bool [K], for which tasks (only `slopes`, which takes time, looks at it).

    Returns:
        Corrections on the CPU, equal on every device.
    """
    recalibration = fit_recalibration(rows)
    offset = recalibration(rows.logits)
    P, N, K = len(tree.pattern), len(tree.pattern) + len(tree.count) + 1, offset.shape[1]
    none = offset.new_zeros(N, K)
    plain = {f.name: offset.new_zeros(K) for f in fields(Correction)[1:]}
    plain |= {"bias": recalibration.bias, "temperature": 1 / recalibration.slope, "labelled": labelled}
    plain |= {"table": none, "slope": none, "sd": none[:P], "slope_sd": none[:P]}
    parts: dict[Rung, dict[str, Tensor]] = {"global": plain}
    if P and set(wanted) - {"global"}:
        found, more = _shifts(rows, offset, tree) if scale == "logit" else (fit_additive(rows, offset, tree), {})
        table = torch.cat([found.shift, found.count, found.centre[None]])
        parts["intercepts"] = plain | {"table": table, "sd": found.sd} | more
        parts["intercepts"] |= {"tau_count": found.tau_count, "tau_pattern": found.tau_pattern}
        if "slopes" in wanted:
            parts["slopes"] = plain | _slope_parts(fit_slopes(rows, offset, tree, found, wanted["slopes"]))
    return {
        rung: Correction(tree.to("cpu"), **{name: part.cpu() for name, part in parts.get(rung, plain).items()})
        for rung in wanted
    }


def _shifts(rows: Rows, offset: Tensor, tree: PatternTree) -> tuple[Intercepts, dict[str, Tensor]]:
    """Fit intercepts and the slope they share in turn, from a slope of 0: the joint mode, to what rounds leave."""
    x, centre = centred(rows, offset)
    slope = torch.zeros_like(centre)
    found = fit_intercepts(rows, offset, tree)
    for _ in range(ROUNDS):
        slope = shared_slope(rows, offset + found.shift[rows.node], x)
        found = fit_intercepts(rows, offset + slope * x, tree)
    nodes = len(tree.pattern) + len(tree.count) + 1
    return found, {"slope": slope.expand(nodes, -1), "centre": centre}


def _slope_parts(found: Slopes) -> dict[str, Tensor]:
    columns = {"table": found.effect, "sd": found.sd, "tau_count": found.tau_count, "tau_pattern": found.tau_pattern}
    second = {"slope": "table", "slope_sd": "sd", "slope_tau_count": "tau_count", "slope_tau_pattern": "tau_pattern"}
    parts = {name: value.select(-2, 0) for name, value in columns.items()}
    parts |= {name: columns[of].select(-2, 1) for name, of in second.items()}
    return parts | {"centre": found.centre}


def joined(corrections: Mapping[Rung, Correction], rungs: Sequence[Rung]) -> Correction:
    """Take each task's columns from the correction of its rung."""
    first = corrections[rungs[0]]
    parts = {}
    for f in fields(Correction)[1:]:
        columns = [getattr(corrections[rung], f.name)[..., k] for k, rung in enumerate(rungs)]
        parts[f.name] = torch.stack(columns, -1)
    return Correction(first.tree, **parts)


def to_lists(correction: Correction) -> dict[str, Any]:
    """Return plain lists of numbers."""
    P = len(correction.tree.pattern)
    numbers = {f.name: getattr(correction, f.name) for f in fields(Correction)[1:]}
    for name in ("table", "slope"):
        whole = numbers.pop(name)
        word = "shift" if name == "table" else name
        numbers |= {word: whole[:P], f"count_{word}": whole[P:-1], f"global_{word}": whole[-1]}
    numbers |= {"patterns": correction.tree.pattern, "counts": correction.tree.count}
    numbers["labelled"] = correction.labelled.long()
    return {name: value.tolist() for name, value in numbers.items()}


def from_lists(state: Mapping[str, Any], K: int) -> Correction:
    """Build the correction of K tasks back from `to_lists`.

    Raises:
        KeyError: If a part is not there.
    """

    def numbers(name: str) -> Tensor:
        return torch.tensor(state[name], dtype=torch.float64).reshape(-1, K)

    parts = {}
    for f in fields(Correction)[1:]:
        if f.name in ("table", "slope"):
            word = "shift" if f.name == "table" else f.name
            parts[f.name] = torch.cat([numbers(name) for name in (word, f"count_{word}", f"global_{word}")])
        else:
            parts[f.name] = numbers(f.name) if f.name in ("sd", "slope_sd", "labelled") else numbers(f.name)[0]
    return Correction(PatternTree.of(torch.tensor(state["patterns"], dtype=torch.int64)), **parts)
