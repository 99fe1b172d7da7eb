"""Metrics of one binary outcome under many weightings of the same rows at once (D draws of a bootstrap; or one).

Every function takes probabilities [n] in [0, 1], targets [n] in {0, 1} and optional weights [D, n] ≥ 0, and returns
[D] (without weights: one draw of ones). A weight of 2 is the row counted twice. A draw in which the metric is not
defined is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]
PROBABILITY_FLOOR = 1e-7
"""Probabilities are kept this far from 0 and 1 where a logarithm is taken: the resolution of float32 near 1."""
ECE_BINS = 10


def _weights(weights: NDArray[Any] | None, rows: int) -> Array:
    return np.ones((1, rows)) if weights is None else weights.astype(np.float64, copy=False)


def _ratio(top: Array, bottom: Array) -> Array:
    """top / bottom, NaN where bottom is 0."""
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    ratio: Array = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return ratio


def _ends(values: Array) -> NDArray[np.int64]:
    """Index of the last element of each run of equal values in a sorted array."""
    return np.flatnonzero(np.append(values[1:] != values[:-1], True))


def auroc(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Area under the receiver operating curve: P(score of an event > that of a non-event), ties count ½.

    Summed over runs of equal scores, exactly: Σ_runs W₊(run)·(W₋(below) + ½ W₋(run)) / (W₊ W₋).
    """
    w = _weights(weights, len(targets))
    if not len(targets):
        return np.full(len(w), np.nan)
    order = np.argsort(probabilities, kind="stable")
    y, end = targets[order], _ends(probabilities[order])
    w = w[:, order]
    positive = np.cumsum(w * y, axis=1)[:, end]
    negative = np.cumsum(w * (1 - y), axis=1)[:, end]
    half = (negative + np.pad(negative, ((0, 0), (1, 0)))[:, :-1]) / 2
    area = (np.diff(positive, axis=1, prepend=0.0) * half).sum(1)
    return _ratio(area, positive[:, -1] * negative[:, -1])


