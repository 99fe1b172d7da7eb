"""The rectifier: fitted on calibration patients after (or beside) training, applied to every prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmnar_lightning.rectifier.calibration import checked_rows
from mmnar_lightning.rectifier.correction import (
    RUNGS,
    SCALES,
    Correction,
    Rung,
    Scale,
    fit_rungs,
    from_lists,
    joined,
    to_lists,
)
from mmnar_lightning.rectifier.ladder import Choice, choose_rungs
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, Reduce, keep, present_patterns

VERSION = 2
MIN_EVENTS = 10
"""Events and non-events a task needs: from fewer, a correction is noise that can rank patients worse than no model."""


class Rectifier:
    r"""Corrects logits by a global bias and temperature, and by effects of each availability pattern.

    With x_ik = logit_ik / T_k + b_k (rung ``global``),

    p_ik = σ(x_ik + a_p,k + s_k · clip(x_ik − c_k, ±10))       rung ``intercepts``, p = δ_i
    p_ik = σ(x_ik + a_p,k + s_p,k · clip(x_ik − c_k, ±10))     rung ``slopes``
    p_ik = clip(σ(x_ik) + Δ_p,k)                               rung ``intercepts`` on the ``probability`` scale

    a_p ~ N(a_count(p), τ₂²), a_count ~ N(μ, τ₁²), and the same for s_p and Δ_p with their own variances. s_k corrects
    the temperature, which is too high where it is fitted without the shifts (see `shared_slope`).

    Before `fit`, and for a task that cannot be fitted, it changes nothing. A shift cannot change AUROC inside a
    pattern, and a slope never turns a ranking round. It conditions on what was seen (E[y | x_obs, δ]) and needs no
    assumption on the missingness mechanism, but calibration patients must be exchangeable with those it is applied
    to, and must be part of no other split.

    Args:
        tasks: Names of the K tasks.
        rung: How far up the ladder `fit` goes, for all tasks; `fit_ladder` chooses it for each.
        scale: Where shifts are added: ``logit``, or ``probability`` as in the paper, which has no slopes.

    Raises:
        ValueError: If the rung or scale is unknown, the two don't go together, or a task name occurs twice.
    """

    def __init__(self, tasks: Sequence[str], rung: Rung = "intercepts", scale: Scale = "logit") -> None:
        if rung not in RUNGS:
            raise ValueError(f"rung {rung!r} is not one of {', '.join(RUNGS)}")
        if scale not in SCALES:
            raise ValueError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
        if (scale, rung) == ("probability", "slopes"):
            raise ValueError("the probability scale has no slopes; its rungs are global, intercepts")
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError("a rectifier needs at least one task, with distinct names")
        self.tasks = tuple(tasks)
        self.scale: Scale = scale
        self.rungs: tuple[Rung, ...] = (rung,) * len(self.tasks)
        self.reasons: tuple[str, ...] = ("not fitted",) * len(self.tasks)
        self.choices: tuple[Choice, ...] = ()
        self._fitted: Correction | None = None

    @property
    def fitted(self) -> bool:
        """Whether `fit` or `fit_ladder` has run."""
        return self._fitted is not None

    @torch.no_grad()
    def fit(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        pattern: Tensor,
        n_modalities: int,
        *,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> Rectifier:
        """Fit on calibration rows; a fit on shards with a summing `reduce` is the fit on the whole.

        Computes in float64 on the device of `logits` (so hand over CPU tensors where a device has no float64); every
        device must call it, with rows or without.

        Args:
            logits: [n, K] raw logits; n may be 0. An infinite one counts as ±40.
            targets: [n, K] in {0, 1}; anything where unlabelled.
            labelled: bool [n, K].
            pattern: int64 [n] pattern ids.
            n_modalities: M ≤ 62.
            weights: [n] sample weights ≥ 0, or None for 1; a weight counts a row that many times.
            reduce: Sum of a tensor over devices, equal on all of them; None for a single device.

        Returns:
            Itself.

        Raises:
            ValueError: If shapes disagree, a pattern id has a bit at or above M, or a labelled row has a NaN logit, a
                target other than 0 and 1, or a weight that is negative or not finite (counted over all devices,
                raised on each).
        """
        rows, tree, count = self._rows(logits, targets, labelled, pattern, n_modalities, weights, reduce)
        self._climb(rows, tree, count)
        return self

    @torch.no_grad()
    def fit_ladder(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        pattern: Tensor,
        patient: Tensor,
        n_modalities: int,
        *,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> Rectifier:
        """Choose the rung of each task by patient-grouped cross-validation, then fit it on all rows.

        Tasks are chosen for one by one: they differ in their number of events, and a rung that a frequent outcome
        can pay for would be noise for a rare one. `choices` tells how; see `choose_rungs` for the rule. A task with
        too few events in a part of the folds gets the rung ``global``.

        Args:
            logits: As in `fit`.
            targets: As in `fit`.
            labelled: As in `fit`.
            pattern: As in `fit`.
            patient: int64 [n], keys of patients as `patient_keys` makes them, in 0 … 2^62 − 1.
            n_modalities: As in `fit`.
            weights: As in `fit`.
            reduce: As in `fit`; a patient's rows may lie on several devices.
            folds: Number of folds, ≥ 2.
            seed: Key of the folds.

        Returns:
            Itself.

        Raises:
            ValueError: As `fit`, or if patients have the wrong shape or a key out of range, or folds < 2.
        """
        if folds < 2:
            raise ValueError(f"{folds} folds; at least 2 are needed")
        if patient.shape != pattern.shape:
            raise ValueError(f"patient must be [{len(pattern)}], not {list(patient.shape)}")
        rows, tree, count = self._rows(logits, targets, labelled, pattern, n_modalities, weights, reduce)
        outside = int(rows.reduce((patient >> 62 != 0).sum().double()[None])[0])
        if outside:
            raise ValueError(f"calibration rows: {outside} patient keys outside 0 … 2^62 − 1")
        rungs = RUNGS if self.scale == "logit" else RUNGS[:2]
        choices = choose_rungs(rows, tree, patient, rungs, self.scale, _reasons, folds, seed)
        self.rungs = tuple(choice.chosen for choice in choices)
        self._climb(rows, tree, count)
        self.choices = tuple(
            replace(choice, reason=why) if why else choice for choice, why in zip(choices, self.reasons, strict=True)
        )
        return self

    def _rows(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        pattern: Tensor,
        n_modalities: int,
        weights: Tensor | None,
        reduce: Reduce | None,
    ) -> tuple[Rows, PatternTree, Tensor]:
        """Return the rows of tasks that can be fitted, the tree, and labelled rows [P, K]; say why others can't."""
        summed = reduce or keep
        x, y, w = checked_rows(logits, targets, labelled, pattern, n_modalities, weights, self.tasks, summed)
        tree = PatternTree.of(present_patterns(pattern, n_modalities, summed))
        node = torch.searchsorted(tree.pattern, pattern.contiguous())
        labels = x.new_zeros(2, len(tree.pattern), len(self.tasks))
        for row, rows_of in enumerate((w > 0, (w > 0) & (y > 0.5))):
            labels[row].index_add_(0, node, rows_of.double())
        labels = summed(labels)
        self.reasons = tuple(_reasons(*labels.sum(1)))
        usable = torch.tensor([not reason for reason in self.reasons], device=x.device)
        return Rows(x, y, w * usable, node, summed), tree, labels[0]

    def _climb(self, rows: Rows, tree: PatternTree, count: Tensor) -> None:
        wanted = {
            rung: torch.tensor([own == rung and not why for own, why in zip(self.rungs, self.reasons, strict=True)])
            for rung in RUNGS
            if rung in self.rungs
        }
        self._fitted = joined(fit_rungs(rows, tree, count, self.scale, wanted), self.rungs)
        self.choices = ()

    def apply(self, logits: Tensor, pattern: Tensor) -> Tensor:
        """Correct logits [n, K] of patterns int64 [n]: [n, K] in the dtype of `logits` (float32 at least).

        An unseen pattern gets the effects of its modality count, an unseen count the global ones.
        """
        values = logits if logits.dtype == torch.float64 else logits.float()
        return values if self._fitted is None else self._fitted.apply(values, pattern, self.scale)

    def recalibrate(self, logits: Tensor) -> Tensor:
        """Correct logits [n, K] by global bias and temperature alone: what every method gets before a comparison."""
        values = logits if logits.dtype == torch.float64 else logits.float()
        return values if self._fitted is None else self._fitted.recalibrate(values)

    def probabilities(self, logits: Tensor, pattern: Tensor) -> Tensor:
        """Corrected probabilities [n, K], as `apply`."""
        return torch.sigmoid(self.apply(logits, pattern))

    def shifts(self, names: Mapping[int, str] | None = None) -> dict[str, float]:
        """What was fitted, by name, for TensorBoard; empty before `fit`.

        Args:
            names: Words for pattern ids; only these patterns are returned. None returns all, named by id.

        Returns:
            ``{task}/bias``, ``{task}/temperature``, ``{task}/tau_count``, ``{task}/tau_pattern``, ``{task}/global``,
            ``{task}/count/{c}`` and ``{task}/pattern/{name}``, on the rectifier's scale; ``{task}/slope``, what
            patterns have in common of s, and on the rung ``slopes`` also ``{task}/slope/{name}``. Tasks that
            are left as they are have none.
        """
        if self._fitted is None:
            return {}
        f, found = self._fitted, {}
        patterns, counts = f.tree.pattern.tolist(), f.tree.count.tolist()
        for k, task in enumerate(self.tasks):
            if self.reasons[k]:
                continue
            found[f"{task}/bias"] = float(f.bias[k])
            found[f"{task}/temperature"] = float(f.temperature[k])
            if self.rungs[k] == "global":
                continue
            found[f"{task}/tau_count"] = float(f.tau_count[k])
            found[f"{task}/tau_pattern"] = float(f.tau_pattern[k])
            found[f"{task}/global"] = float(f.table[-1, k])
            if self.scale == "logit":
                found[f"{task}/slope"] = float(f.slope[-1, k])
            found |= {f"{task}/count/{c}": float(f.table[len(patterns) + j, k]) for j, c in enumerate(counts)}
            for p, pattern in enumerate(patterns):
                if names is None or pattern in names:
                    word = str(pattern) if names is None else names[pattern]
                    found[f"{task}/pattern/{word}"] = float(f.table[p, k])
                    if self.rungs[k] == "slopes":
                        found[f"{task}/slope/{word}"] = float(f.slope[p, k])
        return found

    def to_state(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: JSON, and loadable with ``weights_only=True``."""
        state: dict[str, Any] = {"version": VERSION, "scale": self.scale, "tasks": list(self.tasks)}
        state |= {"rungs": list(self.rungs), "reasons": list(self.reasons)}
        state["choices"] = [choice.to_state() for choice in self.choices]
        if self._fitted is None:
            return state | {"fitted": False}
        return state | {"fitted": True} | to_lists(self._fitted)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rectifier:
        """Build the rectifier back from `to_state`.

        Raises:
            ValueError: If the state is of another version or lacks a part.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"rectifier state of version {state.get('version')!r}; this release reads {VERSION}")
        try:
            rectifier = cls(state["tasks"], scale=state["scale"])
            rectifier.rungs, rectifier.reasons = tuple(state["rungs"]), tuple(state["reasons"])
            rectifier.choices = tuple(Choice.from_state(choice) for choice in state["choices"])
            if state["fitted"]:
                rectifier._fitted = from_lists(state, len(rectifier.tasks))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a rectifier state: {error}") from error
        return rectifier


def _reasons(rows: Tensor, events: Tensor) -> list[str]:
    """Why tasks cannot be fitted, or empty strings, from labelled rows and events [K]."""
    return [_reason(int(n), int(e)) for n, e in zip(rows.tolist(), events.tolist(), strict=True)]


def _reason(rows: int, events: int) -> str:
    if rows == 0:
        return "no labelled calibration rows"
    fewer, which = min((events, "positive"), (rows - events, "negative"))
    if fewer < MIN_EVENTS:
        return f"fewer than {MIN_EVENTS} {which} labels in the calibration rows"
    return ""
