"""All metrics of all outcomes in one torchmetrics metric: one copy of the predictions, one synchronisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from mmnar_lightning.metrics.binary import BINARY_METRICS, BinaryMetric, binary_metric
from mmnar_lightning.records import pattern_names

PATTERN_METRICS = ("auroc", "auprc", "brier")
FEWEST = 10
"""Samples a pattern needs to be reported: a number about fewer could point at someone."""
WORST_MINIMUM = 10
"""Events and non-events a pattern needs to be called the worst: below, the minimum is of noise."""


def frequent_patterns(pattern: Tensor, names: Sequence[str], most: int = 8) -> dict[int, str]:
    """Name the most frequent patterns of int64 [n]: id → "labs+notes" (or "none"), most frequent first, then by id."""
    ids, counts = torch.unique(pattern, return_counts=True)
    ranked = sorted(zip((-counts).tolist(), ids.tolist(), strict=True))[:most]
    return {p: "+".join(pattern_names(p, names)) or "none" for _, p in ranked}


class OutcomeMetrics(Metric):
    """Exact metrics of K binary outcomes, over samples whose label is known.

    Keys of `compute`: ``{task}/{metric}``; ``{metric}``, the mean over the tasks that have it;
    ``{task}/pattern/{name}/{metric}`` for AUROC, AUPRC and Brier in the given patterns that have ≥ 10 samples;
    ``{task}/worst_pattern/auroc``, the lowest AUROC of any pattern with ≥ 10 events and ≥ 10 non-events (a minimum of
    noisy numbers: it reads low). What is not defined (no label, or one class where two are needed) has no key, so no
    NaN is logged. Keys depend on the synchronised predictions alone: they are the same on every device. Shards may be
    uneven or empty.

    Args:
        tasks: Names of the K tasks.
        patterns: Pattern ids to report, and their names (see `frequent_patterns`).
        metrics: Names out of `BINARY_METRICS`; None for all.

    Raises:
        ValueError: If a metric is unknown; lists those there are.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    probabilities: list[Tensor]
    targets: list[Tensor]
    pattern: list[Tensor]

    def __init__(
        self,
        tasks: Sequence[str],
        patterns: Mapping[int, str] | None = None,
        metrics: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)
        self.patterns = dict(patterns or {})
        self.metrics = [binary_metric(name) for name in (BINARY_METRICS if metrics is None else metrics)]
        for state in ("probabilities", "targets", "pattern"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor, labelled: Tensor, pattern: Tensor) -> None:
        """Add a batch; nothing is copied to the host.

        Args:
            probabilities: [B, K] in [0, 1]; B may be 0.
            targets: [B, K] in {0, 1}; anything where unlabelled.
            labelled: bool [B, K].
            pattern: int64 [B].

        Raises:
            ValueError: If shapes disagree.
        """
        shape = (len(pattern), len(self.tasks))
        for name, tensor in (("probabilities", probabilities), ("targets", targets), ("labelled", labelled)):
            if tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)} (rows, tasks), not {list(tensor.shape)}")
        self.probabilities.append(probabilities.detach().float())
        self.targets.append(torch.where(labelled, targets.detach().float(), torch.nan))
        self.pattern.append(pattern.detach().long())

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # a device that saw no batch must still send tensors of the right shape and type
        for name, dtype in (("probabilities", torch.float32), ("targets", torch.float32), ("pattern", torch.int64)):
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                shape = (0,) if name == "pattern" else (0, len(self.tasks))
                setattr(self, name, [torch.zeros(shape, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Compute every metric that is defined, as float32 scalars on the metric's device."""
        p, y, pattern = (self._whole(name) for name in ("probabilities", "targets", "pattern"))
        found: dict[str, float] = {}
        for k, task in enumerate(self.tasks):
            known = ~np.isnan(y[:, k]) if len(y) else np.zeros(0, dtype=bool)
            if known.any():
                found |= self._task(task, p[known, k], y[known, k], pattern[known])
        for metric in self.metrics:
            values = [found[f"{task}/{metric.name}"] for task in self.tasks if f"{task}/{metric.name}" in found]
            if values:
                found[metric.name] = float(np.mean(values))
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in found.items()}

    def _whole(self, name: str) -> NDArray[Any]:
        state = getattr(self, name)
        if isinstance(state, Tensor):
            state = [state]
        whole = torch.cat(state).cpu() if state else torch.zeros(0)
        return whole.numpy() if name == "pattern" else whole.double().numpy()

    def _task(self, task: str, p: NDArray[Any], y: NDArray[Any], pattern: NDArray[Any]) -> dict[str, float]:
        found = {f"{task}/{name}": value for name, value in _values(self.metrics, p, y).items()}
        reported = [metric for metric in self.metrics if metric.name in PATTERN_METRICS]
        for identity, word in self.patterns.items():
            rows = pattern == identity
            if rows.sum() < FEWEST:
                continue
            values = _values(reported, p[rows], y[rows])
            found |= {f"{task}/pattern/{word}/{name}": value for name, value in values.items()}
        if any(metric.name == "auroc" for metric in self.metrics):
            worst = _worst(p, y, pattern)
            if worst is not None:
                found[f"{task}/worst_pattern/auroc"] = worst
        return found


def _values(metrics: Sequence[BinaryMetric], p: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    if not len(y):
        return {}
    both = 0 < y.sum() < len(y)
    values = {m.name: float(m.of(p, y, None)[0]) for m in metrics if both or not m.needs_both_classes}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _worst(p: NDArray[Any], y: NDArray[Any], pattern: NDArray[Any]) -> float | None:
    """Lowest AUROC of the patterns that are large enough, or None if there is none."""
    ids, index = np.unique(pattern, return_inverse=True)
    events = np.bincount(index, weights=y, minlength=len(ids))
    others = np.bincount(index, minlength=len(ids)) - events
    enough = np.flatnonzero((events >= WORST_MINIMUM) & (others >= WORST_MINIMUM))
    auroc = BINARY_METRICS["auroc"].of
    return min((float(auroc(p[index == i], y[index == i], None)[0]) for i in enough), default=None)
