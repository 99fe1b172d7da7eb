from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmnar_lightning.simulation import (
    CausalModel,
    Draw,
    Mechanism,
    MechanismKind,
    Outcome,
    View,
    concatenate,
    intercept,
    sigmoid,
)

VIEWS = (View("always", 4, rate=1.0), View("a", 6, noise=0.5, rate=0.7), View("b", 3, rate=0.2))
OUTCOMES = (Outcome("y", 0.1, 1.8), Outcome("z", 0.4, 0.5))
N = 20_000


def model(
    kind: MechanismKind = "mnar", strength: float = 1.5, seed: int = 0, form: Literal["linear", "nonlinear"] = "linear"
) -> CausalModel:
    return CausalModel(VIEWS, OUTCOMES, Mechanism(kind, strength), 3, form, seed)


def held_out_auc(features: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> float:
    half = len(label) // 2
    fitted = LogisticRegression(max_iter=1000).fit(features[:half], label[:half])
    return float(roc_auc_score(label[half:], fitted.decision_function(features[half:])))


def same(one: Draw, other: Draw) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("index", "latent", "available", "propensity", "outcomes", "risk")
    ) and all(np.array_equal(one.values[name], other.values[name]) for name in one.values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("view", [1, 2])
def test_availability_depends_on_what_the_mechanism_says(view: int, seed: int) -> None:
    auc: dict[str, tuple[float, float]] = {}
    for kind in ("mcar", "mar", "mnar"):
        d = model(kind, seed=seed).draw(N)
        known = d.values["always"]
        # what u tells beyond the always-observed modality
        both = np.hstack([known, d.latent])
        auc[kind] = held_out_auc(known, d.available[:, view]), held_out_auc(both, d.available[:, view])
    # the standard error of an AUROC of 10,000 rows with 20 % positives is 0.007
    assert list(auc["mcar"]) == pytest.approx([0.5, 0.5], abs=0.03)
    assert auc["mar"][0] > 0.7
    assert auc["mar"][1] == pytest.approx(auc["mar"][0], abs=0.005)
    assert auc["mnar"][1] > auc["mnar"][0] + 0.02


@pytest.mark.parametrize("kind", ["mar", "mnar"])
def test_strength_is_a_dial(kind: MechanismKind) -> None:
    def dependence(strength: float) -> float:
        d = model(kind, strength).draw(N)
        return held_out_auc(np.hstack([d.values["always"], d.latent]), d.available[:, 1])

    measured = [dependence(strength) for strength in (0.0, 0.7, 1.5, 3.0)]
    assert measured[0] == pytest.approx(0.5, abs=0.03)
    assert all(later > earlier + 0.03 for earlier, later in pairwise(measured))


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
@pytest.mark.parametrize("kind", ["mcar", "mar", "mnar"])
def test_shares_are_met_whatever_the_mechanism(kind: MechanismKind, form: Literal["linear", "nonlinear"]) -> None:
    d = model(kind, 2.0, form=form).draw(N)
    # five standard errors: 3.5e-3 each for the draw, as much again for the pilot that sets the intercepts
    assert d.available.mean(0) == pytest.approx([1.0, 0.7, 0.2], abs=0.02)
    assert d.outcomes.mean(0) == pytest.approx([0.1, 0.4], abs=0.02)


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
def test_outcomes_and_availability_follow_their_probabilities(form: Literal["linear", "nonlinear"]) -> None:
    d = model("mnar", form=form).draw(2 * N)
    for truth, chance in ((d.outcomes[:, 0], d.risk[:, 0]), (d.available[:, 1], d.propensity[:, 1])):
        for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
            rows = (chance > low) & (chance <= high)
            if rows.sum() < 100:
                continue
            error = np.sqrt((chance[rows] * (1 - chance[rows])).sum()) / rows.sum()
            assert truth[rows].mean() == pytest.approx(chance[rows].mean(), abs=4 * error)
    # the stated risk is recomputed from u alone
    assert np.array_equal(d.risk, model("mcar", form=form).risk(d.latent))


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
def test_signals_have_unit_variance(form: Literal["linear", "nonlinear"]) -> None:
    m = model(form=form)
    d = m.draw(N)
    signal = m.mean("a", d.latent)
    assert signal.mean(0) == pytest.approx(np.zeros(6), abs=0.06)
    assert signal.std(0) == pytest.approx(np.ones(6), abs=0.06)
    assert (d.values["a"] - signal).std(0) == pytest.approx(np.full(6, 0.5), rel=0.03)
    line = np.hstack([d.latent, np.ones((N, 1))])
    straight = np.abs(np.linalg.lstsq(line, signal, rcond=None)[1] / N)
    assert (straight < 1e-9).all() if form == "linear" else (straight > 0.05).all()


def test_given_loadings_and_directions_are_kept() -> None:
    views = (View("always", 2, 0.0, 1.0, loadings=(1.0, -1.0)), View("a", 1, rate=0.5, direction=(0.0, 1.0)))
    d = CausalModel(views, (Outcome("y", 0.5, 3.0, (0.0, 0.0, -1.0)),), Mechanism("mnar", 3.0)).draw(N)
    assert np.corrcoef(d.values["always"].T, d.latent[:, 0])[2, :2] == pytest.approx([0.8, -0.8], abs=0.2)
    by_axis = [float(np.corrcoef(d.available[:, 1], d.latent[:, axis])[0, 1]) for axis in range(3)]
    assert by_axis[1] > 0.5
    assert by_axis[0] == pytest.approx(0, abs=0.03)
    assert by_axis[2] == pytest.approx(0, abs=0.03)
    assert np.corrcoef(d.outcomes[:, 0], d.latent[:, 2])[0, 1] < -0.5


def test_another_mechanism_moves_no_patient() -> None:
    one, other = model("mnar").draw(500), model("mcar").draw(500)
    assert np.array_equal(one.latent, other.latent)
    assert np.array_equal(one.outcomes, other.outcomes)
    assert all(np.array_equal(one.values[name], other.values[name]) for name in one.values)
    assert not np.array_equal(one.available, other.available)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300), more=st.integers(0, 300), seed=st.integers(0, 2**40), size=st.sampled_from([1, 7, 64, 100])
)
def test_the_first_patients_do_not_depend_on_how_many_follow(n: int, more: int, seed: int, size: int) -> None:
    m = replace(model(seed=seed), chunk_size=size)
    few, many = m.draw(n), m.draw(n + more)
    assert len(few) == n
    assert same(few, many.head(n))
    assert same(few, concatenate(list(m.stream(n))))
    assert few.index.tolist() == list(range(n))


