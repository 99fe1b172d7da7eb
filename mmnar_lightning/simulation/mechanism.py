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
    """P(δ_m = 1 | ·) = σ(c_m + shift + γ·s_m), with c_m set so that without shift a share is observed whatever γ is.

    The score s_m has mean 0 and variance 1 over patients. It is nothing (``mcar``), a projection of the modality that
    is observed for everyone (``mar``: ignorable given what was seen), or a projection of the latent health u (``mnar``:
    not ignorable). Changing the mechanism of a model leaves its patients, their values and their outcomes as they are,
    so that a policy shift is two draws of one model.

    Args:
        kind: ``mcar``, ``mar`` or ``mnar``.
        strength: γ ≥ 0, log odds per standard deviation of the score. At 0 all three kinds are ``mcar``.
        shift: Log odds added to every c_m: a place that orders more, or less, than the rates say, for the same reasons.

    Raises:
        ValueError: If the kind is unknown, the strength is negative or not finite, or the shift is not finite.
    """

    kind: MechanismKind = "mnar"
    strength: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(MechanismKind):
            raise ValueError(f"mechanism {self.kind!r} is not one of {', '.join(get_args(MechanismKind))}")
        if not (np.isfinite(self.strength) and self.strength >= 0.0):
            raise ValueError(f"strength {self.strength} must be a finite number that is not negative")
        if not np.isfinite(self.shift):
            raise ValueError(f"shift {self.shift} must be a finite number")
