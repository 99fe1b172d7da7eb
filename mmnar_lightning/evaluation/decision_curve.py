"""What acting on a prediction is worth, by the risk from which one would act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.metrics.outcomes import FEWEST


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold. That of treating nobody is 0.

    Args:
        threshold: Risks from which one would act, ascending.
        treat_all: Net benefit of acting on everyone.
        net_benefit: Net benefit of acting on those predicted to be at or above the threshold.
    """

    threshold: list[float]
    treat_all: list[float]
    net_benefit: list[float]


def decision_curve(
    probabilities: ArrayLike, targets: ArrayLike, *, thresholds: Sequence[float] | None = None
) -> DecisionCurve:
    r"""Compute NB(t) = TP(t)/n − FP(t)/n · t/(1 − t), in true positives a sample.

    Whoever acts from a risk of t on holds a missed event to be (1 − t)/t times as bad as an action without need. The
    curve supposes that probabilities are calibrated: a shift of all of them moves it.

    Source: Vickers, Elkin, *Decision curve analysis: a novel method for evaluating prediction models*, Medical
    Decision Making 2006.

    Args:
        probabilities: [n] of rows with a known label.
        targets: [n] in {0, 1}.
        thresholds: Each in (0, 1); None takes 0.01 to 0.99 in steps of 0.01.

    Returns:
        The curve; without points where there is no row.

    Raises:
        ValueError: If lengths disagree or a threshold is not in (0, 1).
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"probabilities have shape {p.shape}, targets {y.shape}; both must be [n]")
    t = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, np.float64)
    if not ((t > 0) & (t < 1)).all():
        raise ValueError("thresholds must be in (0, 1)")
    n = len(y)
    if not n:
        return DecisionCurve([], [], [])
    order = np.argsort(p, kind="stable")
    below = np.searchsorted(p[order], t, side="left")
    events = np.append(0.0, np.cumsum(y[order]))
    tp = events[-1] - events[below]
    fp = n - below - tp
    odds = t / (1 - t)
    rate = events[-1] / n
    return DecisionCurve(t.tolist(), (rate - (1 - rate) * odds).tolist(), (tp / n - fp / n * odds).tolist())


def told_thresholds(probabilities: Sequence[ArrayLike], targets: ArrayLike, patient: ArrayLike) -> list[float]:
    """Thresholds to show: 0.01, 0.02 … as long as ≥ 10 people are at or above them, whichever the probabilities.

    They end at 3 times the share of events (at least at 0.2): beyond, acting on everyone does so much harm that the
    rest of the figure would be flat.

    Args:
        probabilities: [n] of each version.
        targets: [n] in {0, 1}.
        patient: [n] ids of any type.
    """
    y, person = np.asarray(targets, np.float64), np.unique(np.asarray(patient), return_inverse=True)[1]
    if not len(y):
        return []
    highest = np.inf
    for version in probabilities:
        most: NDArray[np.float64] = np.full(int(person.max()) + 1, -np.inf)
        np.maximum.at(most, person, np.asarray(version, np.float64))
        highest = min(highest, float(np.sort(most)[-FEWEST]) if len(most) >= FEWEST else -np.inf)
    limit = min(highest, max(0.2, 3 * float(y.mean())))
    return [t for t in (np.arange(1, 100) / 100).tolist() if t <= limit]
