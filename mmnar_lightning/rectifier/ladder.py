"""How far up the ladder a task goes: patient-grouped folds, and the one-standard-error rule on paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmnar_lightning.rectifier.calibration import KEY_BITS, fold_of
from mmnar_lightning.rectifier.correction import Correction, Rung, Scale, fit_rungs
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, present_patterns

NEGLIGIBLE = 1e-5
"""Nats of log loss that choose nothing: fits that find no variance differ in rounding, with a SE as small."""


@dataclass(frozen=True)
class Choice:
    """How the rung of one task was chosen: plain numbers, kept with the rectifier's state.

    Args:
        rungs: Those compared, simplest first; empty where there was nothing to choose from.
        loss: [rungs], log loss over all held-out rows.
        fold_loss: [rungs, folds], log loss of each fold; NaN is written as None.
        difference: [rungs], loss minus that of the best rung.
        se: [rungs], standard error of the difference over patients.
        patients: Patients with a known label.
        chosen: The simplest rung within one standard error of the best.
        reason: Why there was nothing to choose from, or an empty string.
    """

    rungs: tuple[Rung, ...]
    loss: tuple[float, ...]
    fold_loss: tuple[tuple[float | None, ...], ...]
    difference: tuple[float, ...]
    se: tuple[float, ...]
    patients: int
    chosen: Rung
    reason: str

    def to_state(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        found = asdict(self)
        found["fold_loss"] = [list(row) for row in self.fold_loss]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the record back from `to_state`."""
        found: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in state.items()}
        found["fold_loss"] = tuple(tuple(row) for row in found["fold_loss"])
        return cls(**found)


@dataclass(frozen=True)
class _Patients:
    """Sums over rows and devices, by patient: labelled weight [I, K] and losses [R, I, K]."""

    weight: Tensor
    loss: Tensor
    fold: Tensor


def choose_rungs(
    rows: Rows,
    tree: PatternTree,
    keys: Tensor,
    rungs: Sequence[Rung],
    scale: Scale,
    reason: Callable[[Tensor, Tensor], Sequence[str]],
    folds: int,
    seed: int,
) -> list[Choice]:
    """Choose the rung of each task by K-fold cross-validation over patients.

    Each patient is in one fold, by a keyed hash. The loss of rung r is L_r = Σ_i l_ri / Σ_i w_i over patients i, with
    l_ri the summed log loss of their held-out rows. Against the rung b of least loss, the difference and its standard
    error are those of a ratio of sums over patients, d_i = l_ri − l_bi:

        Δ_r = Σ d_i / Σ w_i,   SE_r = √(I/(I − 1) Σ (d_i − Δ_r w_i)²) / Σ w_i

    Chosen is the simplest rung with Δ_r ≤ max(SE_r, 1e-5). The SE of the loss itself would be far larger, since it
    holds how hard patients are to predict, which all rungs share (Breiman et al., *Classification and Regression
    Trees*, 1984, for the rule). Folds share training rows, so that SE_r is somewhat too small: the rule is a
    preference, not a test.

    Args:
        rows: Calibration rows of this device.
        tree: Patterns over all devices.
        keys: int64 [n], a patient's key < 2^62.
        rungs: Those to compare, simplest first.
        scale: Scale of the shifts.
        reason: Says from labelled rows and events [K] why a task can't be fitted, or an empty string.
        folds: Number of folds, ≥ 2.
        seed: Key of the folds.

    Returns:
        The choice of each task, equal on every device.
    """
    K = rows.logits.shape[1]
    people = present_patterns(keys, KEY_BITS, rows.reduce)
    who = torch.searchsorted(people, keys.contiguous())
    fold_of_patient = fold_of(people, folds, seed)
    fold = fold_of_patient[who]
    weight = rows.logits.new_zeros(len(people), K).index_add_(0, who, rows.weights)
    loss = rows.logits.new_zeros(len(rungs), len(people), K)
    reasons = [""] * K
    for held in range(folds):
        train = replace(rows, weights=rows.weights * (fold != held)[:, None])
        reasons = [old or new for old, new in zip(reasons, reason(*_labels(train)), strict=True)]
        usable = torch.tensor([not word for word in reasons], device=rows.logits.device)
        # a task that can't be chosen for is left out of the fits that cost time
        train = replace(train, weights=train.weights * usable)
        fitted = fit_rungs(train, tree, weight.new_zeros(len(tree.pattern), K), scale, dict.fromkeys(rungs, usable))
        out = fold == held
        for r, rung in enumerate(rungs):
            loss[r].index_add_(0, who[out], _losses(rows, tree, fitted[rung], out, scale))
    whole = _Patients(rows.reduce(weight), rows.reduce(loss), fold_of_patient)
    return [_choice(whole, k, tuple(rungs), folds, reasons[k]) for k in range(K)]


def _labels(rows: Rows) -> tuple[Tensor, Tensor]:
    counted = rows.weights > 0
    found = torch.stack([counted.sum(0), (counted & (rows.targets > 0.5)).sum(0)])
    rows_of, events = rows.reduce(found.double()).unbind(0)
    return rows_of, events


def _losses(rows: Rows, tree: PatternTree, fitted: Correction, out: Tensor, scale: Scale) -> Tensor:
    """Weighted log loss [n, K] of the rows in `out`."""
    eta = fitted.apply(rows.logits[out], tree.pattern[rows.node[out]], scale)
    return rows.weights[out] * (softplus(eta) - rows.targets[out] * eta)


def _choice(patients: _Patients, k: int, rungs: tuple[Rung, ...], folds: int, reason: str) -> Choice:
    weight, loss = patients.weight[:, k], patients.loss[:, :, k]
    number = int((weight > 0).sum())
    if reason:
        return Choice((), (), (), (), (), number, rungs[0], f"in a part of the folds: {reason}")
    total = weight.sum()
    mean = loss.sum(1) / total
    difference = loss - loss[mean.argmin()]
    away = difference.sum(1) / total
    residual = difference - away[:, None] * weight
    se = (residual**2).sum(1).mul(number / max(number - 1, 1)).sqrt() / total
    by_fold = []
    for row in loss:
        sums = [(row[patients.fold == f].sum(), weight[patients.fold == f].sum()) for f in range(folds)]
        by_fold.append(tuple(float(top / bottom) if bottom > 0 else None for top, bottom in sums))
    within = torch.nonzero(away <= se.clamp(min=NEGLIGIBLE)).flatten()
    values = [tuple(float(v) for v in column) for column in (mean, away, se)]
    return Choice(rungs, values[0], tuple(by_fold), values[1], values[2], number, rungs[int(within[0])], "")