def test_a_chunk_can_be_drawn_alone_and_a_seed_decides_all() -> None:
    m = replace(model(seed=5), chunk_size=50)
    whole = m.draw(200)
    third = m.chunk(3)
    assert same(third, replace(model(seed=5), chunk_size=50).chunk(3))
    assert np.array_equal(third.latent, whole.latent[150:])
    assert not np.array_equal(m.chunk(2).latent, third.latent)
    assert not np.array_equal(replace(m, seed=6).chunk(3).latent, third.latent)


@given(score=st.lists(st.floats(-50, 50), min_size=1, max_size=30), rate=st.floats(0.01, 0.99))
def test_intercept_meets_the_rate(score: list[float], rate: float) -> None:
    scores = np.array(score)
    assert sigmoid(intercept(scores, rate) + scores).mean() == pytest.approx(rate, abs=1e-6)


WRONG: dict[str, Callable[[], object]] = {
    "not one of mcar, mar, mnar": lambda: Mechanism("sometimes"),  # type: ignore[arg-type]
    "must be a finite number": lambda: Mechanism("mnar", -1.0),
    "strength nan": lambda: Mechanism("mnar", float("nan")),
    "width ≥ 1": lambda: View("a", 0),
    "2 loadings for a width of 3": lambda: View("a", 3, loadings=(1.0, 2.0)),
    "prevalence 1.0": lambda: Outcome("y", 1.0),
    "distinct names": lambda: CausalModel((View("a", 1), View("a", 1)), OUTCOMES),
    "at least one view": lambda: CausalModel((), OUTCOMES),
    "always observed": lambda: CausalModel((View("a", 1),), OUTCOMES, Mechanism("mar")),
    "direction of 4 axes": lambda: CausalModel((View("a", 1, direction=(1.0,) * 4),), OUTCOMES),
    "one of linear, nonlinear": lambda: CausalModel(VIEWS, OUTCOMES, form="cubic"),  # type: ignore[arg-type]
    "seed at least 0": lambda: CausalModel(VIEWS, OUTCOMES, seed=-1),
    "at least 1 is needed": lambda: CausalModel(VIEWS, OUTCOMES).draw(0),
    "strictly between": lambda: intercept(np.zeros(3), 0.0),
    "no draws": lambda: concatenate([]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_settings_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
