"""Patient-cluster bootstrap of many statistics at once, on the same draws, in bounded time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.bootstrap import Interval, patient_weights
from mmnar_lightning.metrics import binary_metric

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Maps weights of rows [D, n] to the statistic under each of them, [D]; NaN where it is not defined."""
ROW_DRAWS = 30_000_000
MOST_DRAWS, FEWEST_DRAWS = 1000, 200
LEVELS = 4000
"""Ranks that a ranking metric tells apart in a draw; with more different scores, neighbours share one."""


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
    """Make a statistic of a metric out of `BINARY_METRICS`, for rows with a known label.

    AUROC and AUPRC need ranks only. Rows of the same class and rank are added up first: exact up to 4,000 different
    probabilities; beyond, neighbours share a rank, which moves the value in the fourth decimal place.

    Args:
        metric: Name of the metric.
        probabilities: [n].
        targets: [n] in {0, 1}.

    Raises:
        ValueError: If there is no such metric, or lengths or values are wrong.
    """
    of, p, y = binary_metric(metric), np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"probabilities have shape {p.shape}, targets {y.shape}; both must be [n]")
    bad = int((~np.isfinite(p)).sum()), int(((y != 0) & (y != 1)).sum())
    if any(bad):
        raise ValueError(f"{bad[0]} rows with a probability that is not finite, {bad[1]} with a target not 0 or 1")
    if not of.ranking:
        return lambda weights: of.of(p, y, weights)
    rank = np.unique(p, return_inverse=True)[1]
    if len(p) and rank.max() >= LEVELS:
        # ties share a rank whatever their order
        rank = np.searchsorted(np.sort(p), p) * LEVELS // len(p)
    cells, add = row_cells(rank, y)
    return lambda weights: of.of(cells[0], cells[1], add(weights))


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
