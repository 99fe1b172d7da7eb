"""Many statistics on the same draws, against one metric at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation import bootstrap_interval
from mmnar_lightning.evaluation.intervals import bootstrap_statistics, bounded_draws, metric_statistic, row_cells

METRICS = ("auroc", "auprc", "brier", "log_loss")


def drawn(seed: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), g.integers(1, 4, patients))
    risk = (g.standard_normal(patients) - 1)[patient]
    y = (g.random(len(patient)) < 1 / (1 + np.exp(-risk))).astype(float)
    return 1 / (1 + np.exp(-risk - 0.7 * g.standard_normal(len(patient)))), y, patient


def test_intervals_are_those_of_one_metric_at_a_time() -> None:
    p, y, patient = drawn(0, 400)
    p[::3] = np.round(p[::3], 1)  # ties
    found = bootstrap_statistics({m: metric_statistic(m, p, y) for m in METRICS}, patient, draws=300, seed=5)
    for metric in METRICS:
        alone = bootstrap_interval(metric, p, y, patient, draws=300, seed=5)
        ends = (found[metric].estimate, found[metric].low, found[metric].high)
        assert ends == pytest.approx((alone.estimate, alone.low, alone.high), abs=1e-12)
        assert (found[metric].draws, found[metric].patients, found[metric].samples) == (300, 400, len(y))


def test_shared_ranks_move_nothing_that_can_be_seen() -> None:
    """Above 4,000 different scores neighbours share a rank: ends move by far less than the interval is wide."""
    p, y, patient = drawn(1, 10_000)
    found = bootstrap_statistics({m: metric_statistic(m, p, y) for m in METRICS[:2]}, patient, draws=200)
    for metric, interval in found.items():
        alone = bootstrap_interval(metric, p, y, patient, draws=200)
        width = alone.high - alone.low
        for end in ("estimate", "low", "high"):
            assert abs(getattr(interval, end) - getattr(alone, end)) < 0.03 * width, (metric, end)


def test_cells_add_weights_of_equal_rows() -> None:
    (first, second), add = row_cells(np.array([3, 1, 3, 3]), np.array([0, 1, 0, 1]))
    assert list(zip(first, second, strict=True)) == [(1, 1), (3, 0), (3, 1)]
    np.testing.assert_array_equal(add(np.array([[1.0, 2, 3, 4], [0, 1, 0, 0]])), [[2, 4, 4], [1, 0, 0]])


def test_one_class_has_no_ranking_interval_but_a_brier_score() -> None:
    p = np.linspace(0.1, 0.4, 30)
    found = bootstrap_statistics({m: metric_statistic(m, p, np.zeros(30)) for m in METRICS}, np.arange(30), draws=50)
    assert np.isnan([found["auroc"].estimate, found["auroc"].low, found["auprc"].high]).all()
    assert found["auroc"].draws == 0
    assert found["brier"].low < found["brier"].estimate < found["brier"].high


def test_no_row_at_all() -> None:
    found = bootstrap_statistics({"auroc": metric_statistic("auroc", [], [])}, [], draws=10)
    assert np.isnan(found["auroc"].estimate)
    assert found["auroc"].samples == 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="no metric 'au'"):
        metric_statistic("au", [0.5], [1])
    with pytest.raises(ValueError, match="both must be"):
        metric_statistic("auroc", [0.5, 0.5], [1])
    with pytest.raises(ValueError, match="1 rows with a probability that is not finite, 1 with a target"):
        metric_statistic("auroc", [0.5, np.nan], [1, 2])
    with pytest.raises(ValueError, match="draws must be"):
        bootstrap_statistics({}, [1], draws=0)


def test_draws_are_bounded_by_rows() -> None:
    assert [bounded_draws(n) for n in (0, 100, 30_000, 60_000, 100_000, 10**6)] == [1000, 1000, 1000, 500, 300, 200]


@pytest.mark.slow
def test_a_task_of_a_hundred_thousand_rows_takes_seconds() -> None:
    """Three versions and four metrics: 5 s on a free core of two; the bound leaves room for a busy machine."""
    p, y, patient = drawn(2, 50_000)
    begun = time.perf_counter()
    versions = {f"{v}/{m}": metric_statistic(m, p**v, y) for v in (1, 2, 3) for m in METRICS}
    bootstrap_statistics(versions, patient, draws=bounded_draws(len(y)))
    assert time.perf_counter() - begun < 60


def test_ties_among_very_many_scores_share_a_rank_in_whatever_order_rows_are() -> None:
    generator = np.random.default_rng(0)
    p = np.concatenate([generator.random(10_000), np.full(10_000, 0.5)])
    # inside the tie, all events come first
    y = np.concatenate([generator.random(10_000) < 0.5, np.arange(10_000) < 5_000]).astype(float)
    found = metric_statistic("auroc", p, y)(np.ones((1, len(p))))[0]
    assert found == pytest.approx(roc_auc_score(y, p), abs=1e-3)
