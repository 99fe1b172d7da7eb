"""How availability comes about: completely at random, at random, or not at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

MechanismKind = Literal["mcar", "mar", "mnar"]
Floats = NDArray[np.float64]


def sigmoid(logit: Floats) -> Floats:
    """Logistic function 1 / (1 + exp(−logit)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit))


def intercept(score: Floats, rate: float, tolerance: float = 1e-10) -> float:
    """Find c such that the mean of sigmoid(c + score) is the wanted rate, by bisection.

    Args:
        score: A sample of the linear score, [n].
        rate: Wanted mean, strictly between 0 and 1.
        tolerance: Width of the last bracket.

    Raises:
        ValueError: If the rate is not strictly between 0 and 1.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate {rate} must lie strictly between 0 and 1")
    reach = float(np.abs(score).max(initial=0.0)) + 40.0
    low, high = -reach, reach
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        if sigmoid(middle + score).mean() < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@dataclass(frozen=True)
class Mechanism:
    """P(δ_m = 1 | ·) = σ(c_m + shift + ℓ(s_m)), with c_m set so that without shift a share is observed whatever ℓ is.

    ℓ(s) = γ·s, or with a bound b the same pressed into (−b, b): ℓ(s) = b·tanh(γ·s/b), of slope γ at 0.

    The score s_m has mean 0 and variance 1 over patients. It is nothing (``mcar``), a projection of the modality that
    is observed for everyone (``mar``: ignorable given what was seen), or a projection of the latent health u (``mnar``:
    not ignorable). Changing the mechanism of a model leaves its patients, their values and their outcomes as they are,
    so that a policy shift is two draws of one model.

    Args:
        kind: ``mcar``, ``mar`` or ``mnar``.
        strength: γ ≥ 0, log odds per standard deviation of the score. At 0 all three kinds are ``mcar``.
        shift: Log odds added to every c_m: a place that orders more, or less, than the rates say, for the same reasons.
        bound: b > 0, the largest |ℓ| in log odds; None leaves ℓ unbounded. With Gaussian u and no bound no Γ of the
            marginal sensitivity model holds, since odds ratios have no limit; with one, `gamma` does.

    Raises:
        ValueError: If the kind is unknown, the strength is negative or not finite, the shift is not finite, or the
            bound is not a finite number above 0.
    """

    kind: MechanismKind = "mnar"
    strength: float = 1.0
    shift: float = 0.0
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(MechanismKind):
            raise ValueError(f"mechanism {self.kind!r} is not one of {', '.join(get_args(MechanismKind))}")
        if not (np.isfinite(self.strength) and self.strength >= 0.0):
            raise ValueError(f"strength {self.strength} must be a finite number that is not negative")
        if not np.isfinite(self.shift):
            raise ValueError(f"shift {self.shift} must be a finite number")
        if self.bound is not None and not (np.isfinite(self.bound) and self.bound > 0.0):
            raise ValueError(f"bound {self.bound} must be a finite number above 0, or none")

    def log_odds(self, score: Floats) -> Floats:
        """ℓ(s) of scores of any shape."""
        linear: Floats = self.strength * score
        return linear if self.bound is None else self.bound * np.tanh(linear / self.bound)

    @property
    def gamma(self) -> float:
        """Least Γ of the marginal sensitivity model that is sure to hold, whatever w is: e^{2b}, infinite unbounded.

        The odds of P(δ_m = 1 | u) and of P(δ_m = 1 | w), for a w on which δ_m depends through u alone, lie both between
        e^{−b} and e^b times those of c_m + shift, so that they differ by a factor of e^{2b} at most. What is realised
        for a certain w is less; `realised_gamma` tells it. Under ``mcar`` and, given the view that decides, ``mar``
        nothing is hidden: 1.
        """
        if self.kind != "mnar" or self.strength == 0.0:
            return 1.0
        return float("inf") if self.bound is None else float(np.exp(2.0 * self.bound))
