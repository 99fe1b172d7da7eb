"""The value of a modality against the truth of the simulator: right where ordering is ignorable, and only there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation.assignment import fit_assignment
from mmnar_lightning.evaluation.hiding import hide
from mmnar_lightning.evaluation.modality_value import (
    ModalityValue,
    modality_value,
    reweighted_auroc_gain,
    sample_losses,
)
from mmnar_lightning.evaluation.overlap import OverlapError
from mmnar_lightning.evaluation.sensitivity import clustered_error, gamma_bounds
from mmnar_lightning.records import RecordDataset, RecordSchema
from mmnar_lightning.simulation import CausalModel, Draw, Mechanism, MechanismKind, Outcome, View, concatenate

PATIENTS = 500
PILOT = range(5000, 5300)
"""Chunks whose 150,000 patients no replicate holds: they give the truth and the limits."""


def causal(kind: MechanismKind) -> CausalModel:
    # the sicker have labs more often, and it is in them that labs change the prediction
    views = (
        View("vitals", 3, noise=2.0, rate=1.0, direction=(1.0,)),
        View("labs", 2, noise=0.3, rate=0.5, direction=(1.0,)),
    )
    outcomes = (Outcome("death", 0.2, strength=3.0, direction=(1.0,)),)
    return CausalModel(views, outcomes, Mechanism(kind, 1.5), latent=1, seed=3, chunk_size=PATIENTS)


@dataclass(frozen=True)
class World:
    """A simulated world with a fixed model that predicts with and without labs.

    Args:
        model: Draws patients.
        without: Predicts from vitals.
        having: Predicts from vitals and labs.
        truth: E[loss without − loss with] over all patients.
        limit: What AIPW tends to, from true propensities.
    """

    model: CausalModel
    without: Any
    having: Any
    truth: float
    limit: float

    def difference(self, draw: Draw, targets: np.ndarray) -> np.ndarray:
        vitals, both = draw.values["vitals"], np.column_stack(list(draw.values.values()))
        first, second = self.without.predict_proba(vitals)[:, 1], self.having.predict_proba(both)[:, 1]
        return sample_losses("brier", first, targets) - sample_losses("brier", second, targets)

    def replicate(self, number: int) -> tuple[np.ndarray, ...]:
        """D, δ, π, w and patient of a chunk; nothing that would not be known."""
        draw = self.model.chunk(number)
        delta, w = draw.available[:, 1], draw.values["vitals"]
        d = np.where(delta, self.difference(draw, draw.outcomes[:, 0].astype(float)), np.nan)
        pi = fit_assignment(w, delta[:, None], draw.index, ["labs"]).raw[:, 0]
        return d, delta, pi, w, draw.index


@cache
def world(kind: MechanismKind) -> World:
    model = causal(kind)
    train = concatenate([model.chunk(number) for number in range(6000, 6010)])
    y, vitals, both = train.outcomes[:, 0], train.values["vitals"], np.column_stack(list(train.values.values()))
    made = World(model, LogisticRegression().fit(vitals, y), LogisticRegression().fit(both, y), 0.0, 0.0)
    pilot = concatenate([model.chunk(number) for number in PILOT])
    risk, w, p, delta = pilot.risk[:, 0], pilot.values["vitals"], pilot.propensity[:, 1], pilot.available[:, 1]
    # the Brier score is y² − 2yp + p²: its difference is linear in y, so that risks may stand for outcomes
    d = made.difference(pilot, risk)
    e = LogisticRegression().fit(w, delta).predict_proba(w)[:, 1]
    mu = Ridge(1.0).fit(w, d, sample_weight=p).predict(w)
    limit = float((mu + p * (d - mu) / e).mean())
    return World(model, made.without, made.having, float(d.mean()), limit)


@cache
def estimates(kind: MechanismKind, replicates: int) -> dict[str, np.ndarray]:
    """AIPW with the ends of its interval, and the plain mean of those who have labs."""
    rows = []
    for number in range(replicates):
        d, delta, pi, w, patient = world(kind).replicate(number)
        (found,) = gamma_bounds(d, delta, pi, w, patient, [1.0])
        rows.append([found.low, found.interval_low, found.interval_high, d[delta].mean()])
    return dict(zip(("aipw", "low", "high", "naive"), np.array(rows).T, strict=True))


def off(values: np.ndarray, expected: float) -> float:
    """Distance of the mean from what is expected, in standard errors."""
    return float((values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5))


def covered(found: dict[str, np.ndarray], truth: float) -> float:
    return float(((found["low"] <= truth) & (truth <= found["high"])).mean())


def slack(replicates: int) -> float:
    """Three standard errors of a share of 0.95."""
    return 3 * float((0.95 * 0.05 / replicates) ** 0.5)


def unbiased_where_ignorable(replicates: int) -> None:
    truth, found = world("mar").truth, estimates("mar", replicates)
    assert abs(off(found["aipw"], truth)) < 3
    assert abs(covered(found, truth) - 0.95) < slack(replicates)
    assert abs(off(found["naive"], truth)) > 6


def biased_as_predicted_where_not(replicates: int) -> None:
    made, found = world("mnar"), estimates("mnar", replicates)
    assert abs(off(found["aipw"], made.limit)) < 3
    assert abs(off(found["aipw"], made.truth)) > 6
    assert covered(found, made.truth) < 0.95 - slack(replicates)


def test_aipw_is_unbiased_where_ordering_is_ignorable() -> None:
    unbiased_where_ignorable(100)


def test_aipw_is_wrong_by_the_predicted_amount_where_it_is_not() -> None:
    biased_as_predicted_where_not(100)


@pytest.mark.slow
def test_both_over_many_replicates() -> None:
    unbiased_where_ignorable(1000)
    biased_as_predicted_where_not(1000)


@pytest.mark.parametrize("wrong", ["probability", "regression", "both"])
def test_one_of_two_models_may_be_wrong(wrong: str) -> None:
    """Both right ones are known functions of w here; the wrong π is a constant, the wrong regression sees noise."""
    means = []
    for seed in range(60):
        g = np.random.default_rng(seed)
        w = g.normal(size=(400, 1))
        e = 1 / (1 + np.exp(-1.2 * w[:, 0]))
        delta = g.random(400) < e
        d = 0.3 + 0.5 * w[:, 0] + 0.3 * g.normal(size=400)
        pi = e if wrong == "regression" else np.full(400, delta.mean())
        known = w if wrong == "probability" else g.normal(size=(400, 1))
        means.append(gamma_bounds(d, delta, pi, known, np.arange(400), [1.0])[0].low)
    assert (abs(off(np.array(means), 0.3)) < 3) == (wrong != "both")


def correlated(seed: int, people: int = 100) -> tuple[np.ndarray, ...]:
    """Four samples a patient with a common part in D."""
    g = np.random.default_rng(seed)
    patient = np.repeat(np.arange(people), 4)
    w = g.normal(size=(4 * people, 1))
    d = 0.1 + 0.5 * g.normal(size=people)[patient] + 0.2 * g.normal(size=len(patient))
    return d, g.random(len(d)) < 0.6, np.full(len(d), 0.6), w, patient


def test_intervals_allow_for_patients_with_several_samples() -> None:
    inside: list[bool] = []
    blind: list[bool] = []
    for seed in range(100):
        d, delta, pi, w, patient = correlated(seed)
        for hits, people in ((inside, patient), (blind, np.arange(len(d)))):
            (found,) = gamma_bounds(d, delta, pi, w, people, [1.0])
            hits.append(found.interval_low <= 0.1 <= found.interval_high)
    assert np.mean(inside) > 0.95 - slack(100)
    assert np.mean(blind) < 0.85


def test_clustered_error_is_that_of_the_sums() -> None:
    g = np.random.default_rng(0)
    scores, patient = g.normal(size=(60, 2)), np.repeat(np.arange(20), 3)
    sums = scores.reshape(20, 3, 2).mean(1)
    assert clustered_error(scores, patient) == pytest.approx(sums.std(0, ddof=1) / 20**0.5)


def value_of(number: int, **options: Any) -> ModalityValue:
    d, delta, pi, w, patient = world("mar").replicate(number)
    return modality_value(d, np.zeros_like(d), delta, pi, w, patient, modality="labs", **options)


def test_an_estimate_comes_with_its_assumption_its_sweep_and_its_tipping_point() -> None:
    found = value_of(0)
    assert (found.estimate, found.low, found.high) == (
        found.sweep[0].low,
        found.sweep[0].interval_low,
        found.sweep[0].interval_high,
    )
    low, high = [b.interval_low for b in found.sweep], [b.interval_high for b in found.sweep]
    assert low == sorted(low, reverse=True)
    assert high == sorted(high)
    assert found.tipping is not None
    # 0 is outside just before and inside from there on
    for bound in found.sweep:
        assert (bound.interval_low <= 0 <= bound.interval_high) == (bound.gamma >= found.tipping)
    told = found.to_dict()
    assert told["assumption"].startswith("under ignorability")
    assert {"sweep", "tipping_gamma", "among_recorded"} <= set(told)
    assert "under ignorability" in str(found)
    assert "Γ" in str(found)


def test_what_needs_no_assumption_is_the_plain_mean() -> None:
    d, delta, pi, w, patient = world("mar").replicate(1)
    found = modality_value(d, np.zeros_like(d), delta, pi, w, patient)
    error = d[delta].std(ddof=1) / delta.sum() ** 0.5
    assert found.recorded == pytest.approx(
        (d[delta].mean(), d[delta].mean() - norm.ppf(0.975) * error, d[delta].mean() + norm.ppf(0.975) * error)
    )


def test_refuses_without_overlap() -> None:
    d, delta, pi, w, patient = world("mar").replicate(0)
    with pytest.raises(OverlapError, match=r"labs: 100% of the probabilities are outside"):
        modality_value(d, d, delta, np.full(len(d), 0.001), w, patient, modality="labs")
    with pytest.raises(OverlapError, match="effective sample size"):
        modality_value(d[:60], d[:60], delta[:60], pi[:60], w[:60], patient[:60])
    with pytest.raises(OverlapError, match="nobody who could have it has it"):
        modality_value(d, d, np.zeros_like(delta), pi, w, patient)


def test_those_for_whom_it_could_not_be_collected_are_left_out() -> None:
    d, delta, pi, w, patient = world("mar").replicate(0)
    kept = np.arange(len(d)) % 3 > 0
    nobody = np.where(kept, pi, np.nan)
    found = modality_value(d, np.zeros_like(d), delta, nobody, w, patient)
    alone = modality_value(d[kept], np.zeros(kept.sum()), delta[kept], pi[kept], w[kept], patient[kept])
    # columns are standardised over those who count, so that both are the same to the last digit
    assert found.estimate == alone.estimate
    assert found.samples == int(kept.sum())


def test_auroc_is_weighted_by_inverse_probabilities() -> None:
    g = np.random.default_rng(0)
    y, first, second = g.random(300) < 0.4, g.random(300), g.random(300)
    delta, pi = g.random(300) < 0.5, g.uniform(0.2, 0.9, 300)
    found = reweighted_auroc_gain(first, second, y, delta, pi, np.arange(300), draws=200)
    weight = 1 / pi[delta]
    expected = [roc_auc_score(y[delta], p[delta], sample_weight=weight) for p in (second, first)]
    assert found.estimate == pytest.approx(expected[0] - expected[1])
    assert found.low < found.estimate < found.high


@pytest.mark.parametrize("loss", ["brier", "log_loss"])
def test_losses_are_those_of_scikit_learn(loss: Any) -> None:
    from sklearn import metrics

    g = np.random.default_rng(0)
    p, y = g.random(50), g.random(50) < 0.3
    reference = {"brier": metrics.brier_score_loss, "log_loss": metrics.log_loss}[loss]
    assert sample_losses(loss, p, y).mean() == pytest.approx(reference(y, p))
    with pytest.raises(ValueError, match="not one of brier, log_loss"):
        sample_losses("hinge", p, y)  # type: ignore[arg-type]


def test_hiding_a_modality_is_a_store_without_it(make_datamodule: Any, tmp_path: Any) -> None:
    data = make_datamodule(tmp_path, 60)
    schema = RecordSchema.from_dict(data.schema)
    batch = RecordDataset(data.records, schema, np.arange(40)).__getitems__(range(40))
    for m, name in enumerate(schema.names):
        hidden = hide(batch, name)
        assert batch.observed[:, m].any()
        assert not hidden.observed[:, m].any()
        assert len(hidden.elements[name].row) == len(hidden.elements[name].values) == 0
        others = [k for k in range(len(schema.names)) if k != m]
        assert (hidden.observed[:, others] == batch.observed[:, others]).all()
        assert all(hidden.elements[schema.names[k]] is batch.elements[schema.names[k]] for k in others)
    with pytest.raises(ValueError, match="no modality 'films'; there are: vitals"):
        hide(batch, "films")
