"""Every metric against scikit-learn, scipy or a plain loop; weights against repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from mmnar_lightning.metrics import (
    BINARY_METRICS,
    auprc,
    auroc,
    binary_metric,
    brier,
    calibration_intercept,
    calibration_slope,
    excess_ece,
    log_loss,
)


def drawn(seed: int, n: int, ties: bool = False, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-spread * g.standard_normal(n) + 1))
    p = np.round(p, 1) if ties else p
    return p, (g.random(n) < p).astype(float)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_and_scores_equal_scikit_learn(seed: int, ties: bool) -> None:
    p, y = drawn(seed, 200, ties)
    w = np.random.default_rng(seed).integers(0, 4, (3, 200)).astype(float)
    for weights, rows in ((None, [np.ones(200)]), (w, list(w))):
        for d, weight in enumerate(rows):
            assert auroc(p, y, weights)[d] == pytest.approx(roc_auc_score(y, p, sample_weight=weight), abs=1e-12)
            assert auprc(p, y, weights)[d] == pytest.approx(
                average_precision_score(y, p, sample_weight=weight), abs=1e-12
            )
            assert brier(p, y, weights)[d] == pytest.approx(brier_score_loss(y, p, sample_weight=weight), abs=1e-12)
            inside = np.clip(p, 1e-7, 1 - 1e-7)
            assert log_loss(p, y, weights)[d] == pytest.approx(
                sklearn_log_loss(y, inside, sample_weight=weight), abs=1e-9
            )


@pytest.mark.parametrize("seed", range(4))
def test_calibration_line_equals_an_optimiser(seed: int) -> None:
    p, y = drawn(seed, 300)
    x = 2 * np.log(p / (1 - p)) + 0.5
    q = 1 / (1 + np.exp(-x))

    def loss(b: float, s: float) -> float:
        eta = b + s * x
        return float(np.sum(np.logaddexp(0, eta) - y * eta))

    options = {"xatol": 1e-9, "fatol": 1e-10}
    line = minimize(lambda v: loss(v[0], v[1]), [0.0, 1.0], method="Nelder-Mead", options=options).x
    large = minimize(lambda v: loss(v[0], 1.0), [0.0], method="Nelder-Mead", options=options).x
    assert calibration_slope(q, y)[0] == pytest.approx(line[1], abs=1e-5)
    assert calibration_intercept(q, y)[0] == pytest.approx(large[0], abs=1e-5)
    assert calibration_slope(q, y)[0] == pytest.approx(0.5, abs=0.2)


def test_calibration_slope_of_separated_classes_is_not_defined() -> None:
    p, y = np.array([0.1, 0.2, 0.3, 0.7, 0.8]), np.array([0.0, 0, 0, 1, 1])
    assert np.isnan(calibration_slope(p, y)[0])
    assert np.isfinite(calibration_intercept(p, y)[0])
    assert np.isnan(calibration_slope(np.full(5, 0.3), y)[0])


@pytest.mark.parametrize(("n", "prevalence"), [(300, 0.3), (300, 0.05), (2000, 0.02), (40, 0.5)])
def test_excess_ece_of_true_probabilities_is_zero_on_average(n: int, prevalence: float) -> None:
    g = np.random.default_rng(0)
    p = 1 / (1 + np.exp(-g.standard_normal(n) - np.log(prevalence / (1 - prevalence))))
    values = [float(excess_ece(p, (g.random(n) < p).astype(float))[0]) for _ in range(600)]
    se = np.std(values) / np.sqrt(len(values))
    edges = np.quantile(p, np.linspace(0, 1, 11)[1:-1])
    bins = np.searchsorted(edges, p, side="right")
    plain = [
        float(np.abs(np.bincount(bins, (g.random(n) < p) - p)).sum() / n) for _ in range(600)
    ]  # the uncorrected error of the same true probabilities
    # the binomial stands in for a Poisson-binomial: allow 3 % of the error that is subtracted, and four SE
    assert abs(np.mean(values)) < 4 * se + 0.03 * np.mean(plain)
    if (n, prevalence) == (300, 0.3):
        assert np.mean(plain) > 0.03


def test_excess_ece_sees_a_miscalibrated_model_and_stays_centred_under_resampling() -> None:
    g = np.random.default_rng(1)
    p, y = drawn(3, 5000)
    assert excess_ece(np.clip(p + 0.1, 0, 1), y)[0] > 0.06
    centred = []
    for _ in range(60):
        y = (g.random(len(p)) < p).astype(float)
        w = g.multinomial(len(p), np.full(len(p), 1 / len(p)), 20).astype(float)
        centred.append(excess_ece(p, y, w).mean())
    # unweighted resampling would read about +0.4 × ECE ≈ 0.006 too high here
    assert abs(np.mean(centred)) < 0.001


def test_order_of_rows_does_not_matter_even_with_ties() -> None:
    p, y = drawn(5, 400, ties=True)
    order = np.random.default_rng(0).permutation(400)
    for metric in BINARY_METRICS.values():
        assert metric.of(p[order], y[order], None)[0] == pytest.approx(metric.of(p, y, None)[0], abs=1e-12), metric.name


def test_undefined_is_nan_and_an_empty_draw_too() -> None:
    p, empty = np.array([0.2, 0.7]), np.zeros(0)
    for metric in BINARY_METRICS.values():
        for y in (np.zeros(2), np.ones(2)):
            assert np.isnan(metric.of(p, y, None)[0]) == metric.needs_both_classes, metric.name
        assert np.isnan(metric.of(empty, empty, None)).all(), metric.name
        assert np.isnan(metric.of(p, np.array([0.0, 1.0]), np.zeros((3, 2)))).all(), metric.name
    with pytest.raises(ValueError, match="auroc, auprc"):
        binary_metric("accuracy")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=1, max_size=25),
    st.sampled_from([name for name in BINARY_METRICS if name != "excess_ece"]),
)
def test_a_weight_is_a_repeated_row(rows: list[tuple[int, bool, int]], name: str) -> None:
    # excess_ece is left out on purpose: it knows that a row drawn twice is not two independent rows
    p = np.array([r[0] for r in rows]) / 8
    y = np.array([r[1] for r in rows], dtype=float)
    w = np.array([r[2] for r in rows])
    index = np.repeat(np.arange(len(rows)), w)
    of = BINARY_METRICS[name].of
    np.testing.assert_allclose(of(p, y, w[None].astype(float))[0], of(p[index], y[index], None)[0], atol=1e-7)
