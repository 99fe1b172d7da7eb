"""AUROC of a score among people of the same risk: what availability adds to what is known of everyone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.bootstrap import Interval
from mmnar_lightning.evaluation.intervals import Statistic, bootstrap_statistics, row_cells
from mmnar_lightning.metrics import auroc

Array = NDArray[np.float64]
MOST_STRATA = 50
EVENTS_A_STRATUM = 10
FEWEST_STRATA = 5
"""With fewer, most of the confounding is left in the strata: from 30 events a third of it, from 60 a tenth."""


def risk_strata(risk: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Cut risk into strata with equally many events: int64 [n], 0 … S − 1.

    S = events / 10, at least 1 and at most 50. Within a stratum people still differ in risk, and what is left of the
    confounding falls with S² (deciles leave a few per cent of it), so as many are made as events allow.

    Args:
        risk: [n] finite risks, on any scale.
        targets: [n] in {0, 1}.
    """
    z, y = np.asarray(risk, np.float64), np.asarray(targets, np.float64)
    strata = int(np.clip(y.sum() // EVENTS_A_STRATUM, 1, MOST_STRATA))
    edges = np.unique(np.quantile(z[y == 1], np.linspace(0, 1, strata + 1)[1:-1])) if strata > 1 else np.zeros(0)
    return np.searchsorted(edges, z, side="right").astype(np.int64)


def adjustable(targets: ArrayLike) -> bool:
    """Whether there are events enough, 50, for strata that leave little of the confounding."""
    return bool(np.asarray(targets, np.float64).sum() >= FEWEST_STRATA * EVENTS_A_STRATUM)


def adjusted_auroc(score: ArrayLike, targets: ArrayLike, strata: ArrayLike) -> Statistic:
    r"""Make the covariate-adjusted AUROC of a score, a function of weights [D, n].

    AAUC = P(S_event > S_other | Z_event = Z_other) + ½ P(equal): the AUROC among pairs of the same risk Z, averaged
    over the risks of the events. Estimated by Σ_s W⁺_s·AUROC_s / Σ_s W⁺_s, with AUROC_s inside stratum s of Z and W⁺_s
    the weight of its events. Strata without an event or a non-event are left out of both sums. ½ says that the score
    tells nothing beyond Z, whatever its AUROC without adjustment.

    Source: Janes, Pepe, *Adjusting for covariate effects on classification accuracy using the covariate-adjusted
    receiver operating characteristic curve*, Biometrika 2009 (the discrete-covariate estimator).

    Args:
        score: [n] finite.
        targets: [n] in {0, 1}.
        strata: int [n].
    """
    rank = np.unique(np.asarray(score, np.float64), return_inverse=True)[1]
    (stratum, ranks, y), add = row_cells(np.asarray(strata), rank, np.asarray(targets, np.float64))
    parts = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]

    def statistic(weights: Array) -> Array:
        summed = add(weights)
        top, bottom = np.zeros(len(summed)), np.zeros(len(summed))
        for part in parts:
            area, events = auroc(ranks[part], y[part], summed[:, part]), summed[:, part] @ y[part]
            known = np.isfinite(area)
            top[known] += events[known] * area[known]
            bottom[known] += events[known]
        value: Array = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
        return value

    return statistic


def adjusted_auroc_interval(
    score: ArrayLike,
    risk: ArrayLike,
    targets: ArrayLike,
    patient: ArrayLike,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the AUROC of a score adjusted for risk, see `adjusted_auroc`; strata are kept over the draws.

    Args:
        score: [n] finite, such as the risk that availability alone gives.
        risk: [n] finite, such as that of what is known of everyone, from a model that has not seen these people.
        targets: [n] in {0, 1}.
        patient: [n] ids of any type.
        draws: Bootstrap draws.
        level: Nominal coverage in (0, 1).
        seed: Seed.

    Raises:
        ValueError: If there are too few events to adjust, see `adjustable`.
    """
    if not adjustable(targets):
        raise ValueError(f"fewer than {FEWEST_STRATA * EVENTS_A_STRATUM} events: too few strata to adjust for risk")
    statistic = adjusted_auroc(score, targets, risk_strata(risk, targets))
    return bootstrap_statistics({"": statistic}, patient, draws=draws, level=level, seed=seed)[""]
