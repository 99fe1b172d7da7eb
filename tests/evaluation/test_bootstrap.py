"""The patient bootstrap against plain loops, and its coverage."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation import bootstrap_difference, bootstrap_interval
from mmnar_lightning.metrics import BINARY_METRICS


def drawn(seed: int, patients: int, most: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, targets and patient of 1 … `most` correlated samples a patient."""
    g = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), g.integers(1, most + 1, patients))
    risk = (g.standard_normal(patients) - 0.5)[patient]
    y = (g.random(len(patient)) < 1 / (1 + np.exp(-risk))).astype(float)
    p = 1 / (1 + np.exp(-risk - 0.7 * g.standard_normal(len(patient))))
    return p, y, np.array([f"p{i}" for i in patient])


@pytest.mark.parametrize("name", list(BINARY_METRICS))
def test_interval_equals_a_plain_loop(name: str) -> None:
    """Same distribution, other random numbers: ends agree within the Monte Carlo error of 600 draws."""
    p, y, patient = drawn(0, 120)
    metric = BINARY_METRICS[name].of
    found = bootstrap_interval(name, p, y, patient, draws=3000)
    g, people = np.random.default_rng(7), np.unique(patient)
    rows = {i: np.flatnonzero(patient == i) for i in people}
    loop = []
    for _ in range(600):
        index = np.concatenate([rows[i] for i in g.choice(people, len(people))])
        weights = np.bincount(index, minlength=len(y)).astype(float)[None]
        # excess ECE allows for rows that were drawn twice, and keeps its bins: it must see weights
        loop.append(metric(p, y, weights)[0] if name == "excess_ece" else metric(p[index], y[index], None)[0])
    assert found.estimate == pytest.approx(metric(p, y, None)[0])
    assert (found.patients, found.samples, found.draws) == (120, len(y), 3000)
    spread = np.std(loop)
    assert abs(found.low - np.quantile(loop, 0.025)) < 0.35 * spread
    assert abs(found.high - np.quantile(loop, 0.975)) < 0.35 * spread


def test_folds_are_averaged_and_resampled_apart() -> None:
    p, y, patient = drawn(1, 200)
    fold = np.array([int(i[1:]) % 5 for i in patient])
    p = np.clip(p + 0.15 * fold, 0, 1)  # models of different folds are on different scales: pooling would mix them
    found = bootstrap_interval("auroc", p, y, patient, fold=fold, draws=2000)
    expected = np.mean([roc_auc_score(y[fold == f], p[fold == f]) for f in range(5)])
    assert found.estimate == pytest.approx(expected)
    assert abs(found.estimate - roc_auc_score(y, p)) > 0.01
    g, loop = np.random.default_rng(3), []
    for _ in range(300):
        values = []
        for f in range(5):
            people = np.unique(patient[fold == f])
            index = np.concatenate([np.flatnonzero(patient == i) for i in g.choice(people, len(people))])
            values.append(roc_auc_score(y[index], p[index]))
        loop.append(np.mean(values))
    assert found.low == pytest.approx(np.quantile(loop, 0.025), abs=0.35 * np.std(loop))
    assert found.high == pytest.approx(np.quantile(loop, 0.975), abs=0.35 * np.std(loop))


def test_difference_is_paired() -> None:
    p, y, patient = drawn(2, 300)
    close = np.clip(p + 0.01 * np.random.default_rng(0).standard_normal(len(p)), 0, 1)
    alone = bootstrap_interval("auroc", p, y, patient)
    paired = bootstrap_difference("auroc", p, close, y, patient)
    assert paired.estimate == pytest.approx(roc_auc_score(y, p) - roc_auc_score(y, close))
    assert paired.low <= paired.estimate <= paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    nothing = bootstrap_difference("brier", p, p, y, patient, draws=50)
    assert (nothing.estimate, nothing.low, nothing.high) == (0, 0, 0)


