from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mmnar_lightning.simulation import (
    BayesError,
    CausalModel,
    Draw,
    Floats,
    Mechanism,
    MechanismKind,
    Outcome,
    View,
    bayes_risk,
    sigmoid,
)
from mmnar_lightning.simulation.posterior import LatentPosterior

VIEWS = (View("always", 4, 1.0, 1.0), View("a", 6, 1.0, 0.7), View("b", 5, 1.5, 0.4), View("c", 3, 0.5, 0.5))
OUTCOMES = (Outcome("y", 0.1, 1.8), Outcome("z", 0.4, 1.0))
Form = Literal["linear", "nonlinear"]


def model(kind: MechanismKind = "mnar", latent: int = 3, form: Form = "linear", seed: int = 0) -> CausalModel:
    return CausalModel(VIEWS, OUTCOMES, Mechanism(kind, 1.5), latent, form, seed)


def auc(risk: Floats, draw: Draw) -> Floats:
    return np.array([roc_auc_score(draw.outcomes[:, k], risk[:, k]) for k in range(risk.shape[1])])


def brute(m: CausalModel, draw: Draw, pattern: bool, reach: float = 6.0, step: float = 0.02) -> Floats:
    """The definition, on a dense grid over the prior."""
    axis = np.arange(-reach, reach + step / 2, step)
    grid = np.stack(np.meshgrid(*[axis] * m.latent, indexing="ij"), -1).reshape(-1, m.latent)
    chance, risk = (
        m.propensity(grid, draw.values | {v.name: np.zeros((len(grid), v.width)) for v in m.views}),
        m.risk(grid),
    )
    means = {name: m.mean(name, grid) for name in m.names}
    found = []
    for i in range(len(draw)):
        log = norm.logpdf(grid).sum(1)
        for k, view in enumerate(m.views):
            seen = draw.available[i, k]
            if seen:
                log += norm.logpdf(draw.values[view.name][i], means[view.name], view.noise).sum(1)
            if pattern and view.rate < 1:
                log += np.log(chance[:, k] if seen else 1 - chance[:, k])
        weight = np.exp(log - log.max())
        found.append(weight @ risk / weight.sum())
    return np.array(found)


@pytest.mark.parametrize("latent", [1, 2, 3, 5])
def test_the_linear_model_without_the_pattern_has_a_closed_form(latent: int) -> None:
    m = model(latent=latent)
    draw = m.draw(25)
    at_0, at_1 = np.zeros((1, latent)), np.eye(latent)
    expected = np.zeros((25, 2))
    log_odds = [np.log(m.risk(u)) - np.log1p(-m.risk(u)) for u in (at_0, at_1)]
    intercept, slope = log_odds[0][0], (log_odds[1] - log_odds[0]).T
    for i in range(25):
        seen = [v for k, v in enumerate(VIEWS) if draw.available[i, k]]
        gap = np.concatenate([(draw.values[v.name][i] - m.mean(v.name, at_0)[0]) / v.noise for v in seen])
        weights = np.concatenate([(m.mean(v.name, at_1) - m.mean(v.name, at_0)).T / v.noise for v in seen])
        covariance = np.linalg.inv(np.eye(latent) + weights.T @ weights)
        centre = covariance @ weights.T @ gap
        for k in range(2):
            mu, sd = intercept[k] + slope[k] @ centre, np.sqrt(slope[k] @ covariance @ slope[k])
            expected[i, k] = quad(lambda z: sigmoid(mu + sd * z) * norm.pdf(z), -9, 9, epsabs=1e-11)[0]  # noqa: B023
    if latent <= 3:
        assert np.abs(bayes_risk(m, draw, pattern=False) - expected).max() < 1e-6
    sampled = bayes_risk(m, draw, pattern=False, method="sampling", draws=1 << 14)
    assert np.abs(sampled - expected).max() < 1e-3


