"""Overlap: whether those who lack a modality have anybody who has it and is like them. Without it nothing is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.assignment import Assignment
from mmnar_lightning.metrics import binary_metric

LEAST_SHOWN = 10
"""Smaller counts of people are not shown."""


class OverlapError(ValueError):
    """The samples can't carry the estimate: too few are like those it would be about."""


@dataclass(frozen=True)
class OverlapThresholds:
    """When an estimate is refused.

    Args:
        ess: Least effective sample size.
        ess_share: Least share of it in the observed samples.
        clipped: Highest share of eligible samples whose π lies outside the bounds.
    """

    ess: float = 50.0
    ess_share: float = 0.2
    clipped: float = 0.05


@dataclass(frozen=True)
class Overlap:
    """Overlap of one modality.

    Args:
        modality: Its name.
        eligible: Samples for which it could have been recorded.
        observed: Those of them that have it.
        ess: (Σ w)² / Σ w² of the weights w = 1 / π of those that have it.
        clipped: Share of eligible samples whose π was clipped.
        lowest: Smallest π before clipping.
        highest: Largest π before clipping.
        auroc: Of π for who has the modality: 0.5 where ordering can't be foreseen, near 1 where overlap is poor.
        reason: Why estimates about this modality are refused; empty where they are not.
    """

    modality: str
    eligible: int
    observed: int
    ess: float
    clipped: float
    lowest: float
    highest: float
    auroc: float
    reason: str

    def require(self) -> None:
        """Refuse to go on without overlap.

        Raises:
            OverlapError: With the reason.
        """
        if self.reason:
            raise OverlapError(f"{self.modality}: {self.reason}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; counts below 10 are not told, nor what they could be worked out from."""
        lacking = self.eligible - self.observed
        told: int | str = shown(self.observed)
        if 0 < lacking < LEAST_SHOWN:
            # else the difference would tell
            told = f"> {max(self.eligible - LEAST_SHOWN, 0)}"
        few = _few(self.observed, lacking)
        return {
            "modality": self.modality,
            "eligible": shown(self.eligible),
            "observed": told,
            "lacking": shown(lacking) if isinstance(told, int) or lacking < LEAST_SHOWN else "suppressed",
            "ess": None if few else finite(self.ess),
            "clipped_share": finite(self.clipped),
            "lowest": None if few else finite(self.lowest),
            "highest": None if few else finite(self.highest),
            "auroc": None if few else finite(self.auroc),
            "refused": self.reason or None,
        }


def overlap_report(
    assignment: Assignment, observed: ArrayLike, thresholds: OverlapThresholds | None = None
) -> tuple[Overlap, ...]:
    """Describe the overlap of each modality; refuse nothing yet.

    Args:
        assignment: Probabilities of n samples.
        observed: bool [n, M], δ.
        thresholds: When an estimate is refused.
    """
    delta, least = np.asarray(observed, dtype=bool), thresholds or OverlapThresholds()
    return tuple(
        describe_overlap(assignment.raw[:, m], delta[:, m], assignment.clip, least, name)
        for m, name in enumerate(assignment.names)
    )


def describe_overlap(
    raw: NDArray[np.float64],
    observed: NDArray[np.bool_],
    clip: tuple[float, float],
    thresholds: OverlapThresholds,
    name: str = "modality",
) -> Overlap:
    """Describe the overlap of one modality.

    Args:
        raw: float64 [n], π before clipping, NaN where not eligible.
        observed: bool [n], δ.
        clip: Lowest and highest π that is used.
        thresholds: When an estimate is refused.
        name: Name of the modality.
    """
    rows = np.isfinite(raw)
    pi, delta = raw[rows], observed[rows]
    n, having = len(pi), int(delta.sum())
    if not having:
        return Overlap(name, n, 0, 0.0, np.nan, np.nan, np.nan, np.nan, "nobody who could have it has it")
    weights = 1.0 / np.clip(pi[delta], *clip)
    ess = effective_size(weights)
    clipped = float(((pi < clip[0]) | (pi > clip[1])).mean())
    area = float(binary_metric("auroc").of(pi, delta.astype(np.float64), None)[0])
    reason = ""
    if ess < thresholds.ess:
        told = "" if _few(having, n - having) else f" {ess:.0f}"
        reason = f"the effective sample size{told} is below {thresholds.ess:.0f}"
    elif ess / having < thresholds.ess_share:
        reason = (
            f"the effective sample size is {ess / having:.2f} of the observed samples, below {thresholds.ess_share}"
        )
    elif clipped > thresholds.clipped:
        reason = (
            f"{clipped:.0%} of the probabilities are outside {clip[0]} to {clip[1]}, more than {thresholds.clipped}"
        )
    return Overlap(name, n, having, ess, clipped, float(pi.min()), float(pi.max()), area, reason)


def effective_size(weights: ArrayLike) -> float:
    """Kish's effective sample size (Σ w)² / Σ w²: how many equally weighted samples say as much. 0 without weight."""
    w = np.asarray(weights, dtype=np.float64)
    squares = float(w @ w)
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def shown(count: int) -> int | str:
    """Return the count, or words where it is so small that it could point at people."""
    return count if count == 0 or count >= LEAST_SHOWN else f"< {LEAST_SHOWN}"


def _few(*counts: int) -> bool:
    """Whether a count is one that is not shown."""
    return any(0 < count < LEAST_SHOWN for count in counts)


def finite(value: float) -> float | None:
    """Return the value, or None (null in JSON) where there is none."""
    return float(value) if np.isfinite(value) else None
