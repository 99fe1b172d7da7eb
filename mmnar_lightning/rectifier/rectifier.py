"""The rectifier: fitted on calibration patients after (or beside) training, applied to every prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmnar_lightning.rectifier.intercepts import Intercepts, fit_intercepts
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, Reduce, keep, present_patterns
from mmnar_lightning.rectifier.recalibration import fit_recalibration

Rung = Literal["global", "intercepts"]
RUNGS: tuple[str, ...] = get_args(Rung)
"""The ladder, simplest first."""
VERSION = 1
MIN_EVENTS = 10
"""Events and non-events a task needs: from fewer, a correction is noise that can rank patients worse than no model."""
LOGIT_LIMIT = 40.0
"""Beyond it a probability is 0 or 1 in float64; an infinite logit must not make an infinite sum."""


@dataclass(frozen=True)
class _Fitted:
    tree: PatternTree
    bias: Tensor  # [K]
    temperature: Tensor  # [K]
    table: Tensor  # [P + C + 1, K] shifts of patterns, counts, global
    sd: Tensor  # [P, K]
    labelled: Tensor  # [P, K] labelled rows
    tau_count: Tensor  # [K]
    tau_pattern: Tensor  # [K]


class Rectifier:
    r"""Corrects logits by a global bias and temperature, and by one shift for each availability pattern.

    p_ik = σ(logit_ik / T_k + b_k + a_{δ_i,k}), a_p ~ N(a_count(p), τ₂²), a_count ~ N(μ, τ₁²).

    Before `fit`, and for a task that cannot be fitted, it changes nothing. A shift cannot change AUROC inside a
    pattern. It conditions on what was seen (E[y | x_obs, δ]) and needs no assumption on the missingness mechanism, but
    calibration patients must be exchangeable with those it is applied to, and must be part of no other split.

    Args:
        tasks: Names of the K tasks.
        rung: How far up the ladder: ``global`` (bias and temperature) or ``intercepts`` (and pattern shifts).

    Raises:
        ValueError: If the rung is unknown or a task name occurs twice.
    """

    def __init__(self, tasks: Sequence[str], rung: str = "intercepts") -> None:
        if rung not in RUNGS:
            raise ValueError(f"rung {rung!r} is not one of {', '.join(RUNGS)}")
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError("a rectifier needs at least one task, with distinct names")
        self.tasks = tuple(tasks)
        self.rung = rung
        self.reasons: tuple[str, ...] = ("not fitted",) * len(self.tasks)
        self._fitted: _Fitted | None = None

    @property
    def fitted(self) -> bool:
        """Whether `fit` has run."""
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
            weights: [n] sample weights ≥ 0, or None for 1.
            reduce: Sum of a tensor over devices, equal on all of them; None for a single device.

        Returns:
            Itself.

        Raises:
            ValueError: If shapes disagree, a pattern id has a bit at or above M, or a labelled row has a NaN logit, a
                target other than 0 and 1, or a weight that is negative or not finite (counted over all devices,
                raised on each).
        """
        summed = reduce or keep
        logits, targets, weights = self._checked(logits, targets, labelled, pattern, n_modalities, weights, summed)
        tree = PatternTree.of(present_patterns(pattern, n_modalities, summed))
        node = torch.searchsorted(tree.pattern, pattern.contiguous())
        P, C, K = len(tree.pattern), len(tree.count), len(self.tasks)
        labels = logits.new_zeros(2, P, K)
        for row, rows_of in enumerate((weights > 0, (weights > 0) & (targets > 0.5))):
            labels[row].index_add_(0, node, rows_of.double())
        labels = summed(labels)
        self.reasons = tuple(_reason(int(n), int(e)) for n, e in labels.sum(1).T.tolist())
        usable = torch.tensor([not reason for reason in self.reasons], device=logits.device)
        rows = Rows(logits, targets, weights * usable, node, summed)
        scale = fit_recalibration(rows)
        table, sd = logits.new_zeros(P + C + 1, K), logits.new_zeros(P, K)
        tau_count = tau_pattern = logits.new_zeros(K)
        if self.rung == "intercepts" and P:
            found: Intercepts = fit_intercepts(rows, scale(logits), tree)
            table = torch.cat([found.shift, found.count, found.centre[None]])
            sd, tau_count, tau_pattern = found.sd, found.tau_count, found.tau_pattern
        parts = (scale.bias, 1 / scale.slope, table, sd, labels[0], tau_count, tau_pattern)
        self._fitted = _Fitted(tree.to("cpu"), *(part.cpu() for part in parts))
        return self

    def _checked(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        pattern: Tensor,
        n_modalities: int,
        weights: Tensor | None,
        reduce: Reduce,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, K = len(pattern), len(self.tasks)
        for name, tensor in (("logits", logits), ("targets", targets), ("labelled", labelled)):
            if tensor.shape != (n, K):
                raise ValueError(f"{name} must be [{n}, {K}] (rows, tasks), not {list(tensor.shape)}")
        if not 1 <= n_modalities <= 62:
            raise ValueError(f"{n_modalities} modalities; a pattern id holds 1 to 62")
        weight = logits.new_ones(n, dtype=torch.float64) if weights is None else weights.detach().double()
        if weight.shape != (n,):
            raise ValueError(f"weights must be [{n}], not {list(weight.shape)}")
        x = logits.detach().double()
        y = torch.where(labelled, targets.detach().double(), 0.0)
        wrong = {
            "labelled logits that are NaN": (labelled & x.isnan()).sum(),
            "labelled targets other than 0 and 1": ((y != 0) & (y != 1)).sum(),
            "weights that are negative or not finite": (~(weight >= 0) | weight.isinf()).sum(),
            f"pattern ids outside 0 … 2^{n_modalities} − 1": (pattern >> n_modalities != 0).sum(),
        }
        counts = reduce(torch.stack(list(wrong.values())).double()).tolist()
        found = [f"{int(count)} {what}" for what, count in zip(wrong, counts, strict=True) if count]
        if found:
            raise ValueError(f"calibration rows: {'; '.join(found)}")
        x = torch.where(labelled, x.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), 0.0)
        return x, y, weight[:, None] * labelled

    def apply(self, logits: Tensor, pattern: Tensor) -> Tensor:
        """Correct logits [n, K] of patterns int64 [n]: [n, K] in the dtype of `logits` (float32 at least).

        An unseen pattern gets the shift of its modality count, an unseen count the global one.
        """
        values = logits if logits.dtype == torch.float64 else logits.float()
        if self._fitted is None:
            return values
        fitted = self._fitted
        temperature, bias, table = (t.to(values) for t in (fitted.temperature, fitted.bias, fitted.table))
        return values / temperature + bias + table[fitted.tree.to(values.device).node(pattern)]

    def recalibrate(self, logits: Tensor) -> Tensor:
        """Correct logits [n, K] by global bias and temperature alone: what every method gets before a comparison."""
        values = logits if logits.dtype == torch.float64 else logits.float()
        if self._fitted is None:
            return values
        return values / self._fitted.temperature.to(values) + self._fitted.bias.to(values)

    def probabilities(self, logits: Tensor, pattern: Tensor) -> Tensor:
        """Corrected probabilities [n, K], as `apply`."""
        return torch.sigmoid(self.apply(logits, pattern))

    def shifts(self, names: Mapping[int, str] | None = None) -> dict[str, float]:
        """What was fitted, by name, for TensorBoard; empty before `fit`.

        Args:
            names: Words for pattern ids; only these patterns are returned. None returns all, named by id.

        Returns:
            ``{task}/bias``, ``{task}/temperature``, ``{task}/tau_count``, ``{task}/tau_pattern``, ``{task}/global``,
            ``{task}/count/{c}`` and ``{task}/pattern/{name}``, all on the logit scale. Tasks that
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
            if self.rung == "global":
                continue
            found[f"{task}/tau_count"] = float(f.tau_count[k])
            found[f"{task}/tau_pattern"] = float(f.tau_pattern[k])
            found[f"{task}/global"] = float(f.table[-1, k])
            found |= {f"{task}/count/{c}": float(f.table[len(patterns) + j, k]) for j, c in enumerate(counts)}
            for p, pattern in enumerate(patterns):
                if names is None or pattern in names:
                    word = str(pattern) if names is None else names[pattern]
                    found[f"{task}/pattern/{word}"] = float(f.table[p, k])
        return found

    def to_state(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: JSON, and loadable with ``weights_only=True``."""
        state: dict[str, Any] = {"version": VERSION, "rung": self.rung, "tasks": list(self.tasks)}
        state["reasons"] = list(self.reasons)
        if self._fitted is None:
            return state | {"fitted": False}
        f, P = self._fitted, len(self._fitted.tree.pattern)
        numbers = {
            "bias": f.bias,
            "temperature": f.temperature,
            "tau_count": f.tau_count,
            "tau_pattern": f.tau_pattern,
            "patterns": f.tree.pattern,
            "counts": f.tree.count,
            "shift": f.table[:P],
            "count_shift": f.table[P:-1],
            "global_shift": f.table[-1],
            "sd": f.sd,
            "labelled": f.labelled.long(),
        }
        return state | {"fitted": True} | {name: value.tolist() for name, value in numbers.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rectifier:
        """Build the rectifier back from `to_state`.

        Raises:
            ValueError: If the state is of another version or lacks a part.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"rectifier state of version {state.get('version')!r}; this release reads {VERSION}")
        try:
            rectifier = cls(state["tasks"], state["rung"])
            rectifier.reasons = tuple(state["reasons"])
            if state["fitted"]:
                rectifier._fitted = _from_lists(state, len(rectifier.tasks))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a rectifier state: {error}") from error
        return rectifier


def _from_lists(state: Mapping[str, Any], K: int) -> _Fitted:
    def numbers(name: str) -> Tensor:
        return torch.tensor(state[name], dtype=torch.float64).reshape(-1, K)

    tree = PatternTree.of(torch.tensor(state["patterns"], dtype=torch.int64))
    table = torch.cat([numbers(name) for name in ("shift", "count_shift", "global_shift")])
    bias, temperature, tau_count, tau_pattern = (
        numbers(name)[0] for name in ("bias", "temperature", "tau_count", "tau_pattern")
    )
    return _Fitted(tree, bias, temperature, table, numbers("sd"), numbers("labelled"), tau_count, tau_pattern)


def _reason(rows: int, events: int) -> str:
    """Why a task cannot be fitted, or an empty string."""
    if rows == 0:
        return "no labelled calibration rows"
    fewer, which = min((events, "positive"), (rows - events, "negative"))
    if fewer < MIN_EVENTS:
        return f"fewer than {MIN_EVENTS} {which} labels in the calibration rows"
    return ""
