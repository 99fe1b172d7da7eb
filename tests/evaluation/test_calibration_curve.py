"""Bins of a calibration curve: sizes, people, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve as reference

from mmnar_lightning.evaluation.calibration_curve import calibration_curve


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-1, 1.5, n)))
    return p, (rng.random(n) < p).astype(float)


def test_points_are_those_of_scikit_learn_with_intervals_of_scipy() -> None:
    p, y = drawn(1000)
    curve = calibration_curve(p, y, np.arange(1000))
    observed, predicted = reference(y, p, n_bins=10, strategy="quantile")
    assert curve.samples == [100] * 10
    assert curve.observed == pytest.approx(observed)
    assert curve.predicted == pytest.approx(predicted)
    for o, low, high in zip(curve.observed, curve.low, curve.high, strict=True):
        expected = binomtest(round(100 * o), 100).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_counts_people_and_not_their_samples() -> None:
    p, y = drawn(400)
    once = calibration_curve(p, y, np.arange(400), bins=4)
    thrice = calibration_curve(np.tile(p, 3), np.tile(y, 3), np.tile(np.arange(400), 3), bins=4)
    assert thrice.samples == [3 * n for n in once.samples]
    assert thrice.low == pytest.approx(once.low)
    assert thrice.high == pytest.approx(once.high)


@pytest.mark.parametrize(("people", "points"), [(9, 0), (10, 1), (25, 2), (100, 10)])
def test_no_point_is_of_fewer_than_ten_people(people: int, points: int) -> None:
    p, y = drawn(4 * people)
    patient = np.argsort(np.argsort(p)) // 4
    curve = calibration_curve(p, y, patient)
    assert len(curve.samples) == points
    assert sum(curve.samples) == (4 * people if points else 0)


def test_ties_share_a_bin_and_all_events_keep_the_interval_inside_one() -> None:
    curve = calibration_curve(np.full(50, 0.25), np.ones(50), np.arange(50))
    assert (curve.samples, curve.predicted, curve.observed, curve.high) == ([50], [0.25], [1.0], [1.0])
    assert 0.9 < curve.low[0] < 1


def test_nothing_gives_no_point_and_wrong_arguments_are_refused() -> None:
    assert calibration_curve([], [], []).samples == []
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration_curve([0.5], [1], [0], bins=0)
    with pytest.raises(ValueError, match=r"must all be \[n\]"):
        calibration_curve([0.5, 0.1], [1], [0])
