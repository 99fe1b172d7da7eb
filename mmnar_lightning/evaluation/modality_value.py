"""What a modality is worth: by how much the loss of a model falls where it is recorded, under stated assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from mmnar_lightning.evaluation.assignment import CLIP
from mmnar_lightning.evaluation.bootstrap import Interval, patient_weights
from mmnar_lightning.evaluation.overlap import Overlap, OverlapThresholds, describe_overlap, finite, shown
from mmnar_lightning.evaluation.sensitivity import Bounds, clustered_error, gamma_bounds, tipping_point
from mmnar_lightning.metrics import binary_metric
from mmnar_lightning.metrics.binary import PROBABILITY_FLOOR

Array = NDArray[np.float64]
Loss = Literal["brier", "log_loss"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
GAMMAS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
HIGHEST_GAMMA = 20.0
ASSUMPTION = (
    "under ignorability: given what everyone has before the order, who got the modality does not depend on what it "
    "would have changed, and recording it changes no outcome"
)


def sample_losses(loss: Loss, probabilities: ArrayLike, targets: ArrayLike) -> Array:
    """Return the loss of each sample: (p − y)², or −log of the probability of what happened, in nats. [n].

    Raises:
        ValueError: If there is no such loss.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if loss == "brier":
        return (p - y) ** 2
    if loss == "log_loss":
        p = np.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        return np.asarray(-(y * np.log(p) + (1 - y) * np.log1p(-p)))
    raise ValueError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")


@dataclass(frozen=True)
class ModalityValue:
    """E[loss without m − loss with m]; positive where the modality helps.

    Args:
        estimate: AIPW estimate over all collectable samples.
        low: Lower end of its interval.
        high: Upper end.
        level: Nominal coverage.
        recorded: The mean difference among those who have the modality, with its interval (low, high). It needs no
            assumption, but it is about them alone.
        sweep: What remains where ignorability fails by a factor Γ.
        tipping: Smallest Γ at which the interval holds 0; None if that is above 20.
        overlap: Of the modality, over the same samples.
        samples: Collectable samples.
        patients: Whose they are.
        assumption: What the estimate rests on.
    """

    estimate: float
    low: float
    high: float
    level: float
    recorded: tuple[float, float, float]
    sweep: tuple[Bounds, ...]
    tipping: float | None
    overlap: Overlap
    samples: int
    patients: int
    assumption: str = ASSUMPTION

    def __str__(self) -> str:
        tipping = f"above {HIGHEST_GAMMA:g}" if self.tipping is None else f"{self.tipping:.2f}"
        spread = "; ".join(f"Γ = {b.gamma:g}: [{b.interval_low:.4f}, {b.interval_high:.4f}]" for b in self.sweep)
        return (
            f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}] under ignorability; {spread}; "
            f"holds 0 from Γ = {tipping}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the estimate never without its assumption, its sweep and its tipping point."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "assumption": self.assumption,
            "sweep": [asdict(b) for b in self.sweep],
            "tipping_gamma": self.tipping,
            "among_recorded": dict(zip(("estimate", "low", "high"), map(finite, self.recorded), strict=True)),
            "samples": shown(self.samples),
            "patients": shown(self.patients),
        }