@pytest.mark.parametrize("pattern", [False, True])
@pytest.mark.parametrize("form", ["linear", "nonlinear"])
@pytest.mark.parametrize("latent", [1, 2])
def test_both_ways_agree_with_the_definition(latent: int, form: Form, pattern: bool) -> None:
    m = model(latent=latent, form=form)
    draw = m.draw(12)
    expected = brute(m, draw, pattern, step=0.05 if latent == 2 else 0.01)
    found = bayes_risk(m, draw, pattern=pattern, draws=1 << 13)
    # the rows of the non-linear form that the nodes do not cover are sampled
    assert np.abs(found - expected).max() < (1e-6 if form == "linear" else 3e-3)
    assert np.sqrt(np.square(found - expected).mean()) < 5e-4
    assert np.abs(bayes_risk(m, draw, pattern=pattern, method="sampling", draws=1 << 13) - expected).max() < 3e-3
    # what leaves the pattern out is no solution with it
    assert np.abs(bayes_risk(m, draw, pattern=not pattern) - expected).max() > 1e-3


def ambiguous(latent: int) -> CausalModel:
    """Little noise and few numbers: (V u)² leaves two signs open, and the posterior has several narrow modes."""
    views = (View("one", 1, 0.1, 1.0), View("other", 2, 0.3, 0.5))
    return CausalModel(views, OUTCOMES, Mechanism("mnar", 2.0), latent, "nonlinear", 3)


@pytest.mark.parametrize("latent", [1, 2])
def test_several_modes_are_found(latent: int) -> None:
    m = ambiguous(latent)
    draw = m.draw(20)
    expected = brute(m, draw, True, step=0.02 if latent == 2 else 0.001)
    assert (LatentPosterior(m, draw, m.names, pattern=True).modes(np.arange(20), 0).share > -5).sum(1).max() > 1
    for method in ("quadrature", "sampling"):
        found = bayes_risk(m, draw, pattern=True, method=method, draws=1 << 13)
        assert np.abs(found - expected).max() < 1e-2
        assert np.sqrt(np.square(found - expected).mean()) < 2e-3


@pytest.mark.parametrize("form", ["linear", pytest.param("nonlinear", marks=pytest.mark.slow)])
def test_quadrature_and_sampling_agree(form: Form) -> None:
    m = model(form=form)
    draw = m.draw(2000)
    one = bayes_risk(m, draw, pattern=True)
    other = bayes_risk(m, draw, pattern=True, method="sampling")
    assert np.abs(auc(one, draw) - auc(other, draw)).max() < 5e-4


@pytest.mark.parametrize("latent", [4, 6])
def test_two_replicates_agree_row_by_row_where_there_are_several_modes(latent: int) -> None:
    m = model(latent=latent, form="nonlinear")
    draw = m.draw(30)
    one, other = (bayes_risk(m, draw, pattern=True, noise_seed=seed) for seed in (0, 1))
    # some 9,000 effective draws: a standard error of 0.001 to 0.002 for a row whose risk is wide open
    assert np.abs(one - other).max() < 0.02
    assert np.sqrt(np.square(one - other).mean()) < 3e-3


@pytest.mark.parametrize(
    ("form", "latent"),
    [
        ("linear", 6),
        pytest.param("nonlinear", 4, marks=pytest.mark.slow),
        pytest.param("nonlinear", 6, marks=pytest.mark.slow),
    ],
)
def test_two_replicates_of_many_axes_agree(form: Form, latent: int) -> None:
    """Below 500 effective draws in any row `bayes_risk` would refuse."""
    m = model(latent=latent, form=form)
    draw = m.draw(1000 if form == "linear" else 4000)
    one, other = (bayes_risk(m, draw, pattern=True, noise_seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, other)
    assert np.abs(auc(one, draw) - auc(other, draw)).max() < 5e-4


def test_the_pattern_helps_where_it_depends_on_latent_health() -> None:
    # strong enough for 4000 patients to show it by two standard errors
    draws = {kind: model(kind).draw(4000 if kind == "mnar" else 500) for kind in ("mcar", "mar", "mnar")}
    for kind in ("mcar", "mar"):
        one, other = (bayes_risk(model(kind), draws[kind], pattern=p) for p in (True, False))
        assert np.array_equal(one, other)
    one, other = (bayes_risk(model("mnar"), draws["mnar"], pattern=p) for p in (True, False))
    gain = np.where(draws["mnar"].outcomes, np.log(one / other), np.log((1 - one) / (1 - other))).mean(1)
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))


