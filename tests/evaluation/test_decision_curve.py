"""Net benefit against its definition, and where the thresholds end."""

from __future__ import annotations

import numpy as np
import pytest

from mmnar_lightning.evaluation.decision_curve import decision_curve, told_thresholds


def test_net_benefit_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(300).round(2)
    y = (rng.random(300) < p).astype(float)
    curve = decision_curve(p, y)
    assert len(curve.threshold) == 99
    for t, net, everyone in zip(curve.threshold, curve.net_benefit, curve.treat_all, strict=True):
        acted = p >= t
        tp, fp = (acted & (y == 1)).sum(), (acted & (y == 0)).sum()
        assert net == pytest.approx(tp / 300 - fp / 300 * t / (1 - t))
        assert everyone == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t))


def test_a_perfect_model_is_worth_the_rate_and_one_that_flags_nobody_nothing() -> None:
    y = np.array([0.0] * 7 + [1.0] * 3)
    assert decision_curve(y, y, thresholds=[0.1, 0.9]).net_benefit == pytest.approx([0.3, 0.3])
    assert decision_curve(np.zeros(10), y, thresholds=[0.1]).net_benefit == [0.0]
    assert decision_curve([], []).threshold == []


def test_thresholds_end_where_fewer_than_ten_people_are_above() -> None:
    p = np.concatenate([np.full(90, 0.02), np.full(9, 0.9), [0.135]])
    y = np.tile([1.0, 1.0, 0.0, 0.0], 25)
    assert told_thresholds([p], y, np.arange(100))[-1] == 0.13
    # two samples of one person are one
    assert told_thresholds([p], y, np.append(np.arange(99), 98))[-1] == 0.02
    assert told_thresholds([p, np.full(100, 0.05)], y, np.arange(100))[-1] == 0.05
    assert told_thresholds([np.ones(9)], np.ones(9), np.arange(9)) == []


def test_thresholds_end_at_three_times_the_rate() -> None:
    high = np.full(100, 0.99)
    assert told_thresholds([high], np.repeat([1.0, 0.0], [10, 90]), np.arange(100))[-1] == 0.3
    assert told_thresholds([high], np.repeat([1.0, 0.0], [1, 99]), np.arange(100))[-1] == 0.2


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        decision_curve([0.5], [1], thresholds=[threshold])
