"""Assignment models: what they recover, what weights made of them get right, and what they must not look at."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmnar_lightning.evaluation.assignment import (
    assignment_weights,
    cross_fitted,
    fit_assignment,
    patient_folds,
    standardised,
)
from mmnar_lightning.evaluation.covariates import known_before, training_weights
from mmnar_lightning.evaluation.overlap import OverlapError, OverlapThresholds, describe_overlap, overlap_report
from mmnar_lightning.records import RecordSchema
from mmnar_lightning.simulation import CausalModel, Draw, Mechanism, MechanismKind, Outcome, View

PATIENTS = 500
PILOT = range(5000, 5200)
"""Chunks whose 100,000 patients no replicate holds."""


@cache
def model(kind: MechanismKind) -> CausalModel:
    views = (View("vitals", 3, rate=1.0), View("labs", 2, noise=0.5, rate=0.5))
    return CausalModel(views, (Outcome("death"),), Mechanism(kind, 1.0), latent=2, seed=3, chunk_size=PATIENTS)


@cache
def pilot(kind: MechanismKind) -> Draw:
    chunks = [model(kind).chunk(number) for number in PILOT]
    stacked = {f: np.concatenate([getattr(c, f) for c in chunks]) for f in ("index", "latent", "available")}
    stacked |= {f: np.concatenate([getattr(c, f) for c in chunks]) for f in ("propensity", "outcomes", "risk")}
    return Draw(**stacked, values={v: np.concatenate([c.values[v] for c in chunks]) for v in chunks[0].values})


def weighted_means(kind: MechanismKind, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the first laboratory value, weighted by 1/π and plain, in each replicate."""
    weighted, plain = [], []
    for number in range(replicates):
        draw = model(kind).chunk(number)
        fitted = fit_assignment(draw.values["vitals"], draw.available[:, 1:], draw.index, ["labs"])
        weight = assignment_weights(fitted.probability, draw.available[:, 1:])[:, 0]
        x = draw.values["labs"][:, 0]
        weighted.append(np.average(x, weights=weight))
        plain.append(x[draw.available[:, 1]].mean())
    return np.array(weighted), np.array(plain)


def off(values: np.ndarray, expected: float) -> float:
    """Distance of the mean from what is expected, in standard errors."""
    return float((values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5))


def test_weighting_is_unbiased_where_ordering_is_ignorable() -> None:
    truth = float(pilot("mar").values["labs"][:, 0].mean())
    weighted, plain = weighted_means("mar", 100)
    assert abs(off(weighted, truth)) < 3
    # the plain mean of those who have labs is not
    assert abs(off(plain, truth)) > 10


def test_weighting_is_wrong_by_the_predicted_amount_where_it_is_not() -> None:
    """The limit of the estimate, from true propensities: E[p x / e(w)] / E[p / e(w)] with e(w) = E[p | w]."""
    drawn = pilot("mnar")
    w, x, p = drawn.values["vitals"], drawn.values["labs"][:, 0], drawn.propensity[:, 1]
    e = LogisticRegression(C=1.0).fit(w, drawn.available[:, 1]).predict_proba(w)[:, 1]
    predicted, truth = float(np.average(x, weights=p / e)), float(x.mean())
    weighted, _ = weighted_means("mnar", 100)
    assert abs(off(weighted, predicted)) < 3
    assert abs(off(weighted, truth)) > 10


def test_recovers_the_true_probabilities() -> None:
    draw = pilot("mar").head(8000)
    fitted = fit_assignment(draw.values["vitals"], draw.available, draw.index, ["vitals", "labs"])
    assert (fitted.raw[:, 0] == 1).all()
    assert np.abs(fitted.raw[:, 1] - draw.propensity[:, 1]).max() < 0.05


def test_equals_plain_loops_over_folds() -> None:
    g = np.random.default_rng(0)
    w, delta = g.normal(size=(300, 3)), g.random(300) < 0.4
    patient = np.repeat(np.arange(100), 3)
    fold = patient_folds(patient, 4)
    x, expected = standardised(w), np.empty(300)
    for f in range(4):
        rest = LogisticRegression(C=1.0, tol=1e-8).fit(x[fold != f], delta[fold != f])
        expected[fold == f] = rest.predict_proba(x[fold == f])[:, 1]
    assert cross_fitted(w, delta, fold) == pytest.approx(expected, abs=1e-4)


def test_folds_hold_whole_patients_and_nobody_moves() -> None:
    patient = np.array([f"p{k % 50}" for k in range(150)])
    fold = patient_folds(patient, 5)
    assert all(len(set(fold[patient == p])) == 1 for p in patient)
    assert (patient_folds(patient[:40], 5) == fold[:40]).all()
    assert set(fold) == set(range(5))
    assert (patient_folds(patient, 5, seed=1) != fold).any()


