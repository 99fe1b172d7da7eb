"""Prediction-powered intervals of pattern means: a mean outcome from some labels and everybody's predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PoweredMean:
    """A mean outcome and its interval.

    Args:
        estimate: θ.
        low: Lower end, cut at 0.
        high: Upper end, cut at 1.
        power: λ, 0 for the mean of the labels alone, 1 for plain prediction-powered inference.
        labelled: n.
        unlabelled: N.
        patients: Clusters.
    """

    estimate: float
    low: float
    high: float
    power: float
    labelled: int
    unlabelled: int
    patients: int


def powered_mean(
    targets: ArrayLike,
    predictions: ArrayLike,
    others: ArrayLike,
    *,
    patient: ArrayLike | None = None,
    other_patient: ArrayLike | None = None,
    power: float | None = None,
    level: float = 0.95,
) -> PoweredMean:
    """Estimate E[y] from n labelled rows and the predictions f of N further rows of the same population.

    θ = λ mean_N(f) + mean_n(y − λ f),   Var θ = Σ_g φ_g²,   φ_g = Σ_{i ∈ g} [λ (f_i − f̄)/N or (r_i − r̄)/n]

    with r = y − λ f and g the patients, whose rows may be on both sides; where each has one row this is
    λ² var(f)/N + var(r)/n. The tuned λ, which minimises that variance, is cov(y, f) / ((1 + n/N) var(f)) cut to
    [0, 1] (Angelopoulos, Duchi, Zrnic, *PPI++: Efficient Prediction-Powered Inference*, 2023; λ = 1 is Angelopoulos
    et al., *Prediction-powered inference*, Science 2023). With repeated patients it is still that λ, which is valid,
    if no longer the best.

    The interval is the normal one, so it wants ten events and ten non-events at least. Labels must be missing
    for reasons unrelated to y in these rows, and the predictions must not have been fitted on them.

    Args:
        targets: y [n] in {0, 1}.
        predictions: f [n] of the same rows.
        others: f [N] of the rows without a label; with none, the mean of the labels.
        patient: [n] ids; None if all are different.
        other_patient: [N] ids; None if all are different, also from those of the labelled rows.
        power: λ in [0, 1], or None for the tuned one.
        level: Nominal coverage in (0, 1).

    Returns:
        Estimate and interval.

    Raises:
        ValueError: If there is no label, lengths disagree, values are not finite, or power or level are out of range.
    """
    y, f, u = (np.asarray(values, dtype=np.float64) for values in (targets, predictions, others))
    n, N = len(y), len(u)
    if n == 0 or y.shape != f.shape or not all(np.isfinite(values).all() for values in (y, f, u)):
        raise ValueError(
            f"{n} targets, {len(f)} predictions and {N} others: need ≥ 1 target, as many predictions, finite"
        )
    if not 0 < level < 1 or not (power is None or 0 <= power <= 1):
        raise ValueError(f"level {level} must be in (0, 1) and power {power} in [0, 1]")
    lam = 0.0 if N == 0 else tuned_power(y, f, u) if power is None else power
    residual = y - lam * f
    shared = lam * u.mean() if N else 0.0
    estimate = float(residual.mean() + shared)
    group, groups = _groups(n, N, patient, other_patient)
    parts = np.concatenate([(residual - residual.mean()) / n, lam * (u - u.mean()) / N if N else u])
    sd = float(np.sqrt(np.sum(np.bincount(group, parts, groups) ** 2)))
    half = float(norm.ppf((1 + level) / 2)) * sd
    return PoweredMean(estimate, max(0.0, estimate - half), min(1.0, estimate + half), lam, n, N, groups)


def tuned_power(targets: Array, predictions: Array, others: Array) -> float:
    """Return the λ in [0, 1] of least variance for rows that are independent; 0 where predictions don't vary."""
    n, N = len(targets), len(others)
    spread = float(np.var(np.concatenate([predictions, others]), ddof=1)) if n + N > 1 else 0.0
    if spread == 0 or N == 0:
        return 0.0
    covariance = float(np.mean((targets - targets.mean()) * (predictions - predictions.mean())))
    return float(np.clip(covariance / ((1 + n / N) * spread), 0.0, 1.0))


def _groups(n: int, N: int, patient: ArrayLike | None, other: ArrayLike | None) -> tuple[NDArray[np.int64], int]:
    """Number the clusters of labelled, then other rows."""
    first, second = np.arange(n) if patient is None else np.asarray(patient), np.arange(N)
    second = second if other is None else np.asarray(other)
    if (len(first), len(second)) != (n, N):
        raise ValueError(f"{len(first)} and {len(second)} patients for {n} and {N} rows")
    if patient is not None and other is not None:
        group = np.unique(np.concatenate([first, second]), return_inverse=True)[1].astype(np.int64)
    else:
        own, theirs = (np.unique(ids, return_inverse=True)[1].astype(np.int64) for ids in (first, second))
        group = np.concatenate([own, theirs + own.max(initial=-1) + 1])
    return group, int(group.max(initial=-1)) + 1
