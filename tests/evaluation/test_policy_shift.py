"""Re-weighting to another availability behaviour, against the simulator under that behaviour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from mmnar_lightning.evaluation.availability_report import AvailabilitySettings
from mmnar_lightning.evaluation.covariates import availability
from mmnar_lightning.evaluation.overlap import OverlapError
from mmnar_lightning.evaluation.policy_shift import (
    AsIf,
    Behaviour,
    ShiftThresholds,
    ShiftWeights,
    shift_weights,
    shifted_metrics,
)
from mmnar_lightning.evaluation.shift_report import _behaviours, training_shift_weights
from mmnar_lightning.metrics import binary_metric
from mmnar_lightning.records import RecordSchema
from mmnar_lightning.simulation import CausalModel, Draw, Mechanism, MechanismKind, Outcome, View, concatenate

PATIENTS = 500
PILOT = range(5000, 5200)
"""Chunks whose 100,000 patients no replicate holds."""
FIRST = 10_000
METRICS = ("auroc", "brier", "log_loss")


def causal(kind: MechanismKind, strength: float, rate: float) -> CausalModel:
    views = (
        View("vitals", 3, noise=1.5, rate=1.0, direction=(1.0,)),
        View("labs", 2, noise=0.3, rate=rate, direction=(1.0,)),
        View("films", 2, noise=0.5, rate=1.2 * rate, direction=(1.0,)),
    )
    outcomes = (Outcome("death", 0.3, strength=3.0, direction=(1.0,)),)
    return CausalModel(views, outcomes, Mechanism(kind, strength), latent=1, seed=4, chunk_size=PATIENTS)


@dataclass(frozen=True)
class World:
    """A source whose ordering is at random or not, and a target that orders more, at random.

    Args:
        source: Draws the patients that are tested on.
        target: Draws patients under the other behaviour; patient by patient the same but for δ.
        parts: A fixed model: a logistic regression a pattern.
        truth: Metrics under the target's behaviour.
        limit: What weighting tends to, from true propensities.
    """

    source: CausalModel
    target: CausalModel
    parts: dict[tuple[bool, ...], LogisticRegression]
    truth: dict[str, float]
    limit: dict[str, float]

    def predict(self, draw: Draw, available: np.ndarray) -> np.ndarray:
        p = np.zeros(len(draw))
        for pattern, part in self.parts.items():
            rows = (available == pattern).all(1)
            if rows.any():
                p[rows] = part.predict_proba(columns(draw, pattern)[rows])[:, 1]
        return p

    def behaviours(self, number: int) -> tuple[Draw, Behaviour, Behaviour]:
        here, there = self.source.chunk(FIRST + number), self.target.chunk(FIRST + 3000 + number)
        return here, behaviour(here), behaviour(there)


def behaviour(draw: Draw) -> Behaviour:
    return Behaviour(draw.values["vitals"], draw.available[:, 1:], draw.index)


def columns(draw: Draw, pattern: tuple[bool, ...]) -> np.ndarray:
    return np.column_stack([x for x, seen in zip(draw.values.values(), pattern, strict=True) if seen])


def weighted(p: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    given = None if weight is None else weight[None]
    return {name: float(binary_metric(name).of(p, y, given)[0]) for name in METRICS}


@cache
def world(kind: MechanismKind) -> World:
    source, target = causal(kind, 1.2, 0.35), causal("mar", 0.5, 0.6)
    train = concatenate([source.chunk(number) for number in range(6000, 6010)])
    patterns: list[tuple[bool, ...]] = [(True, labs, films) for labs in (False, True) for films in (False, True)]
    parts = {q: LogisticRegression().fit(columns(train, q), train.outcomes[:, 0]) for q in patterns}
    made = World(source, target, parts, {}, {})
    here, there = (concatenate([m.chunk(number) for number in PILOT]) for m in (source, target))
    y = there.outcomes[:, 0].astype(float)
    truth = weighted(made.predict(there, there.available), y, None)
    # P_target(δ | w) is known; P_source(δ | w) is the average over what w does not tell
    ratio = np.ones(len(here))
    before = here.values["vitals"]
    for m in (1, 2):
        event = here.available[:, m]
        mine = LogisticRegression().fit(before, event).predict_proba(before)[:, 1]
        ratio *= np.where(event, there.propensity[:, m] / mine, (1 - there.propensity[:, m]) / (1 - mine))
        before = np.column_stack([before, event])
    limit = weighted(made.predict(here, here.available), here.outcomes[:, 0].astype(float), ratio)
    return World(source, target, parts, truth, limit)


@cache
def estimates(kind: MechanismKind, replicates: int) -> dict[str, dict[str, np.ndarray]]:
    """Weighted and plain metrics of each replicate."""
    made, rows = world(kind), []
    for number in range(replicates):
        draw, here, there = made.behaviours(number)
        y, p = draw.outcomes[:, 0].astype(float), made.predict(draw, draw.available)
        shift = shift_weights(here, there, draws=0)
        rows.append((weighted(p, y, shift.weight), weighted(p, y, None)))
    return {
        name: {metric: np.array([row[k][metric] for row in rows]) for metric in METRICS}
        for k, name in enumerate(("weighted", "plain"))
    }


def off(values: np.ndarray, expected: float) -> float:
    """Distance of the mean from what is expected, in standard errors."""
    return float((values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5))


def test_weighting_finds_the_truth_where_ordering_is_ignorable() -> None:
    truth, found = world("mar").truth, estimates("mar", 100)
    assert {m: abs(off(found["weighted"][m], truth[m])) < 3 for m in METRICS} == dict.fromkeys(METRICS, True)
    assert {m: abs(off(found["plain"][m], truth[m])) > 6 for m in METRICS} == dict.fromkeys(METRICS, True)


def test_weighting_is_wrong_by_the_predicted_amount_where_it_is_not() -> None:
    made, found = world("mnar"), estimates("mnar", 100)
    assert {m: abs(off(found["weighted"][m], made.limit[m])) < 3 for m in METRICS} == dict.fromkeys(METRICS, True)
    assert max(abs(off(found["weighted"][m], made.truth[m])) for m in METRICS) > 6


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say() -> None:
    """Weights are estimated again in each draw; percentile intervals of 100 draws are a little short, hence 0.92."""
    made, hits = world("mar"), []
    for number in range(120):
        draw, here, there = made.behaviours(number)
        shift = shift_weights(here, there, draws=100)
        p, y = made.predict(draw, draw.available), draw.outcomes[:, 0]
        found = shifted_metrics(p, y, draw.index, shift, metrics=METRICS)
        hits.append([found[m].as_if.low <= made.truth[m] <= found[m].as_if.high for m in METRICS])
    slack = 3 * (0.92 * 0.08 / len(hits)) ** 0.5
    assert np.mean(hits, axis=0).min() > 0.92 - slack


def test_weights_are_the_ratio_of_the_two_behaviours() -> None:
    made = world("mar")
    here = concatenate([made.source.chunk(k) for k in range(10)])
    there = concatenate([made.target.chunk(k) for k in range(2000, 2010)])
    shift = shift_weights(behaviour(here), behaviour(there), draws=0, cap=np.inf)
    mine, theirs = here.propensity[:, 1:], made.target.propensity(here.latent, here.values)[:, 1:]
    factor = np.where(here.available[:, 1:], theirs / mine, (1 - theirs) / (1 - mine))
    assert np.corrcoef(np.log(shift.weight), np.log(factor.prod(1)))[0, 1] > 0.99
    assert shift.weight.mean() == pytest.approx(1, abs=0.05)
    assert shift.ess == pytest.approx(shift.weight.sum() ** 2 / (shift.weight**2).sum())


def test_the_same_behaviour_changes_next_to_nothing() -> None:
    made = world("mar")
    draw = concatenate([made.source.chunk(k) for k in range(4)])
    other = concatenate([made.source.chunk(k) for k in range(100, 104)])
    shift = shift_weights(behaviour(draw), behaviour(other), draws=20)
    assert shift.ess > 0.9 * len(draw)
    found = shifted_metrics(made.predict(draw, draw.available), draw.outcomes[:, 0], draw.index, shift)
    for metric in METRICS:
        assert abs(found[metric].difference.estimate) < 0.02
        assert found[metric].difference.low < 0 < found[metric].difference.high


def test_the_order_of_modalities_does_not_matter() -> None:
    """The chain of conditional probabilities is an identity; fitted, it differs by little."""
    _, here, there = world("mar").behaviours(0)
    turned = [replace(b, observed=b.observed[:, ::-1]) for b in (here, there)]
    one, other = shift_weights(here, there, draws=0).weight, shift_weights(*turned, draws=0).weight
    assert np.corrcoef(one, other)[0, 1] > 0.98


def test_a_behaviour_known_from_few_widens_the_interval_only_if_weights_are_estimated_again() -> None:
    made = world("mar")
    draw, here, there = made.behaviours(0)
    few = Behaviour(there.known[:60], there.observed[:60], there.patient[:60])
    p, y = made.predict(draw, draw.available), draw.outcomes[:, 0]
    width = {}
    for again in (True, False):
        shift = shift_weights(here, few, draws=40, estimate_again=again)
        found = shifted_metrics(p, y, draw.index, shift, metrics=["brier"], thresholds=ShiftThresholds(0, 0, 9))
        width[again] = found["brier"].as_if.high - found["brier"].as_if.low
        assert shift.to_dict()["weights_estimated_in_each_draw"] is again
    assert width[True] > 1.1 * width[False]


def test_refuses_where_the_other_behaviour_is_too_far() -> None:
    made = world("mar")
    draw, here, there = made.behaviours(0)
    p, y = made.predict(draw, draw.available), draw.outcomes[:, 0]
    shift = shift_weights(here, there, draws=2)
    with pytest.raises(OverlapError, match=r"effective sample size .* is below 5000"):
        shifted_metrics(p, y, draw.index, shift, thresholds=ShiftThresholds(ess=5000))
    with pytest.raises(OverlapError, match=r"of the samples, below 0\.99"):
        shifted_metrics(p, y, draw.index, shift, thresholds=ShiftThresholds(ess_share=0.99))
    # everybody gets labs there, next to nobody here
    every, nobody = np.ones_like(there.observed), np.zeros_like(here.observed)
    nobody[:2] = True
    shift = shift_weights(replace(here, observed=nobody), replace(there, observed=every), draws=0)
    assert "weights average" in shift.refusal(ShiftThresholds())


def test_a_refusal_names_both_causes() -> None:
    """The same behaviour on both sides: the models have too many columns for so few samples."""
    g = np.random.default_rng(0)
    sides = (Behaviour(g.normal(size=(120, 40)), g.random((120, 6)) < 0.5, np.arange(120)) for _ in range(2))
    reason = shift_weights(*sides, draws=0).refusal(ShiftThresholds())
    assert "too rare here" in reason
    assert "too few samples for the columns" in reason


@pytest.mark.parametrize(("samples", "withheld"), [(7, True), (12, False)])
def test_few_samples_cannot_be_counted(samples: int, withheld: bool) -> None:
    weight = np.ones(samples)
    shift = ShiftWeights(weight, weight[None], weight[None], 0.0, 50, True)
    told = shift.to_dict()
    assert all((told[name] is None) == withheld for name in ("ess", "ess_share", "capped_share"))
    assert (str(samples) in shift.refusal(ShiftThresholds())) != withheld


def test_an_unknown_number_meets_no_condition() -> None:
    known = pl.DataFrame({"group/year": [2013.0, float("nan"), 2015.0]})
    assert AsIf.parse("year>2014").rows(known).tolist() == [False, False, True]


def test_weights_for_training_are_learned_from_training_samples(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, 300)
    schema, train = RecordSchema.from_dict(data.schema), data.samples_of("train")
    as_if, settings = AsIf.parse("site=s1"), AvailabilitySettings(always=["vitals"])
    met = as_if.rows(data.records.samples)[train]
    inside, outside = train[met], train[~met]
    seen = availability(data.records, ["vitals"], train)[:, 0]
    _, source, target, _ = _behaviours(data, schema, train, train, as_if, settings)
    assert (len(source.known), len(target.known)) == (seen[~met].sum(), seen[met].sum())
    patient = data.records.samples["patient"].to_numpy()
    assert set(target.patient) <= set(patient[inside])
    assert set(source.patient) <= set(patient[outside])
    # those of all splits, whom the evaluation learns from, are more
    every = np.arange(len(data.records))
    assert len(_behaviours(data, schema, train, every, as_if, settings)[2].known) > len(target.known)
    lenient = replace(settings, min_ess=1, min_shift_share=0)
    weight = shift_weights(source, target, draws=0).weight
    found = training_shift_weights(data, schema, as_if, lenient)
    assert np.isnan(np.delete(found, train)).all()
    assert found[train[~met][seen[~met]]] == pytest.approx(weight / weight.mean())


def test_denominators_of_other_folds_do_not_balance() -> None:
    """Ten columns of noise: weights of other folds average well above 1, those fitted on all samples do not."""
    means: dict[int, list[float]] = {1: [], 3: []}
    for number in range(20):
        _, here, there = world("mar").behaviours(number)
        g = np.random.default_rng(number)
        noisy = [replace(b, known=np.column_stack([b.known, g.normal(size=(PATIENTS, 10))])) for b in (here, there)]
        for folds, found in means.items():
            found.append(float(shift_weights(*noisy, folds=folds, draws=0).weight.mean()))
    assert np.mean(means[1]) == pytest.approx(1, abs=0.05)
    assert np.mean(means[3]) > 1.08


def test_trees_are_cross_fitted() -> None:
    """Turning a sample's own pattern round leaves the models that weight it as they are."""
    g = np.random.default_rng(0)
    here, there = (Behaviour(g.normal(size=(300, 1)), g.random((300, 1)) < 0.5, np.arange(300)) for _ in range(2))
    turned = here.observed.copy()
    turned[5] = ~turned[5]
    weights = [
        shift_weights(replace(here, observed=delta), there, learner="trees", folds=3, draws=0, cap=np.inf).weight[5]
        for delta in (here.observed, turned)
    ]
    # p / q and (1 − p) / (1 − q) of the same p and q lie on either side of 1
    assert (weights[0] - 1) * (weights[1] - 1) <= 0