def test_own_availability_is_never_used() -> None:
    """Turning a patient's own δ round leaves the π of that patient as it is."""
    g = np.random.default_rng(1)
    w, delta = g.normal(size=(200, 2)), g.random((200, 1)) < 0.5
    turned = delta.copy()
    turned[7] = ~turned[7]
    one, other = (fit_assignment(w, d, np.arange(200), ["labs"]).raw[:, 0] for d in (delta, turned))
    assert one[7] == other[7]
    assert (one != other).any()


def test_a_monotone_order_conditions_on_what_came_before() -> None:
    """Films follow labs that are high: weights need the labs, and the product along the order."""
    errors: dict[str, list[float]] = {"ordered": [], "unordered": []}
    for seed in range(40):
        g = np.random.default_rng(seed)
        w = g.normal(size=(600, 1))
        labs = 0.5 * w[:, 0] + g.normal(size=600)
        films = labs + g.normal(size=600)
        first = g.random(600) < 1 / (1 + np.exp(-w[:, 0] - 0.5))
        second = first & (g.random(600) < 1 / (1 + np.exp(-labs)))
        delta, seen = np.stack([first, second], 1), np.where(first, labs, np.nan)
        for name, order in (("ordered", ["labs", "films"]), ("unordered", [])):
            fitted = fit_assignment(
                w, delta, np.arange(600), ["labs", "films"], order=order, values={"labs": seen[:, None]}
            )
            weight = assignment_weights(fitted.inclusion, delta)[:, 1]
            errors[name].append(float(np.average(films, weights=weight)))
    assert abs(off(np.array(errors["ordered"]), 0.0)) < 3
    assert off(np.array(errors["unordered"]), 0.0) > 10


def test_an_order_that_is_none_is_refused() -> None:
    delta = np.array([[True, True], [False, True]])
    with pytest.raises(ValueError, match="not monotone: 1 samples have 'b' without"):
        fit_assignment(np.zeros((2, 1)), delta, [0, 1], ["a", "b"], order=["a", "b"])
    with pytest.raises(ValueError, match="must name each modality once"):
        fit_assignment(np.zeros((2, 1)), delta, [0, 1], ["a", "b"], order=["a", "c"])


def test_only_those_who_could_have_it_count() -> None:
    g = np.random.default_rng(2)
    site = g.random(400) < 0.5
    delta = (g.random(400) < 0.6) & site
    eligible = site[:, None]
    raw = fit_assignment(g.normal(size=(400, 2)), delta[:, None], np.arange(400), ["films"], eligible=eligible).raw
    assert np.isnan(raw[~site, 0]).all()
    assert raw[site, 0].mean() == pytest.approx(delta[site].mean(), abs=0.02)


def test_trees_find_what_a_line_does_not() -> None:
    g = np.random.default_rng(3)
    w = g.normal(size=(2000, 1))
    p = np.where(np.abs(w[:, 0]) > 0.7, 0.8, 0.2)
    delta = g.random((2000, 1)) < p[:, None]
    error = {
        learner: np.abs(fit_assignment(w, delta, np.arange(2000), ["m"], learner=learner).raw[:, 0] - p).mean()
        for learner in ("logistic", "trees")
    }
    assert error["trees"] < 0.08 < 0.25 < error["logistic"]


def test_weights_have_mean_one_among_those_observed() -> None:
    pi = np.array([[0.5, 0.001], [0.25, 0.5], [0.8, 0.5], [np.nan, 0.5]])
    delta = np.array([[True, True], [True, True], [False, False], [False, False]])
    found = assignment_weights(pi, delta, (0.1, 1.0))
    assert found[:, 0] == pytest.approx([2 / 3, 4 / 3, 0, 0])
    assert found[:, 1] == pytest.approx([10 / 6, 2 / 6, 0, 0])
    assert (assignment_weights(pi, np.zeros_like(delta)) == 0).all()
    with pytest.raises(ValueError, match=r"1 observed \(sample, modality\) have no"):
        assignment_weights(pi, np.ones_like(delta))


