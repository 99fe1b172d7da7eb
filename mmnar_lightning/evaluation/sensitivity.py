"""How wrong ignorability may be before a conclusion falls: bounds of a mean under the marginal sensitivity model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from mmnar_lightning.evaluation.assignment import patient_folds, standardised

Array = NDArray[np.float64]
RIDGE = 10.0 ** np.arange(-1, 5)
"""Penalties that the outcome regression chooses from by leave-one-out error."""


@dataclass(frozen=True)
class Bounds:
    """What the data say of a mean where the odds of being observed may be off by a factor of Γ.

    Args:
        gamma: Γ ≥ 1.
        low: Lower end of the estimates; at Γ = 1 both ends are the AIPW estimate.
        high: Upper end.
        interval_low: Lower confidence limit of the lower end.
        interval_high: Upper confidence limit of the upper end.
    """

    gamma: float
    low: float
    high: float
    interval_low: float
    interval_high: float


def gamma_bounds(
    values: ArrayLike,
    observed: ArrayLike,
    probability: ArrayLike,
    known: ArrayLike,
    patient: ArrayLike,
    gammas: Sequence[float],
    *,
    folds: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Bounds, ...]:
    """Bound E[D] over all n samples, where D is seen for δ = 1 only, under the marginal sensitivity model.

    The model (Tan 2006): whatever else decides about δ, the odds of P(δ = 1 | w, D) and of π(w) differ by a factor
    between 1/Γ and Γ. Then, among those with δ = 0, D given w has a density within [1/Γ, Γ] of that among δ = 1, and
    the largest mean it can have is ρ(w) = E[T | w, δ = 1] with T = Q + Γ^{sign(D − Q)}(D − Q) and Q(w) the
    Γ/(Γ + 1) quantile of D given w. The estimate of the upper end is the mean of

        φ = δ D + (1 − δ) ρ(w) + (1 − π)/π · δ (T − ρ(w)),

    the lower end is minus the upper end for −D. At Γ = 1, T = D and φ is the score of AIPW, μ + δ (D − μ)/π.
    Errors of π and ρ enter by their product only. A wrong Q widens the bounds and never makes them too narrow: here it
    is a ridge regression of D on w plus a quantile of its residuals. Q and ρ of a sample are fitted on other patients.

    Args:
        values: float [n], D; not looked at where δ = 0.
        observed: bool [n], δ.
        probability: float [n], π(w), cross-fitted, in (0, 1].
        known: float [n, P], w; NaN where an item was not measured.
        patient: [n] ids; standard errors allow for patients with several samples.
        gammas: Γ ≥ 1, each.
        folds: Number of folds.
        level: Nominal coverage.
        seed: Key of the folds.

    Returns:
        Bounds for each Γ, in order. The interval holds the whole range with at least the nominal probability.

    Raises:
        ValueError: If shapes disagree, a Γ is below 1, or fewer than 2 samples are observed outside a fold.

    Source: Dorn, Guo, Kallus, *Doubly-Valid/Doubly-Sharp Sensitivity Analysis for Causal Inference with Unmeasured
    Confounding*, JASA 2024; the model is that of Tan, *A distributional approach for causal inference using propensity
    scores*, JASA 2006, first turned into intervals by Zhao, Small, Bhattacharya, JRSS B 2019.
    """
    delta, pi = np.asarray(observed, dtype=bool), np.asarray(probability, dtype=np.float64)
    d = np.where(delta, np.asarray(values, dtype=np.float64), 0.0)
    w, gamma = np.asarray(known, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    if not (d.shape == delta.shape == pi.shape == np.shape(patient) == w.shape[:1]) or d.ndim != 1:
        raise ValueError("values, observed, probability, patient must be [n], known [n, P]")
    if (gamma < 1).any() or not np.isfinite(d).all() or not ((pi > 0) & (pi <= 1)).all():
        raise ValueError("every Γ must be at least 1, π in (0, 1], and values finite where observed")
    fold = patient_folds(patient, folds, seed)
    # the lower end is the upper one with tilts turned round
    low, high = np.split(_scores(d, delta, pi, standardised(w), fold, np.concatenate([1 / gamma, gamma])), 2, axis=1)
    z = float(norm.ppf((1 + level) / 2))
    ends = low.mean(0) - z * clustered_error(low, patient), high.mean(0) + z * clustered_error(high, patient)
    columns = [gamma, low.mean(0), high.mean(0), *ends]
    return tuple(Bounds(*map(float, row)) for row in zip(*columns, strict=True))


def _scores(
    d: Array, delta: NDArray[np.bool_], pi: Array, w: Array, fold: NDArray[np.int64], gamma: Array
) -> NDArray[np.float64]:
    """φ of the upper end for each γ > 1, of the lower end at Γ = 1/γ for each γ < 1: [n, G]."""
    from sklearn.linear_model import Ridge, RidgeCV

    tilted, expected = np.zeros((len(d), len(gamma))), np.zeros((len(d), len(gamma)))
    for f in np.unique(fold):
        held, rest = fold == f, (fold != f) & delta
        if rest.sum() < 2:
            raise ValueError("fewer than 2 samples are observed outside a fold")
        centre = RidgeCV(alphas=RIDGE).fit(w[rest], d[rest]) if w.shape[1] else None
        fitted = np.zeros(len(d)) if centre is None else centre.predict(w)
        cut = np.quantile(d[rest] - fitted[rest], gamma / (gamma + 1))
        own = _tilted(d[rest], fitted[rest, None] + cut, gamma)
        expected[held] = own.mean(0)
        if centre is not None:
            outcome = Ridge(alpha=centre.alpha_).fit(w[rest], own)
            expected[held] = outcome.predict(w[held]).reshape(-1, len(gamma))
        tilted[held] = _tilted(d[held], fitted[held, None] + cut, gamma)
    odds = ((1 - pi) / pi)[:, None]
    return np.where(delta[:, None], d[:, None] + odds * (tilted - expected), expected)


def _tilted(d: Array, quantile: Array, gamma: Array) -> Array:
    """T = Q + γ^{sign(D − Q)}(D − Q): [n, G]."""
    gap = d[:, None] - quantile
    return quantile + np.where(gap > 0, gamma, 1 / gamma) * gap


def clustered_error(scores: ArrayLike, patient: ArrayLike) -> NDArray[np.float64]:
    """Standard error of the mean of scores [n, …] whose rows of one patient may depend on each other."""
    values = np.asarray(scores, dtype=np.float64)
    member = np.unique(np.asarray(patient).astype(str), return_inverse=True)[1]
    people = int(member.max()) + 1
    sums = np.zeros((people, *values.shape[1:]))
    np.add.at(sums, member, values - values.mean(0))
    correction = people / max(people - 1, 1)
    error: NDArray[np.float64] = np.sqrt(correction * (sums**2).sum(0)) / len(values)
    return error


def tipping_point(bounds: Sequence[Bounds]) -> float | None:
    """Smallest Γ whose interval holds 0; 1 where it does already under ignorability, None if none does.

    Args:
        bounds: With ascending Γ.
    """
    return next((b.gamma for b in bounds if b.interval_low <= 0 <= b.interval_high), None)
