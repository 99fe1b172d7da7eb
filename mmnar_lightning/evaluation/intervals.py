"""Patient-cluster bootstrap of many statistics at once, on the same draws, in bounded time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.bootstrap import Interval, patient_weights
from mmnar_lightning.metrics import BinaryMetric, binary_metric
from mmnar_lightning.metrics.binary import PROBABILITY_FLOOR

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Maps weights of rows [D, n] to the statistic under each of them, [D]; NaN where it is not defined."""
ROW_DRAWS = 30_000_000
MOST_DRAWS, FEWEST_DRAWS = 1000, 200
LEVELS = 4000
"""Ranks that a ranking metric tells apart in a draw; with more different scores, neighbours share one."""
CALIBRATION_FITS = ("calibration_intercept", "calibration_slope")
CALIBRATION_LEVELS = 1000
"""Logits that a calibration intercept or slope tells apart in a draw."""


def bounded_draws(rows: int) -> int:
    """Choose bootstrap draws for n rows: 1000 up to 30,000 rows, then fewer with n, never under 200."""
    return int(np.clip(ROW_DRAWS // max(1, rows), FEWEST_DRAWS, MOST_DRAWS))


def bootstrap_statistics(
    statistics: Mapping[str, Statistic], patient: ArrayLike, *, draws: int, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of statistics of the same rows. Patients are drawn with replacement, with all their rows.

    The draws are those of `bootstrap_interval` for the same seed and patients.

    Args:
        statistics: By name.
        patient: [n] ids of any type.
        draws: Bootstrap draws.
        level: Nominal coverage in (0, 1).
        seed: Seed.

    Returns:
        An interval by name; all NaN where there is no row.

    Raises:
        ValueError: If draws or level are out of range.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be ≥ 1 and level in (0, 1), not {draws} and {level}")
    people, member = np.unique(np.asarray(patient), return_inverse=True)
    n = len(member)
    if not n:
        return dict.fromkeys(statistics, Interval(np.nan, np.nan, np.nan, level, 0, 0, 0))
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    drawn: dict[str, list[Array]] = {name: [] for name in statistics}
    for weights in patient_weights(member.astype(np.int64), draws, generator):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    found = {}
    for name, statistic in statistics.items():
        values = np.concatenate(drawn[name])
        values = values[np.isfinite(values)]
        low, high = np.nan, np.nan
        if 2 * len(values) >= draws:
            low, high = (float(q) for q in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
        estimate = float(statistic(np.ones((1, n)))[0])
        found[name] = Interval(estimate, low, high, level, len(values), len(people), n)
    return found


def metric_statistic(metric: str, probabilities: ArrayLike, targets: ArrayLike) -> Statistic:
    """Make a statistic of a metric out of `BINARY_METRICS`, see `metric_statistics`."""
    return metric_statistics([metric], probabilities, targets)[metric]


def metric_statistics(metrics: Sequence[str], probabilities: ArrayLike, targets: ArrayLike) -> dict[str, Statistic]:
    """Make statistics of metrics out of `BINARY_METRICS`, for rows with a known label.

    AUROC and AUPRC need ranks only, calibration intercept and slope the distribution of the logits. Rows of the same
    class and rank are added up first, once for all metrics. AUROC and AUPRC are exact up to 4,000 different
    probabilities; beyond, neighbours share a rank, which moves the value in the fourth decimal place. Intercept and
    slope are exact up to 1,000; beyond, neighbours share their mean logit, which moves the slope in the fourth.

    Args:
        metrics: Names of the metrics.
        probabilities: [n].
        targets: [n] in {0, 1}.

    Raises:
        ValueError: If there is no such metric, or lengths or values are wrong.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    known = [binary_metric(name) for name in metrics]
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"probabilities have shape {p.shape}, targets {y.shape}; both must be [n]")
    bad = int((~np.isfinite(p)).sum()), int(((y != 0) & (y != 1)).sum())
    if any(bad):
        raise ValueError(f"{bad[0]} rows with a probability that is not finite, {bad[1]} with a target not 0 or 1")
    found: dict[str, Statistic] = {}
    kinds = {metric.name: (bool(metric.ranking), metric.name in CALIBRATION_FITS) for metric in known}
    ranked = _ranked(p, y) if any(ranking for ranking, _ in kinds.values()) else None
    fitted = _fitted(p, y) if any(fit for _, fit in kinds.values()) else None
    for metric in known:
        ranking, fit = kinds[metric.name]
        chosen = ranked if ranking else fitted if fit else (p, y, _same)
        assert chosen is not None
        found[metric.name] = _statistic(metric, *chosen)
    return found


def _statistic(metric: BinaryMetric, p: Array, y: Array, add: Statistic) -> Statistic:
    return lambda weights: metric.of(p, y, add(weights))


def _same(weights: Array) -> Array:
    return weights


def ranks(values: Array, levels: int = LEVELS) -> NDArray[np.int64]:
    """Rank of each value [n] among the different ones, 0 …; in groups of equal size where there are over `levels`."""
    rank: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    if len(values) and rank.max() >= levels:
        # ties share a rank whatever their order
        rank = np.searchsorted(np.sort(values), values) * levels // len(values)
    return rank


def _ranked(p: Array, y: Array) -> tuple[Array, Array, Statistic]:
    """Rank and class of the different rows, and what adds weights up over equal ones."""
    (rank, label), add = row_cells(ranks(p), y)
    return rank, label, _Once(add)


def _fitted(p: Array, y: Array) -> tuple[Array, Array, Statistic]:
    """The same with the mean logit of a rank, as a probability, in place of the rank."""
    rank = ranks(p, CALIBRATION_LEVELS)
    clipped = np.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    logit = np.log(clipped) - np.log1p(-clipped)
    rows = np.bincount(rank)
    mean = np.bincount(rank, weights=logit) / np.maximum(rows, 1)
    (place, label), add = row_cells(rank, y)
    return 1 / (1 + np.exp(-mean[place.astype(np.int64)])), label, _Once(add)


class _Once:
    """A map of weights that is computed once for all statistics that are asked about the same weights in turn."""

    def __init__(self, of: Statistic) -> None:
        self._of = of
        self._given: Array | None = None
        self._value: Array = np.zeros(0)

    def __call__(self, weights: Array) -> Array:
        if weights is not self._given:
            self._given, self._value = weights, self._of(weights)
        return self._value


def row_cells(*columns: NDArray[Any]) -> tuple[list[Array], Statistic]:
    """Find the different rows of integer-valued columns [n], and what adds weights up over equal rows.

    Returns:
        The columns of the C different rows, [C] each, and a map from weights [D, n] to weights [D, C].
    """
    from scipy.sparse import csr_array

    rows, cell = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    n, C = len(cell), len(rows)
    member = csr_array((np.ones(n), (cell.reshape(n), np.arange(n))), shape=(C, n))

    def add(weights: Array) -> Array:
        return np.ascontiguousarray((member @ weights.T).T)

    return [column.astype(np.float64) for column in rows.T], add