def test_overlap_counts_and_refuses() -> None:
    raw = np.array([0.5] * 60 + [0.01] * 4 + [0.1] * 40)
    delta = np.zeros(104, dtype=bool)
    delta[:30], delta[60], delta[64:66] = True, True, True
    found = describe_overlap(raw, delta, (0.02, 1.0), OverlapThresholds(ess=1, ess_share=0, clipped=1), "films")
    weights = np.array([2.0] * 30 + [50.0] + [10.0] * 2)
    assert found.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.clipped == pytest.approx(4 / 104)
    assert (found.lowest, found.highest, found.observed, found.eligible) == (0.01, 0.5, 33, 104)
    found.require()
    for thresholds, reason in (
        (OverlapThresholds(ess=20, ess_share=0, clipped=1), "effective sample size 6 is below 20"),
        (OverlapThresholds(ess=1, ess_share=0.5, clipped=1), "of the observed samples, below 0.5"),
        (OverlapThresholds(ess=1, ess_share=0, clipped=0.01), "4% of the probabilities are outside"),
    ):
        with pytest.raises(OverlapError, match=reason):
            describe_overlap(raw, delta, (0.02, 1.0), thresholds).require()


def test_small_counts_are_not_told() -> None:
    def told(observed: int, eligible: int) -> dict[str, Any]:
        raw, delta = np.full(eligible, 0.5), np.arange(eligible) < observed
        return describe_overlap(raw, delta, (0.02, 1.0), OverlapThresholds()).to_dict()

    assert told(4, 60)["observed"] == "< 10"
    assert told(57, 60)["observed"] == "> 50"
    assert told(57, 60)["lacking"] == "< 10"
    assert (told(30, 60)["observed"], told(30, 60)["lacking"], told(0, 60)["observed"]) == (30, 30, 0)


@pytest.mark.parametrize(("observed", "withheld"), [(4, True), (41, True), (25, False)])
def test_small_counts_cannot_be_worked_out(observed: int, withheld: bool) -> None:
    """With π of 1/2 the effective sample size is the count of those who have it."""
    raw, delta = np.full(50, 0.5), np.arange(50) < observed
    found = describe_overlap(raw, delta, (0.02, 1.0), OverlapThresholds())
    told = found.to_dict()
    assert all((told[name] is None) == withheld for name in ("ess", "lowest", "highest", "auroc"))
    assert found.ess == pytest.approx(observed)
    assert (str(observed) in str(told["refused"])) != withheld
    assert "is below 50" in told["refused"]


def test_overlap_is_poor_where_ordering_is_all_but_certain() -> None:
    draw = replace(model("mar"), mechanism=Mechanism("mar", 8.0)).chunk(0)
    fitted = fit_assignment(draw.values["vitals"], draw.available, draw.index, ["vitals", "labs"])
    vitals, labs = overlap_report(fitted, draw.available)
    assert vitals.reason == ""
    assert labs.reason
    assert labs.auroc > 0.95


def test_covariates_are_what_everyone_has(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, 300)
    schema, train = RecordSchema.from_dict(data.schema), data.samples_of("train")
    with pytest.raises(ValueError, match="no modality is recorded for everyone"):
        known_before(data.records, schema, train)
    known = known_before(data.records, schema, train, always=["vitals"], groups=["site"])
    assert not known.complete.all()
    assert {name.split("/")[0].split("=")[0] for name in known.names} == {"vitals", "site"}
    assert not np.isfinite(known.values[~known.complete, :6]).any()
    with pytest.raises(ValueError, match="only vector and codes"):
        known_before(data.records, schema, train, always=["notes"])


def test_weights_for_training_come_from_train_alone(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, 300)
    weights = training_weights(data, always=["vitals"], groups=["site"])
    found = weights.values
    schema, train = RecordSchema.from_dict(data.schema), data.samples_of("train")
    outside = np.setdiff1d(np.arange(len(data.records)), train)
    assert np.isnan(found[outside]).all()
    samples = data.records.samples
    for m, name in enumerate(schema.names):
        seen = samples[f"observed/{name}"].to_numpy()[train]
        weight = found[train, m]
        assert (weight[~seen] == 0).all()
        assert (weight[seen] > 0).all()
        assert weight[seen].mean() == pytest.approx(1)
    # weights of labs differ between patients, those of vitals, which stand for everyone, do not
    labs, vitals = (found[train, schema.names.index(name)] for name in ("labs", "vitals"))
    assert labs[labs > 0].std() > 0.05
    assert set(vitals) <= {0.0, 1.0}
    assert weights.names == schema.names
    m = schema.names.index("labs")
    seen = labs[labs > 0]
    assert weights.ess[m] == pytest.approx(seen.sum() ** 2 / (seen**2).sum() / len(seen))
    assert {row.modality for row in weights.overlap} == set(schema.names) - {"vitals"}
    capped = training_weights(data, always=["vitals"], groups=["site"], cap=1.1)
    assert np.array_equal(capped.values[train], np.minimum(found[train], 1.1))
    assert capped.clipped[m] == pytest.approx((seen > 1.1).mean())
    assert capped.ess[m] > weights.ess[m]
    assert weights.clipped[m] < capped.clipped[m]
