"""How often the outcome occurs among people of about the same predicted risk."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.metrics.outcomes import FEWEST

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationCurve:
    """Points of a calibration curve, lowest risk first.

    Args:
        predicted: Mean probability in each bin.
        observed: Share of samples with the outcome.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        samples: Samples in the bin, of at least 10 people.
    """

    predicted: list[float]
    observed: list[float]
    low: list[float]
    high: list[float]
    samples: list[int]


def calibration_curve(
    probabilities: ArrayLike, targets: ArrayLike, patient: ArrayLike, *, bins: int = 10
) -> CalibrationCurve:
    r"""Bin probabilities and compare their mean with the share of events.

    Bins have equally many samples, ties share one, and a bin of fewer than 10 people is merged with the next. The
    interval is Wilson's, with the people of a bin for its trials, since samples of one person are dependent:

    (o + z²/2m ± z √(o(1 − o)/m + z²/4m²)) / (1 + z²/m), with o the share of events and m the number of people.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927.

    Args:
        probabilities: [n] of rows with a known label.
        targets: [n] in {0, 1}.
        patient: [n] ids of any type.
        bins: Number of bins to start from.

    Returns:
        The curve, without points where there are fewer than 10 people.

    Raises:
        ValueError: If there is no bin, or lengths disagree.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    person = np.unique(np.asarray(patient), return_inverse=True)[1]
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if not p.shape == y.shape == person.shape or p.ndim != 1:
        raise ValueError(f"probabilities {p.shape}, targets {y.shape} and patient {person.shape} must all be [n]")
    points = []
    for rows in _bins(p, person, bins):
        m, o = len(np.unique(person[rows])), float(y[rows].mean())
        points.append((float(p[rows].mean()), o, *wilson(o, m), len(rows)))
    columns = [list(column) for column in zip(*points, strict=True)] or [[], [], [], [], []]
    return CalibrationCurve(*columns)


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of trials."""
    z = NormalDist().inv_cdf(0.975)
    centre, spread = share + z**2 / (2 * trials), (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    # at a share of 0 or 1 the end is that share, but for rounding
    low, high = (centre - z * spread) / scale, (centre + z * spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def _bins(p: Array, person: NDArray[np.int64], bins: int) -> list[NDArray[np.int64]]:
    """Rows of each bin, lowest probabilities first; each has at least 10 people."""
    if not len(p):
        return []
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="right")
    found: list[NDArray[np.int64]] = []
    held = np.zeros(0, dtype=np.int64)
    for b in range(len(edges) + 1):
        held = np.concatenate([held, np.flatnonzero(place == b)])
        if len(np.unique(person[held])) >= FEWEST:
            found.append(held)
            held = np.zeros(0, dtype=np.int64)
    if len(held) and found:
        found[-1] = np.concatenate([found[-1], held])
    return found