def auprc(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Average precision: Σ over thresholds of (recall step × precision), thresholds at distinct scores."""
    w = _weights(weights, len(targets))
    if not len(targets):
        return np.full(len(w), np.nan)
    order = np.argsort(-probabilities, kind="stable")
    y, end = targets[order], _ends(probabilities[order])
    w = w[:, order]
    positive = np.cumsum(w * y, axis=1)[:, end]
    chosen = np.cumsum(w, axis=1)[:, end]
    precision = np.divide(positive, chosen, out=np.zeros_like(chosen), where=chosen > 0)
    area = (np.diff(positive, axis=1, prepend=0.0) * precision).sum(1)
    # without a non-event every ranking is perfect: not defined here, as for AUROC
    return np.where(chosen[:, -1] > positive[:, -1], _ratio(area, positive[:, -1]), np.nan)


def brier(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Mean squared difference of probability and outcome."""
    w = _weights(weights, len(targets))
    return _ratio(w @ (probabilities - targets) ** 2, w.sum(1))


def log_loss(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Mean negative log likelihood in nats; probabilities are kept 1e-7 from 0 and 1."""
    w = _weights(weights, len(targets))
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return _ratio(w @ -(targets * np.log(p) + (1 - targets) * np.log1p(-p)), w.sum(1))


def calibration_intercept(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Calibration in the large: b of y ~ σ(logit p + b). 0 is right; > 0 means risks are too low on average.

    Van Calster et al., *Calibration: the Achilles heel of predictive analytics*, BMC Medicine 2019.
    """
    return _logistic(probabilities, targets, _weights(weights, len(targets)), slope=False)[:, 0]


def calibration_slope(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Slope s of y ~ σ(s·logit p + b). 1 is right; < 1 means risks are too extreme. NaN where the classes separate."""
    return _logistic(probabilities, targets, _weights(weights, len(targets)), slope=True)[:, 1]


def _logistic(p: Array, y: Array, w: Array, slope: bool, steps: int = 200) -> Array:
    """Maximum likelihood of (b, s) [D, 2] by Newton steps that move no logit by more than 1; NaN without convergence.

    A step of that length always raises the likelihood (self-concordance of the logistic loss).
    """
    p = np.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    x = np.log(p) - np.log1p(-p)
    theta = np.tile([0.0, 1.0], (len(w), 1))
    done = np.zeros(len(w), dtype=bool)
    events, total = w @ y, w.sum(1)
    possible = (events > 0) & (events < total)
    if slope:
        lowest = np.where(w > 0, x, np.inf).min(1, initial=np.inf)
        possible &= np.where(w > 0, x, -np.inf).max(1, initial=-np.inf) > lowest
    for _ in range(steps):
        live = np.flatnonzero(possible & ~done)
        if not len(live):
            break
        eta = theta[live, :1] + theta[live, 1:] * x
        f = 1 / (1 + np.exp(-np.clip(eta, -500, 500)))
        residual, information = w[live] * (y - f), w[live] * f * (1 - f)
        g0, h00 = residual.sum(1), information.sum(1)
        if slope:
            g1, h01, h11 = residual @ x, information @ x, information @ x**2
            determinant = h00 * h11 - h01**2
            singular = ~(determinant > 1e-12 * h00 * h11)  # all weight in one logit, or separated out to flatness
            determinant[singular] = np.nan
            move = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], 1) / determinant[:, None]
        else:
            singular = ~(h00 > 0)
            move = np.stack([_ratio(g0, h00), np.zeros_like(g0)], 1)
        possible[live[singular]] = False
        live, move = live[~singular], move[~singular]
        reach = np.abs(move[:, :1] + move[:, 1:] * x).max(1, initial=0.0)
        theta[live] += move / np.maximum(reach, 1.0)[:, None]
        done[live] = np.abs(move).max(1, initial=0.0) < 1e-10
    return np.where(done[:, None], theta, np.nan)


def excess_ece(probabilities: Array, targets: Array, weights: NDArray[Any] | None = None) -> Array:
    """Expected calibration error minus its expected value for a perfectly calibrated model of the same scores.

    ECE = Σ_bins |Σ w(y − p)| / Σ w over ten bins of equal mass (ties share a bin, so a bin may be larger). It is
    positive even for true probabilities, about 0.03 at n = 300. Subtracted is E ECE under y ~ Bernoulli(p): a bin's
    mean absolute deviation is that of a binomial (de Moivre's closed form), scaled to the bin's own variance
    Σ w² p(1 − p), which also allows for rows that a bootstrap draw holds twice. So 0 is perfect, and slightly negative
    values are noise.
    """
    w = _weights(weights, len(targets))
    if not len(targets):
        return np.full(len(w), np.nan)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, ECE_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, probabilities, side="right")
    member = (bins[:, None] == np.arange(len(edges) + 1)).astype(np.float64)
    mass, squares = w @ member, w**2 @ member
    gap = np.abs((w * (targets - probabilities)) @ member)
    mean = np.divide((w * probabilities) @ member, mass, out=np.zeros_like(mass), where=mass > 0)
    spread = np.sqrt(w**2 @ (member * (probabilities * (1 - probabilities))[:, None]))
    trials = np.round(np.divide(mass**2, squares, out=np.ones_like(mass), where=squares > 0))
    return _ratio((gap - _deviation(trials, mean) * spread).sum(1), mass.sum(1))


def _deviation(trials: Array, p: Array) -> Array:
    """E|S − Np| / sd(S) of S ~ Binomial(N, p), by de Moivre: E|S − Np| = 2 ν C(N, ν) p^ν q^{N−ν+1}, ν = ⌊Np⌋ + 1."""
    q = np.clip(1 - p, 1e-12, 1 - 1e-12)
    p = 1 - q
    v = np.minimum(np.floor(trials * p) + 1, trials)
    log_choose = gammaln(trials + 1) - gammaln(v + 1) - gammaln(trials - v + 1)
    log_mean = np.log(2 * v) + log_choose + v * np.log(p) + (trials - v + 1) * np.log(q)
    return np.asarray(np.exp(log_mean - np.log(trials * p * q) / 2))


@dataclass(frozen=True)
class BinaryMetric:
    """A metric of one outcome and what it needs.

    Args:
        name: Word in logs and tables.
        of: The function: probabilities [n], targets [n], weights [D, n] or None → [D].
        needs_both_classes: Undefined without an event and a non-event.
        best: The value of a perfect model: 1 or 0 to rank by, or the target of a calibration measure.
        ranking: True where larger is better; False where smaller is; None for calibration measures, which never
            choose a model.
    """

    name: str
    of: Callable[[Array, Array, NDArray[Any] | None], Array]
    needs_both_classes: bool
    best: float
    ranking: bool | None


BINARY_METRICS: dict[str, BinaryMetric] = {
    metric.name: metric
    for metric in (
        BinaryMetric("auroc", auroc, True, 1.0, True),
        BinaryMetric("auprc", auprc, True, 1.0, True),
        BinaryMetric("brier", brier, False, 0.0, False),
        BinaryMetric("log_loss", log_loss, False, 0.0, False),
        BinaryMetric("calibration_intercept", calibration_intercept, True, 0.0, None),
        BinaryMetric("calibration_slope", calibration_slope, True, 1.0, None),
        BinaryMetric("excess_ece", excess_ece, False, 0.0, None),
    )
}


def binary_metric(name: str) -> BinaryMetric:
    """Return the metric of that name.

    Raises:
        ValueError: If there is none; lists those there are.
    """
    if name not in BINARY_METRICS:
        raise ValueError(f"no metric {name!r}; there are: {', '.join(BINARY_METRICS)}")
    return BINARY_METRICS[name]
