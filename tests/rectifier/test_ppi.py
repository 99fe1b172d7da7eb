"""Prediction-powered means against the authors' package, and their coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from mmnar_lightning.rectifier import powered_mean

Array = NDArray[Any]


def drawn(seed: int, n: int, N: int, bias: float = 0.5) -> tuple[Array, Array, Array]:
    """Labels [n] and biased predictions [n], [N] of one pattern; E[y] = 0.3 in the limit of no noise."""
    g = np.random.default_rng(seed)
    risk = g.beta(1.5, 3.5, n + N)
    y = (g.random(n + N) < risk).astype(float)
    f = 1 / (1 + np.exp(-np.log(risk / (1 - risk)) - bias))
    return y[:n], f[:n], f[n:]


@pytest.mark.filterwarnings("ignore")  # what the reference imports warns of itself
@pytest.mark.parametrize(("n", "N"), [(40, 300), (200, 50), (500, 5000)])
@pytest.mark.parametrize("power", [None, 0.0, 0.4, 1.0])
def test_equals_the_authors_package(n: int, N: int, power: float | None) -> None:
    reference = pytest.importorskip("ppi_py")
    y, f, u = drawn(n, n, N)
    found = powered_mean(y, f, u, power=power, level=0.9)
    (low,), (high,) = reference.ppi_mean_ci(y, f, u, alpha=0.1, lam=power)
    point = np.ravel(reference.ppi_mean_pointestimate(y, f, u, lam=power))[0]
    np.testing.assert_allclose([found.low, found.estimate, found.high], [low, point, high], atol=1e-12)


@pytest.mark.parametrize("power", [None, 0.0, 0.4, 1.0])
def test_equals_the_formula_by_hand(power: float | None) -> None:
    y, f, u = drawn(3, 120, 400)
    found = powered_mean(y, f, u, power=power)
    lam = found.power
    if power is None:
        covariance = np.cov(y, f, ddof=0)[0, 1]
        assert lam == pytest.approx(covariance / ((1 + 120 / 400) * np.var([*f, *u], ddof=1)))
        assert 0.3 < lam < 1
    sd = np.sqrt(lam**2 * np.var(u) / 400 + np.var(y - lam * f) / 120)
    mean = lam * u.mean() + (y - lam * f).mean()
    expected = [mean - norm.ppf(0.975) * sd, mean, mean + norm.ppf(0.975) * sd]
    np.testing.assert_allclose([found.low, found.estimate, found.high], expected, atol=1e-12)


def test_tuning_shortens_the_interval_and_predictions_without_use_get_no_power() -> None:
    y, f, u = drawn(5, 300, 3000)
    width = {power: np.ptp([(r := powered_mean(y, f, u, power=power)).low, r.high]) for power in (None, 0.0, 1.0)}
    assert width[None] < min(width[0.0], width[1.0])
    g = np.random.default_rng(0)
    assert powered_mean(y, 1 - f, 1 - u).power == 0  # never negative
    assert powered_mean(y, g.random(300), g.random(3000)).power < 0.15
    assert powered_mean(y, np.full(300, 0.2), np.full(3000, 0.2)).power == 0


def test_without_unlabelled_rows_it_is_the_mean_of_the_labels() -> None:
    y, f, _ = drawn(6, 80, 10)
    found = powered_mean(y, f, [])
    half = norm.ppf(0.975) * y.std() / np.sqrt(80)
    np.testing.assert_allclose([found.low, found.estimate, found.high], [y.mean() - half, y.mean(), y.mean() + half])
    assert (found.power, found.unlabelled, found.patients) == (0, 0, 80)


def test_each_row_twice_is_half_the_information_only_with_the_patients() -> None:
    y, f, u = drawn(7, 150, 600)
    once = powered_mean(y, f, u, power=0.8)
    twice = [np.repeat(values, 2) for values in (y, f, u)]
    patients: dict[str, Any] = {
        "patient": np.repeat(np.arange(150), 2),
        "other_patient": np.repeat(np.arange(600), 2) + 1000,
    }
    known = powered_mean(*twice, power=0.8, **patients)
    blind = powered_mean(*twice, power=0.8)
    np.testing.assert_allclose([known.low, known.high], [once.low, once.high])
    assert known.patients == 750
    assert np.ptp([blind.low, blind.high]) == pytest.approx(np.ptp([once.low, once.high]) / np.sqrt(2))


def test_a_patient_with_rows_on_both_sides_is_one_cluster() -> None:
    # its rows' parts are added before they are squared: here they cancel
    y, f, u = np.array([1.0, 0.0] * 30), np.array([0.5, 0.5] * 30), np.array([0.4, 0.6] * 30)
    people = np.arange(60)
    apart = powered_mean(y, f, u, patient=people, other_patient=people + 60, power=1.0)
    joined = powered_mean(y, f, u, patient=people, other_patient=people, power=1.0)
    assert joined.patients == 60
    assert apart.patients == 120
    sd = np.sqrt(np.sum(((y - 0.5) / 60 + (u - 0.5) / 60) ** 2))
    assert joined.high - joined.low == pytest.approx(2 * norm.ppf(0.975) * sd)
    assert joined.high - joined.low < apart.high - apart.low


@pytest.mark.parametrize(("rows", "power"), [("independent", None), ("independent", 1.0), ("repeated", None)])
def test_intervals_of_unshrunk_means_cover_over_500_draws(rows: str, power: float | None) -> None:
    """95 % intervals of four patterns, 100 to 400 labelled rows, E[y] = 0.3: 93–97 % (binomial SE 0.5 %)."""
    covered: list[bool] = []
    blind: list[bool] = []
    for seed in range(500):
        for pattern, n in enumerate((100, 150, 250, 400)):
            y, f, u = drawn(10 * seed + pattern, n, 3 * n)
            people: dict[str, Any] = {}
            if rows == "repeated":
                # each patient three times, the same outcome and prediction
                y, f, u = (np.repeat(values, 3) for values in (y, f, u))
                people = {"patient": np.repeat(np.arange(n), 3), "other_patient": n + np.repeat(np.arange(3 * n), 3)}
            for result, options in ((covered, people), (blind, {})):
                found = powered_mean(y, f, u, power=power, **options)
                result.append(found.low <= 0.3 <= found.high)
    assert 0.93 < np.mean(covered) < 0.97
    # companion: intervals that take rows for people do not pass
    assert (np.mean(blind) < 0.85) == (rows == "repeated")


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="0 targets"):
        powered_mean([], [], [0.5])
    with pytest.raises(ValueError, match="2 targets, 1 predictions"):
        powered_mean([0, 1], [0.5], [0.5])
    with pytest.raises(ValueError, match="finite"):
        powered_mean([0, 1], [0.5, np.nan], [0.5])
    with pytest.raises(ValueError, match="power 2"):
        powered_mean([0, 1], [0.5, 0.5], [0.5], power=2)
    with pytest.raises(ValueError, match="1 and 1 patients for 2 and 1 rows"):
        powered_mean([0, 1], [0.5, 0.5], [0.5], patient=[1])