def modality_value(
    loss_without: ArrayLike,
    loss_with: ArrayLike,
    observed: ArrayLike,
    probability: ArrayLike,
    known: ArrayLike,
    patient: ArrayLike,
    *,
    modality: str = "modality",
    clip: tuple[float, float] = CLIP,
    gammas: Sequence[float] = GAMMAS,
    thresholds: OverlapThresholds | None = None,
    folds: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> ModalityValue:
    """Estimate θ = E[D], D = loss without m − loss with m, over the samples for which m could have been recorded.

    Where δ_m = 1 both losses are known: the second with all that was recorded, the first with m hidden from the same
    model. Where δ_m = 0 the loss with m isn't known, and θ rests on ignorability: D ⊥ δ_m | w, with w known for
    everyone before the order. θ is estimated by cross-fitted AIPW, the mean of μ(w) + δ_m (D − μ(w))/π_m(w), with μ a
    ridge regression of D among those who have m on the other patients. It is consistent where π_m or μ is, and its
    interval, from the influence function summed by patient, needs both to converge. Ignorability can't be tested:
    `gamma_bounds` says what is left without it.

    What it is not: the value of *ordering* the modality (that changes treatment), nor of another model's use of it.

    Args:
        loss_without: float [n].
        loss_with: float [n]; not looked at where not observed.
        observed: bool [n], δ_m.
        probability: float [n], cross-fitted π_m *before* clipping; NaN leaves out samples that were not collectable.
        known: float [n, P], w.
        patient: [n] ids.
        modality: Name of m, for messages.
        clip: Lowest and highest π that is used.
        gammas: Γ of the sweep, each ≥ 1, at least one above.
        thresholds: When the estimate is refused.
        folds: Number of folds.
        level: Nominal coverage.
        seed: Key of the folds.

    Raises:
        OverlapError: If overlap fails; says how.
        ValueError: If shapes disagree or a loss that is needed is not finite.

    Source: Robins, Rotnitzky, Zhao, JASA 1994 (AIPW); Chernozhukov et al., *Double/debiased machine learning*, The
    Econometrics Journal 2018 (cross-fitting).
    """
    if not any(gamma > 1 for gamma in gammas):
        raise ValueError("gammas: the sweep needs a Γ above 1; a value is never told without one")
    raw, delta = np.asarray(probability, dtype=np.float64), np.asarray(observed, dtype=bool)
    overlap = describe_overlap(raw, delta, clip, thresholds or OverlapThresholds(), modality)
    overlap.require()
    rows = np.isfinite(raw)
    delta, person = delta[rows], np.asarray(patient)[rows]
    gap = np.asarray(loss_without, dtype=np.float64)[rows] - np.asarray(loss_with, dtype=np.float64)[rows]
    d, w = np.where(delta, gap, 0.0), np.asarray(known, dtype=np.float64)[rows]
    grid = sorted({1.0, *gammas, *np.geomspace(1.0, HIGHEST_GAMMA, 91)})
    how: dict[str, Any] = {"folds": folds, "level": level, "seed": seed}
    bounds = gamma_bounds(d, delta, np.clip(raw[rows], *clip), w, person, grid, **how)
    return ModalityValue(
        bounds[0].low,
        bounds[0].interval_low,
        bounds[0].interval_high,
        level,
        _recorded(d[delta], person[delta], level),
        tuple(b for b in bounds if b.gamma in gammas),
        tipping_point(bounds),
        overlap,
        len(d),
        len(np.unique(person)),
    )


def _recorded(d: Array, patient: NDArray[Any], level: float) -> tuple[float, float, float]:
    mean, reach = float(d.mean()), float(norm.ppf((1 + level) / 2) * clustered_error(d, patient))
    return mean, mean - reach, mean + reach


def reweighted_auroc_gain(
    without: ArrayLike,
    having: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike,
    probability: ArrayLike,
    patient: ArrayLike,
    *,
    clip: tuple[float, float] = CLIP,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUROC with m − AUROC without m among those who have it, weighted by 1/π_m to all collectable samples.

    Under ignorability, as `modality_value`. AUROC is no mean over samples, so that it is re-weighted only, and no
    regression makes up for a wrong π. Patients are resampled with the weights held as they are.

    Args:
        without: float [n], probabilities with m hidden.
        having: float [n], probabilities with all that was recorded.
        targets: float [n] in {0, 1}.
        observed: bool [n], δ_m.
        probability: float [n], π_m before clipping; NaN where the sample was not collectable.
        patient: [n] ids.
        clip: Lowest and highest π that is used.
        draws: Bootstrap draws.
        level: Nominal coverage.
        seed: Of the draws.
    """
    pi = np.asarray(probability, dtype=np.float64)
    rows = np.asarray(observed, dtype=bool) & np.isfinite(pi)
    weight = 1.0 / np.clip(pi[rows], *clip)
    y = np.asarray(targets, dtype=np.float64)[rows]
    first, second = (np.asarray(p, dtype=np.float64)[rows] for p in (having, without))
    auroc = binary_metric("auroc").of
    member = np.unique(np.asarray(patient).astype(str)[rows], return_inverse=True)[1]
    found: list[Array] = []
    for counts in patient_weights(member.astype(np.int64), draws, np.random.default_rng(seed)):
        found.append(auroc(first, y, counts * weight) - auroc(second, y, counts * weight))
    drawn = np.concatenate(found)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.nan, np.nan
    if 2 * len(drawn) >= draws:
        low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    estimate = float((auroc(first, y, weight[None]) - auroc(second, y, weight[None]))[0])
    return Interval(estimate, low, high, level, len(drawn), int(member.max(initial=-1)) + 1, len(y))
