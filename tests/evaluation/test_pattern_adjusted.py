"""The adjusted AUROC against its definition in pairs, and where the pattern says nothing beyond the risk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation.pattern_adjusted import adjusted_auroc, adjusted_auroc_interval, risk_strata


def drawn(seed: int, beyond: float, n: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score of the pattern, risk z and outcome; `beyond` is what availability knows of the outcome beyond z."""
    g = np.random.default_rng(seed)
    z, u = g.standard_normal((2, n))
    y = (g.random(n) < 1 / (1 + np.exp(2.2 - 1.2 * z - 0.9 * u))).astype(float)
    weights = np.array([1.5, 1.0, 1.2, 0.8])
    tendency = np.outer(z, weights) + beyond * u[:, None] + [0.0, 0.5, -0.5, 0.0]
    return (g.random((n, 4)) < 1 / (1 + np.exp(-tendency))) @ weights, z, y


def in_pairs(score: list[int], y: list[int], strata: list[int], weights: list[int]) -> float:
    """Σ over events of the mean over non-events of the same stratum, pair by pair."""
    top = bottom = 0.0
    for si, yi, ai, wi in zip(score, y, strata, weights, strict=True):
        others = [
            (w, (si > s) + (si == s) / 2)
            for s, yj, a, w in zip(score, y, strata, weights, strict=True)
            if not yj and a == ai
        ]
        mass = sum(w for w, _ in others)
        if yi and mass:
            top += wi * sum(w * v for w, v in others) / mass
            bottom += wi
    return top / bottom if bottom else float("nan")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30
    )
)
def test_it_is_the_mean_over_events_of_pairs_inside_strata(rows: list[tuple[int, int, int, int]]) -> None:
    score, y, strata, weights = ([row[j] for row in rows] for j in range(4))
    found = adjusted_auroc(score, y, strata)(np.array([weights, np.ones(len(rows))], dtype=float))
    expected = [in_pairs(score, y, strata, w) for w in (weights, [1] * len(rows))]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_one_stratum_is_the_plain_auroc() -> None:
    score, _, y = drawn(0, 0.5)
    found = adjusted_auroc(score, y, np.zeros(len(y), dtype=int))(np.ones((1, len(y))))[0]
    assert found == pytest.approx(roc_auc_score(y, score))


def test_a_pattern_that_follows_the_risk_alone_is_at_one_half() -> None:
    """120 draws: nominal share of intervals around ½ within 0.1 % of binomial noise, where the plain AUROC is far off.

    The companion adjusts by thirds of the risk: what is left inside them moves the intervals off ½.
    """
    missed, coarse, plain, estimates = 0, 0, [], []
    for seed in range(120):
        score, z, y = drawn(seed, 0.0)
        interval = adjusted_auroc_interval(score, z, y, np.arange(len(y)), draws=200)
        missed += not interval.low <= 0.5 <= interval.high
        estimates.append(interval.estimate)
        plain.append(roc_auc_score(y, score))
        thirds = np.searchsorted(np.quantile(z, [1 / 3, 2 / 3]), z)
        coarse += bool(adjusted_auroc(score, y, thirds)(np.ones((1, len(y))))[0] > interval.high)
    assert min(plain) > 0.63
    assert abs(np.mean(estimates) - 0.5) < 3 * np.std(estimates) / np.sqrt(120)
    assert missed <= binom.ppf(0.999, 120, 0.05)
    assert coarse > 60


def test_a_pattern_that_knows_more_is_above_one_half() -> None:
    found = [
        adjusted_auroc_interval(score, z, y, np.arange(len(y)), draws=200)
        for score, z, y in (drawn(seed, 0.6) for seed in range(10))
    ]
    assert all(interval.low > 0.5 for interval in found)


def test_strata_hold_equally_many_events_and_more_with_more_of_them() -> None:
    _, z, y = drawn(0, 0.0, n=8000)
    strata = risk_strata(z, y)
    events = np.bincount(strata, weights=y)
    assert len(events) == 50
    assert events.max() - events.min() <= 2
    assert (np.diff(strata[np.argsort(z)]) >= 0).all()
    assert risk_strata(z[:60], y[:60]).max() == max(1, int(y[:60].sum()) // 10) - 1
    assert not risk_strata(z[:5], np.zeros(5)).any(), "without events there is one stratum"


def test_nothing_to_compare_is_nan() -> None:
    assert np.isnan(adjusted_auroc([1, 2], [1, 0], [0, 1])(np.ones((1, 2)))).all()


def test_too_few_events_are_not_adjusted() -> None:
    generator = np.random.default_rng(0)
    y = np.zeros(2000)
    y[:49] = 1
    score, risk, patient = generator.random(2000), generator.random(2000), np.arange(2000)
    with pytest.raises(ValueError, match="fewer than 50 events"):
        adjusted_auroc_interval(score, risk, y, patient)
    y[49] = 1
    assert np.isfinite(adjusted_auroc_interval(score, risk, y, patient, draws=50).estimate)
