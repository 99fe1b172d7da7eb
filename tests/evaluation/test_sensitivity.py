"""Bounds under the marginal sensitivity model: they hold the truth where the mechanism keeps to Γ, and are sharp."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.optimize import linprog

from mmnar_lightning.evaluation.assignment import fit_assignment
from mmnar_lightning.evaluation.sensitivity import Bounds, gamma_bounds, tipping_point
from mmnar_lightning.simulation import CausalModel, Mechanism, Outcome, View, realised_gamma

MODEL = CausalModel(
    (
        View("known", 1, 1.0, 1.0, loadings=(1.0,)),
        View("value", 1, 0.4, 0.5, loadings=(1.0,), direction=(1.0,)),
    ),
    (Outcome("death"),),
    Mechanism("mnar", 1.4, bound=0.7),
    latent=1,
    seed=2,
    chunk_size=600,
)
"""u moves what is looked for and who has it; its odds ratios are bounded."""
TRUTH = 0.2 + 0.5 * float(MODEL.mean("value", np.zeros((1, 1)))[0, 0])


def drawn(number: int, n: int = 600) -> tuple[np.ndarray, ...]:
    """D, δ and w of n patients; nothing of them is in another number's draw of as many."""
    draw = replace(MODEL, chunk_size=n).chunk(number)
    return 0.2 + 0.5 * draw.values["value"][:, 0], draw.available[:, 1], draw.values["known"]


@cache
def realised() -> float:
    """Γ that the mechanism realises for w, among patients that no test draws; below the limit that holds for any w."""
    gamma = float(realised_gamma(MODEL, replace(MODEL, chunk_size=20_000).chunk(1000), ["known"])[1])
    assert np.exp(0.7) < gamma < MODEL.mechanism.gamma
    return gamma


def shares(replicates: int, gammas: list[float]) -> np.ndarray:
    """Share of intervals that hold the truth, by Γ."""
    hits = []
    for seed in range(replicates):
        d, delta, w = drawn(seed)
        pi = fit_assignment(w, delta[:, None], np.arange(len(d)), ["m"]).probability[:, 0]
        found = gamma_bounds(d, delta, pi, w, np.arange(len(d)), gammas)
        hits.append([b.interval_low <= TRUTH <= b.interval_high for b in found])
    share: np.ndarray = np.mean(hits, axis=0)
    return share


def bounds_hold_the_truth(replicates: int) -> None:
    slack = 3 * (0.95 * 0.05 / replicates) ** 0.5
    ignorable, full = shares(replicates, [1.0, realised()])
    assert full > 0.95 - slack
    # intervals for a Γ that the mechanism does not keep to miss it most of the time, where 0.95 is promised
    assert ignorable < 0.5


def test_bounds_at_the_realised_gamma_hold_the_truth() -> None:
    bounds_hold_the_truth(100)


@pytest.mark.slow
def test_bounds_hold_the_truth_over_many_replicates() -> None:
    bounds_hold_the_truth(1000)


def test_population_bounds_hold_the_truth_without_any_margin() -> None:
    """Estimates of the ends themselves, at n = 60,000, on either side of the truth; not so at Γ = 1."""
    d, delta, w = drawn(0, 60_000)
    # u given w is N(w/2, 1/2)
    nodes, mass = np.polynomial.hermite_e.hermegauss(61)
    u = 0.5 * w + 0.5**0.5 * nodes
    pi = MODEL.propensity(u.reshape(-1, 1), {})[:, 1].reshape(u.shape) @ mass / mass.sum()
    none, full = gamma_bounds(d, delta, pi, w, np.arange(len(d)), [1.0, realised()])
    assert full.low < TRUTH < full.high
    assert none.low > TRUTH + 0.02
    assert none.high == none.low


def sharp(d: np.ndarray, stratum: np.ndarray, delta: np.ndarray, gamma: float) -> tuple[float, float]:
    """Bounds by linear programming: in each stratum, weights in [1/Γ, Γ] of mean 1 stand for those not observed."""
    ends = []
    for sign in (1.0, -1.0):
        total = 0.0
        for s in np.unique(stratum):
            own = d[(stratum == s) & delta]
            best = linprog(sign * own, A_eq=np.ones((1, len(own))), b_eq=[len(own)], bounds=(1 / gamma, gamma))
            missing = int(((stratum == s) & ~delta).sum())
            total += own.sum() + missing * sign * best.fun / len(own)
        ends.append(total / len(d))
    return ends[0], ends[1]


@pytest.mark.parametrize("gamma", [1.0, 1.5, 3.0])
def test_bounds_are_sharp(gamma: float) -> None:
    """With two strata and equal residuals in both, the regressions are right and the bounds the tightest there are."""
    g = np.random.default_rng(0)
    stratum = g.random(6000) < 0.5
    d = 0.5 * stratum + g.normal(size=6000)
    pi = np.where(stratum, 0.7, 0.4)
    delta = g.random(6000) < pi
    share = np.where(stratum, delta[stratum].mean(), delta[~stratum].mean())
    (found,) = gamma_bounds(d, delta, share, stratum[:, None].astype(float), np.arange(6000), [gamma])
    low, high = sharp(d, stratum, delta, gamma)
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)


def test_a_wrong_quantile_widens_and_never_narrows() -> None:
    """Spread that differs between strata makes the quantile wrong; the bounds then hold the sharp ones."""
    g = np.random.default_rng(1)
    stratum = g.random(20_000) < 0.5
    d = np.where(stratum, 3.0, 0.3) * g.normal(size=20_000)
    delta = g.random(20_000) < 0.5
    share = np.where(stratum, delta[stratum].mean(), delta[~stratum].mean())
    (found,) = gamma_bounds(d, delta, share, stratum[:, None].astype(float), np.arange(20_000), [2.0])
    low, high = sharp(d, stratum, delta, 2.0)
    assert found.low < low + 0.005
    assert found.high > high - 0.005
    assert found.high - found.low < 1.3 * (high - low)


def test_turning_the_sign_turns_the_bounds() -> None:
    d, delta, w = drawn(5)
    pi, patient = np.full(len(d), 0.5), np.arange(len(d))
    (one,), (other,) = (gamma_bounds(x, delta, pi, w, patient, [2.0]) for x in (d, -d))
    assert (one.low, one.interval_low) == pytest.approx((-other.high, -other.interval_high))


def test_nothing_is_taken_from_those_who_lack_it() -> None:
    d, delta, w = drawn(6)
    pi, patient = np.full(len(d), 0.5), np.arange(len(d))
    blind = np.where(delta, d, np.nan)
    assert gamma_bounds(d, delta, pi, w, patient, [1.0, 2.0]) == gamma_bounds(blind, delta, pi, w, patient, [1.0, 2.0])


def test_tipping_point_is_the_first_interval_with_zero() -> None:
    ends = [(1.0, 0.1, 0.4), (1.5, 0.02, 0.5), (2.0, -0.1, 0.6), (3.0, -0.2, 0.7)]
    bounds = [Bounds(g, low, high, low, high) for g, low, high in ends]
    assert tipping_point(bounds) == 2.0
    assert tipping_point(bounds[:2]) is None
    assert tipping_point(bounds[2:]) == 2.0


@pytest.mark.parametrize(("gamma", "pi"), [(0.9, 0.5), (1.5, 0.0), (1.5, np.nan)])
def test_refuses_what_makes_no_sense(gamma: float, pi: float) -> None:
    with pytest.raises(ValueError, match="at least 1, π in"):
        gamma_bounds([1.0, 2.0], [True, True], [pi, 0.5], [[0.0], [1.0]], [0, 1], [gamma])