def test_patients_not_rows_are_resampled() -> None:
    """Ten copies of every row carry no information: the interval must not shrink."""
    p, y, patient = drawn(3, 150, most=1)
    once = bootstrap_interval("auroc", p, y, patient)
    copies = bootstrap_interval("auroc", np.tile(p, 10), np.tile(y, 10), np.tile(patient, 10))
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.1)
    rows = bootstrap_interval("auroc", np.tile(p, 10), np.tile(y, 10), np.arange(10 * len(y)))
    assert rows.high - rows.low < 0.5 * (once.high - once.low)


def test_coverage_is_near_nominal() -> None:
    seeds, inside, truth = 150, 0, 0.5
    for seed in range(seeds):
        g = np.random.default_rng(seed)
        patient = np.repeat(np.arange(150), 2)
        score = np.repeat(g.random(150), 2)  # both samples of a patient alike, labels independent: AUROC is ½
        y = np.repeat((g.random(150) < 0.3).astype(float), 2)
        found = bootstrap_interval("auroc", score, y, patient, draws=300)
        inside += found.low <= truth <= found.high
    low, high = binom.ppf([0.001, 0.999], seeds, 0.94)  # percentile intervals of 300 draws cover a little less
    assert low <= inside <= high


def test_same_seed_same_interval_and_labelled_rows_only() -> None:
    p, y, patient = drawn(4, 100)
    labelled = np.random.default_rng(0).random(len(y)) < 0.7
    noise = np.where(labelled, y, np.nan)
    spoilt = np.where(labelled, p, np.nan)
    found = bootstrap_interval("auroc", spoilt, noise, patient, labelled=labelled, seed=5)
    again = bootstrap_interval("auroc", p[labelled], y[labelled], patient[labelled], seed=5)
    assert found == again
    assert found != bootstrap_interval("auroc", p[labelled], y[labelled], patient[labelled], seed=6)
    assert found.samples == labelled.sum()
    assert str(found).count(".") == 3


def test_undefined_draws_are_counted_out() -> None:
    y = np.zeros(30)
    y[0] = 1
    g = np.random.default_rng(0)
    found = bootstrap_interval("auroc", g.random(30), y, np.arange(30), draws=1000)
    assert 500 < found.draws < 750  # a draw misses the one event with probability (29/30)^30 = 0.36
    nothing = bootstrap_interval("auroc", g.random(30), np.zeros(30), np.arange(30), draws=100)
    assert nothing.draws == 0
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()
    empty = bootstrap_interval("auroc", [], [], [], draws=100)
    assert (empty.samples, empty.draws) == (0, 0)


def test_wrong_input_is_one_error() -> None:
    p, y, patient = drawn(5, 20)
    with pytest.raises(ValueError, match="2 patients have samples in more than one test fold"):
        bootstrap_interval("auroc", np.full(6, 0.5), np.ones(6), [1, 1, 2, 2, 3, 3], fold=[0, 1, 0, 1, 0, 0])
    with pytest.raises(ValueError, match="1 rows with a probability that is not finite, 0 with"):
        bootstrap_interval("auroc", np.append(p[1:], np.nan), y, patient)
    with pytest.raises(ValueError, match="must be"):
        bootstrap_interval("auroc", p[1:], y, patient)
    with pytest.raises(ValueError, match="patient"):
        bootstrap_interval("auroc", p, y, patient[1:])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval("auroc", p, y, patient, level=95)
    with pytest.raises(ValueError, match="no metric"):
        bootstrap_interval("accuracy", p, y, patient)


def test_draws_of_a_thousand_samples_cost_a_fraction_of_a_loop() -> None:
    p, y, patient = drawn(6, 500)
    start = time.perf_counter()
    bootstrap_interval("auroc", p, y, patient, draws=1000)
    ours = (time.perf_counter() - start) / 1000
    start = time.perf_counter()
    for _ in range(50):
        roc_auc_score(y, p)
    # alone the ratio is about 1/15
    assert ours < (time.perf_counter() - start) / 50 / 3
