"""The worst pattern's AUROC: shrunken where the raw minimum reads low, covered on average over patterns."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation.worst_pattern import PatternAuroc, pattern_aurocs

SIZES = (40, 60, 60, 80, 100, 150, 200, 300, 400, 600, 900, 1500)


def drawn(seed: int, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, outcomes, pattern, and the true AUROC of each pattern ~ N(0.75, τ²), binormal."""
    g = np.random.default_rng(seed)
    truth = np.clip(0.75 + tau * g.standard_normal(len(SIZES)), 0.55, 0.95)
    pattern = np.repeat(np.arange(len(SIZES)), SIZES)
    y = (g.random(len(pattern)) < 0.35).astype(float)
    score = g.standard_normal(len(pattern)) + y * np.sqrt(2) * norm.ppf(truth)[pattern]
    return 1 / (1 + np.exp(-score)), y, pattern, truth


def estimates(seed: int, tau: float) -> tuple[list[PatternAuroc], np.ndarray]:
    p, y, pattern, truth = drawn(seed, tau)
    return pattern_aurocs(p, y, pattern, np.arange(len(y))), truth


def test_raw_is_the_auroc_inside_a_pattern_and_order_is_by_shrunken() -> None:
    p, y, pattern, _ = drawn(0, 0.05)
    found = pattern_aurocs(p, y, pattern, np.arange(len(y)))
    for row in found:
        own = pattern == row.pattern
        assert row.raw == pytest.approx(roc_auc_score(y[own], p[own]))
        assert row.low <= row.shrunken <= row.high
    assert [row.shrunken for row in found] == sorted(row.shrunken for row in found)


@pytest.mark.parametrize("tau", [0.0, 0.03, 0.08])
def test_intervals_cover_on_average_over_patterns(tau: float) -> None:
    """150 draws × 12 patterns; without variation over patterns the prior of τ makes them wide."""
    inside = []
    for seed in range(150):
        found, truth = estimates(seed, tau)
        inside += [row.low <= truth[row.pattern] <= row.high for row in found]
    assert len(inside) > 1600
    assert np.mean(inside) > 0.93
    assert tau == 0 or np.mean(inside) < 0.985


def test_the_raw_minimum_reads_low_and_the_shrunken_one_does_not() -> None:
    """Where all patterns are alike, the truth of whichever is worst is 0.75."""
    raw, shrunken, covered = [], [], []
    for seed in range(100):
        found, _ = estimates(seed, 0.0)
        raw.append(min(row.raw for row in found))
        shrunken.append(found[0].shrunken)
        covered.append(found[0].low <= 0.75 <= found[0].high)
    assert np.mean(raw) < 0.67
    assert np.mean(shrunken) > 0.73
    assert np.mean(covered) > 0.9


def test_a_pattern_that_is_truly_worse_is_found() -> None:
    p, y, pattern, _ = drawn(1, 0.0)
    g = np.random.default_rng(0)
    p[pattern == 11] = g.random(1500)
    worst = pattern_aurocs(p, y, pattern, np.arange(len(y)))[0]
    assert worst.pattern == 11
    assert worst.high < 0.6


def test_only_patterns_with_ten_people_of_each_class() -> None:
    y = np.tile([1.0, 0.0], 20)
    p, pattern = np.linspace(0.1, 0.9, 40), np.repeat([0, 1], 20)
    assert [row.pattern for row in pattern_aurocs(p, y, pattern, np.arange(40))] == [0, 1]
    people = np.arange(40)
    people[pattern == 1] //= 4
    assert [row.pattern for row in pattern_aurocs(p, y, pattern, people)] == [0], "rows of few people are few"
    assert pattern_aurocs(p[:10], y[:10], pattern[:10], people[:10]) == []


def test_a_perfect_small_pattern_is_shrunken() -> None:
    p, y, pattern, _ = drawn(2, 0.0)
    own = pattern == 0
    p[own] = np.where(y[own] == 1, 0.9, 0.1)
    row = next(r for r in pattern_aurocs(p, y, pattern, np.arange(len(y))) if r.pattern == 0)
    assert row.raw == 1
    assert row.shrunken < 0.95
    assert row.high <= 1
