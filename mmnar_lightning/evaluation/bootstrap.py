"""Patient-cluster bootstrap: percentile intervals of a metric, and of the paired difference of two methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.metrics import BinaryMetric, binary_metric

Array = NDArray[np.float64]
CHUNK = 2_000_000
"""Weights held at once (draws × samples)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile interval.

    Args:
        estimate: The metric on the samples as they are; NaN where it is not defined.
        low: Lower end.
        high: Upper end.
        level: Nominal coverage.
        draws: Bootstrap draws in which the metric was defined; the ends are NaN where that is fewer than half.
        patients: Resampled patients.
        samples: Samples with a known label.
    """

    estimate: float
    low: float
    high: float
    level: float
    draws: int
    patients: int
    samples: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    metric: str | BinaryMetric,
    probabilities: ArrayLike,
    targets: ArrayLike,
    patient: ArrayLike,
    *,
    fold: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a metric. Patients are drawn with replacement, each with all of its samples.

    With `fold`, the metric is computed in each disjoint test fold and averaged, since models of different folds have
    seen each other's patients; patients are resampled inside their fold. The interval is about test patients, given
    the trained models: it holds no variation of training.

    Args:
        metric: Name out of `BINARY_METRICS`, or a metric.
        probabilities: [n].
        targets: [n] in {0, 1}.
        patient: [n] ids of any type.
        fold: [n] ids of the test folds, or None for a single one.
        labelled: bool [n]; samples without a known label are left out. None if all are known.
        draws: Bootstrap draws.
        level: Nominal coverage in (0, 1).
        seed: Seed; the same seed, patients and folds give the same draws, whatever the metric.

    Returns:
        The interval.

    Raises:
        ValueError: If lengths disagree, values are not finite, targets are not 0 or 1, a patient is in two folds, or
            draws or level are out of range.
    """
    data = _Data.of([probabilities], targets, patient, fold, labelled, draws, level)
    return data.interval(_named(metric), lambda values: values[0], draws, level, seed)


def bootstrap_difference(
    metric: str | BinaryMetric,
    first: ArrayLike,
    second: ArrayLike,
    targets: ArrayLike,
    patient: ArrayLike,
    *,
    fold: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of metric(first) − metric(second), both on the same draws of patients.

    Args:
        metric: Name out of `BINARY_METRICS`, or a metric.
        first: [n] probabilities of one method.
        second: [n] probabilities of the other.
        targets: [n] in {0, 1}.
        patient: [n] ids of any type.
        fold: As in `bootstrap_interval`.
        labelled: As in `bootstrap_interval`.
        draws: Bootstrap draws.
        level: Nominal coverage in (0, 1).
        seed: As in `bootstrap_interval`.

    Returns:
        The interval of the difference.

    Raises:
        ValueError: As `bootstrap_interval`.
    """
    data = _Data.of([first, second], targets, patient, fold, labelled, draws, level)
    return data.interval(_named(metric), lambda values: values[0] - values[1], draws, level, seed)


def _named(metric: str | BinaryMetric) -> BinaryMetric:
    return binary_metric(metric) if isinstance(metric, str) else metric


@dataclass(frozen=True)
class _Data:
    scores: list[Array]
    targets: Array
    folds: list[NDArray[np.int64]]  # rows of each fold
    members: list[NDArray[np.int64]]  # patient of each row of the fold, 0 … patients − 1

    @classmethod
    def of(
        cls,
        scores: list[ArrayLike],
        targets: ArrayLike,
        patient: ArrayLike,
        fold: ArrayLike | None,
        labelled: ArrayLike | None,
        draws: int,
        level: float,
    ) -> _Data:
        if draws < 1 or not 0 < level < 1:
            raise ValueError(f"draws must be ≥ 1 and level in (0, 1), not {draws} and {level}")
        rows = np.asarray(targets).shape
        person, group = np.asarray(patient), np.zeros(rows) if fold is None else np.asarray(fold)
        known = np.ones(rows, dtype=bool) if labelled is None else np.asarray(labelled, dtype=bool)
        columns = [np.asarray(score, dtype=np.float64) for score in scores]
        for name, column in (("probabilities", columns[0]), ("second probabilities", columns[-1])):
            if column.shape != rows or len(rows) != 1:
                raise ValueError(f"{name} have shape {column.shape}, targets {rows}; both must be [n]")
        if not person.shape == group.shape == known.shape == rows:
            raise ValueError(
                f"patient {person.shape}, fold {group.shape} and labelled {known.shape} must be [{rows[0]}]"
            )
        y = np.asarray(targets)[known].astype(np.float64)
        columns = [column[known] for column in columns]
        bad = int((~np.isfinite(np.stack(columns))).any(0).sum()), int(((y != 0) & (y != 1)).sum())
        if any(bad):
            raise ValueError(f"{bad[0]} rows with a probability that is not finite, {bad[1]} with a target not 0 or 1")
        person_index = np.unique(person[known], return_inverse=True)[1].astype(np.int64)
        fold_index = np.unique(group[known], return_inverse=True)[1]
        pairs = np.unique(np.stack([person_index, fold_index]), axis=1)
        torn = pairs.shape[1] - len(np.unique(pairs[0]))
        if torn:
            raise ValueError(f"{torn} patients have samples in more than one test fold")
        folds = [np.flatnonzero(fold_index == f) for f in range(int(fold_index.max(initial=-1)) + 1)]
        members = [np.unique(person_index[f], return_inverse=True)[1].astype(np.int64) for f in folds]
        return cls(columns, y, folds, members)

    def interval(
        self, metric: BinaryMetric, join: Callable[[list[Array]], Array], draws: int, level: float, seed: int
    ) -> Interval:
        patients = sum(int(m.max()) + 1 for m in self.members)
        if not self.folds:
            return Interval(np.nan, np.nan, np.nan, level, 0, 0, 0)
        estimate = float(np.mean([join(self._values(metric, f, None))[0] for f in range(len(self.folds))]))
        sums = np.zeros(draws)
        for f, stream in enumerate(np.random.SeedSequence(seed).spawn(len(self.folds))):
            first = 0
            for weights in patient_weights(self.members[f], draws, np.random.default_rng(stream)):
                sums[first : first + len(weights)] += join(self._values(metric, f, weights))
                first += len(weights)
        # a draw in which a fold has no event leaves the mean undefined: it is counted out, not averaged around
        drawn = sums[np.isfinite(sums)] / len(self.folds)
        low, high = np.nan, np.nan
        if 2 * len(drawn) >= draws:
            low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
        return Interval(estimate, low, high, level, len(drawn), patients, len(self.targets))

    def _values(self, metric: BinaryMetric, fold: int, weights: NDArray[Any] | None) -> list[Array]:
        rows = self.folds[fold]
        return [metric.of(score[rows], self.targets[rows], weights) for score in self.scores]


def patient_weights(member: NDArray[np.int64], draws: int, generator: np.random.Generator) -> Iterator[Array]:
    """Draw patients with replacement: how often each row is drawn, in chunks of [d, n].

    Args:
        member: [n], patient of each row, 0 … patients − 1, each there; n ≥ 1.
        draws: Bootstrap draws, the sum over d.
        generator: Where the draws come from; how they are cut into chunks changes nothing.
    """
    patients = int(member.max()) + 1
    size = max(1, CHUNK // len(member))
    for first in range(0, draws, size):
        d = min(size, draws - first)
        drawn = generator.integers(patients, size=(d, patients)) + patients * np.arange(d)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=d * patients).reshape(d, patients)
        yield counts[:, member].astype(np.float64)
