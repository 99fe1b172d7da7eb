"""AUROC inside availability patterns, shrunken, so that the worst of them is not the noisiest."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.metrics import auroc
from mmnar_lightning.metrics.outcomes import WORST_MINIMUM

Array = NDArray[np.float64]
TAU_SD = 0.1
"""Scale of the half-normal prior of τ, the sd of AUROC over patterns: from a few patterns data can say anything."""


@dataclass(frozen=True)
class PatternAuroc:
    """AUROC inside one pattern.

    Args:
        pattern: Pattern id.
        raw: As it is.
        shrunken: Posterior mean given all patterns.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
    """

    pattern: int
    raw: float
    shrunken: float
    low: float
    high: float


def pattern_aurocs(
    probabilities: ArrayLike, targets: ArrayLike, pattern: ArrayLike, patient: ArrayLike
) -> list[PatternAuroc]:
    r"""Estimate AUROC inside each pattern that ≥ 10 people have with an event and ≥ 10 without, shrunken; lowest first.

    A_p ~ N(θ_p, v_p), θ_p ~ N(μ, τ²), μ flat, τ half-normal with sd 0.1, integrated over a grid (Gelman et al.,
    *Bayesian Data Analysis*, 3rd ed., section 5.4). v_p is the variance of the Mann–Whitney statistic of Hanley and
    McNeil (*The meaning and use of the area under a ROC curve*, Radiology 1982) at the mean AUROC over patterns, with
    people for rows: at its own AUROC, a pattern that has 1 by chance would have no variance and not be shrunk.

    The minimum of raw AUROCs reads low, more so with more and smaller patterns; the lowest shrunken one does not, as
    far as θ is normal over patterns. Intervals cover on average over patterns, not for each of them.

    Args:
        probabilities: [n] of rows with a known label.
        targets: [n] in {0, 1}.
        pattern: int64 [n].
        patient: [n] ids of any type.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    ids, place = np.unique(np.asarray(pattern), return_inverse=True)
    person = np.unique(np.asarray(patient), return_inverse=True)[1]
    kept, areas, sizes = [], [], []
    for i, identity in enumerate(ids.tolist()):
        own = place == i
        people = [len(np.unique(person[own & (y == label)])) for label in (1, 0)]
        if min(people) < WORST_MINIMUM:
            continue
        kept.append(identity)
        areas.append(float(auroc(p[own], y[own])[0]))
        sizes.append(people)
    if not kept:
        return []
    area, (events_of, others_of) = np.asarray(areas), np.asarray(sizes, np.float64).T
    variance = _variance(area, events_of, others_of)
    mean, sd = _posterior(area, variance)
    reach = NormalDist().inv_cdf(0.975) * sd
    rows = zip(kept, area, mean, np.maximum(mean - reach, 0.0), np.minimum(mean + reach, 1.0), strict=True)
    found = [PatternAuroc(identity, *(float(v) for v in values)) for identity, *values in rows]
    return sorted(found, key=lambda row: (row.shrunken, row.pattern))


def _variance(area: Array, events: Array, others: Array) -> Array:
    """Hanley and McNeil's variance at the mean AUROC over patterns, weighted by pairs: [P]."""
    pairs = events * others
    # an AUROC of all but 1 would make every variance 0
    a = float(np.clip((area * pairs).sum() / pairs.sum(), 0.02, 0.98))
    first, second = a / (2 - a), 2 * a**2 / (1 + a)
    variance: Array = (a * (1 - a) + (events - 1) * (first - a**2) + (others - 1) * (second - a**2)) / pairs
    return variance


def _posterior(area: Array, variance: Array) -> tuple[Array, Array]:
    """Posterior mean and sd of each θ_p, [P] each, over τ on a grid."""
    tau = np.linspace(0.0, 5 * TAU_SD, 501)[:, None]
    total = variance + tau**2
    precision = (1 / total).sum(1, keepdims=True)
    centre = (area / total).sum(1, keepdims=True) / precision
    fit = -(np.log(total) + (area - centre) ** 2 / total).sum(1) / 2 - np.log(precision[:, 0]) / 2
    log_weight = fit - tau[:, 0] ** 2 / (2 * TAU_SD**2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    own = tau**2 / total  # share of the pattern's own AUROC
    means = own * area + (1 - own) * centre
    variances = own * variance + (1 - own) ** 2 / precision
    mean = weight @ means
    sd = np.sqrt(weight @ (variances + (means - mean) ** 2))
    return mean, sd