@pytest.mark.parametrize("kind", ["mcar", "mnar"])
def test_probabilities_are_calibrated(kind: MechanismKind) -> None:
    draw = model(kind, latent=1).draw(100_000)
    with_pattern, without = (bayes_risk(model(kind, latent=1), draw, pattern=p) for p in (True, False))
    assert worst_group(with_pattern, draw) < 4.5  # of 36 standard normal numbers
    # where availability tells about latent health, who leaves it out is wrong in every pattern
    assert (worst_group(without, draw) < 4.5) == (kind == "mcar")


def worst_group(risk: Floats, draw: Draw) -> float:
    """Largest |observed − expected| in standard errors, over tenths of the scores and over patterns."""
    pattern = draw.available @ (1 << np.arange(draw.available.shape[1]))
    scores: list[float] = []
    for p, y in zip(risk.T, draw.outcomes.T, strict=True):
        groups = [*np.array_split(np.argsort(p), 10), *(np.flatnonzero(pattern == k) for k in np.unique(pattern))]
        scores += [abs((y[g] - p[g]).sum()) / np.sqrt((p[g] * (1 - p[g])).sum()) for g in groups]
    return max(scores)


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
@pytest.mark.parametrize("latent", [2, 4])
def test_evidence_takes_the_place_of_a_view(form: Form, latent: int) -> None:
    m = model(latent=latent, form=form)
    draw = m.draw(40)
    view = VIEWS[1]

    def evidence(rows: Any, u: Floats) -> Floats:
        gap = draw.values["a"][rows][:, None] - m.mean("a", u.reshape(-1, latent)).reshape(*u.shape[:2], -1)
        seen: Floats = draw.available[rows, 1, None] * -np.square(gap).sum(-1) / (2 * view.noise**2)
        return seen

    by_hook = bayes_risk(m, draw, pattern=True, views=["always", "b", "c"], evidence=evidence, draws=1 << 13)
    expected = bayes_risk(m, draw, pattern=True, draws=1 << 13)
    assert np.abs(by_hook - expected).max() < (1e-6 if m.form == "linear" and latent == 2 else 5e-3)
    assert np.abs(bayes_risk(m, draw, pattern=True, views=["always", "b", "c"]) - expected).max() > 0.01


def test_views_that_are_left_out_are_not_looked_at() -> None:
    m = model("mcar")
    draw = m.draw(50)
    spoilt = replace(draw, values=draw.values | {"a": np.full_like(draw.values["a"], np.nan)})
    one, other = (bayes_risk(m, d, pattern=False, views=["always", "b"]) for d in (draw, spoilt))
    assert np.array_equal(one, other)
    hidden = replace(draw, available=draw.available & (np.array(m.names) != "a"))
    assert np.allclose(one, bayes_risk(m, hidden, pattern=False, views=["always", "a", "b"]), atol=1e-9)
    nothing = bayes_risk(m, draw, pattern=False, views=[])
    assert nothing == pytest.approx(np.tile(m.risk(m.draw(20_000).latent).mean(0), (50, 1)), abs=0.01)


def test_rows_come_out_the_same_in_any_company() -> None:
    m = model(form="nonlinear")
    draw = m.draw(40)
    assert np.allclose(bayes_risk(m, draw, pattern=True)[:5], bayes_risk(m, draw.head(5), pattern=True), atol=1e-12)


def test_too_few_effective_draws_are_an_error() -> None:
    m = model(latent=5)
    with pytest.raises(BayesError, match=r"7 of 7 rows have fewer than 1e\+09 effective draws \(lowest \d"):
        bayes_risk(m, m.draw(7), pattern=True, effective=1e9, draws=16)


def test_wrong_arguments_are_refused() -> None:
    m = model("mar", latent=4)
    draw = m.draw(5)
    with pytest.raises(ValueError, match="view d is not one of always, a, b, c"):
        bayes_risk(m, draw, pattern=False, views=["d"])
    with pytest.raises(ValueError, match="4 axes is too much for quadrature"):
        bayes_risk(m, draw, pattern=False, method="quadrature")
    with pytest.raises(ValueError, match="not one of auto"):
        bayes_risk(m, draw, pattern=False, method="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="together with view 'always'"):
        bayes_risk(m, draw, pattern=True, views=["a"])
    silent = CausalModel((View("always", 2, 0.0, 1.0),), OUTCOMES, Mechanism("mcar"))
    with pytest.raises(ValueError, match="without noise"):
        bayes_risk(silent, silent.draw(3), pattern=False)
