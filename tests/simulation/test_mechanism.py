"""The mechanism with a bound: its log odds keep to it, and so does the Γ that is realised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from mmnar_lightning.simulation import CausalModel, Floats, Mechanism, Outcome, View, bayes_risk, realised_gamma

BOUND = 0.7
VIEWS = (View("known", 1, 1.0, 1.0, direction=(1.0,), loadings=(1.0,)), View("labs", 2, 0.5, 0.4))
OUTCOMES = (Outcome("death", 0.2, 2.0),)


def model(bound: float | None = BOUND, latent: int = 1, shift: float = 0.0) -> CausalModel:
    return CausalModel(VIEWS, OUTCOMES, Mechanism("mnar", 2.0, shift, bound), latent, seed=4)


def test_without_a_bound_nothing_changes_and_with_one_log_odds_keep_to_it() -> None:
    score = np.linspace(-8, 8, 101)
    assert np.array_equal(Mechanism("mnar", 2.0).log_odds(score), 2.0 * score)
    bounded = Mechanism("mnar", 2.0, bound=BOUND).log_odds(score)
    assert np.abs(bounded).max() <= BOUND
    assert np.abs(bounded).max() > BOUND - 1e-6
    assert (np.diff(bounded) >= 0).all()
    # as without it where the score is small
    assert Mechanism("mnar", 2.0, bound=BOUND).log_odds(np.array([1e-4])) == pytest.approx(2e-4)
    assert Mechanism("mnar", 2.0, bound=1e6).log_odds(score) == pytest.approx(2.0 * score)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_propensities_stay_inside_the_bound_and_shares_are_met(shift: float) -> None:
    odds = logit(model(shift=shift).draw(20_000).propensity[:, 1])
    assert np.ptp(odds) <= 2 * BOUND + 1e-9
    assert np.ptp(odds) > 1.9 * BOUND
    # without a bound they don't
    assert np.ptp(logit(model(None).draw(20_000).propensity[:, 1])) > 10
    if not shift:
        assert model().draw(20_000).available[:, 1].mean() == pytest.approx(0.4, abs=0.02)


def test_the_limit_of_gamma_is_told() -> None:
    assert Mechanism("mnar", 2.0, bound=BOUND).gamma == pytest.approx(np.exp(2 * BOUND))
    assert Mechanism("mnar", 2.0).gamma == float("inf")
    assert Mechanism("mnar", 0.0).gamma == Mechanism("mar", 2.0).gamma == Mechanism("mcar").gamma == 1.0


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match=r"bound .* must be a finite number above 0"):
        Mechanism("mnar", 1.0, bound=bound)


def by_hand(m: CausalModel, w: Floats) -> Floats:
    """P(δ = 1 | w) of labs by Gauss–Hermite quadrature over u | w ~ N(w/2, 1/2): one axis, noise 1."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(121)
    at_0, at_1 = m.mean("known", np.array([[0.0], [1.0]]))[:, 0]
    slope = at_1 - at_0
    variance = 1 / (1 + slope**2)
    u = variance * slope * (w - at_0)[:, None] + np.sqrt(variance) * nodes
    chance = m.propensity(u.reshape(-1, 1), {})[:, 1].reshape(u.shape)
    assigned: Floats = chance @ mass / mass.sum()
    return assigned


def test_the_realised_gamma_is_the_largest_ratio_of_odds() -> None:
    m = model()
    draw = m.draw(2000)
    assigned = by_hand(m, draw.values["known"][:, 0])
    expected = np.exp(np.abs(logit(draw.propensity[:, 1]) - logit(assigned)).max())
    known, labs = realised_gamma(m, draw, ["known"])
    assert labs == pytest.approx(expected, rel=1e-5)
    assert known == 1.0
    assert np.exp(0.8 * BOUND) < labs < m.mechanism.gamma
    # the more w tells, the nearer it may come to the limit; what tells nothing leaves it at the odds of the share
    blind = realised_gamma(m, draw, [])[1]
    marginal = logit(m.draw(20_000).propensity[:, 1].mean())
    assert blind == pytest.approx(np.exp(np.abs(logit(draw.propensity[:, 1]) - marginal).max()), rel=0.02)


def test_nothing_is_realised_where_nothing_is_hidden() -> None:
    for kind in ("mcar", "mar"):
        m = replace(model(), mechanism=Mechanism(kind, 2.0))
        assert realised_gamma(m, m.draw(50), ["known"]).tolist() == [1.0, 1.0]


def test_patients_without_w_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\d+ patients lack one of the views known, labs"):
        realised_gamma(model(), model().draw(50), ["known", "labs"])


@pytest.mark.parametrize("latent", [1, 2])
def test_bayes_knows_of_the_bound(latent: int) -> None:
    """Against the definition on a dense grid; who takes the mechanism for unbounded is off."""
    m = model(latent=latent)
    draw = m.draw(30)
    axis = np.arange(-6, 6.01, 0.04)
    grid = np.stack(np.meshgrid(*[axis] * latent, indexing="ij"), -1).reshape(-1, latent)
    log = np.tile(-0.5 * np.square(grid).sum(1), (30, 1))
    for k, view in enumerate(VIEWS):
        gap = draw.values[view.name][:, None] - m.mean(view.name, grid)
        log -= draw.available[:, k, None] * np.square(gap).sum(-1) / (2 * view.noise**2)
    bounded = 2.0 * (grid @ m._parameters["labs"]["mnar"])
    chance = expit(m._availability_intercepts["labs"] + BOUND * np.tanh(bounded / BOUND))
    log += np.log(np.where(draw.available[:, [1]], chance, 1 - chance))
    weight = np.exp(log - log.max(1, keepdims=True))
    expected = weight @ m.risk(grid) / weight.sum(1, keepdims=True)
    assert np.abs(bayes_risk(m, draw, pattern=True) - expected).max() < 1e-4
    free = replace(m, mechanism=Mechanism("mnar", 2.0))
    assert np.abs(bayes_risk(free, draw, pattern=True) - expected).max() > 1e-2