def test_samples_of_a_patient_are_drawn_together() -> None:
    _, here, there = world("mar").behaviours(0)
    twice = Behaviour(here.known, here.observed, here.patient // 2)
    shift = shift_weights(twice, there, draws=10, estimate_again=False)
    assert (shift.counts[:, 0::2] == shift.counts[:, 1::2]).all()
    assert (shift.weights == shift.counts * shift.weight).all()


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "site": ["a", "b", None, "a"],
            "group/year": ["2013", "2014", "2015", None],
            "group/period": ["2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"],
        }
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("site=a", [True, False, False, True]),
        ("year<=2014", [True, True, False, False]),
        ("year >= 2014", [False, True, True, False]),
        ("group/year<2014", [True, False, False, False]),
        ("year>2014", [False, False, True, False]),
        ("period<=2013", [True, True, False, False]),
        ("period=2014 - 2016", [False, False, True, False]),
    ],
)
def test_conditions(given: str, expected: list[bool]) -> None:
    assert AsIf.parse(given).rows(frame()).tolist() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("site", "write site=X"),
        ("site~a", "write site=X"),
        ("site=c", "no sample meets it"),
        ("region=north", "no 'group/region'; there are: site, group/year, group/period"),
        ("year<=abc", "<= needs a number, and 'abc' is none"),
        ("year<=nan", "<= needs a number"),
        ("year>-inf", "> needs a number"),
        ("year<=2014-01", "<= needs a number"),
        ("period<=abc", "<= needs a number"),
        ("period>=0", "all samples meet it"),
    ],
)
def test_conditions_that_cannot_be_applied(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsIf.parse(given).rows(frame())


@pytest.mark.parametrize("what", ["source", "target"])
def test_both_sides_need_samples(what: Any) -> None:
    _, here, there = world("mar").behaviours(0)
    none = Behaviour(here.known[:0], here.observed[:0], here.patient[:0])
    with pytest.raises(ValueError, match=f"{what}: 0 samples"):
        shift_weights(none if what == "source" else here, none if what == "target" else there)
