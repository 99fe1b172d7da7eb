"""Metrics by group: against weighted metrics on the same draws, and what small groups may say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmnar_lightning.evaluation.bootstrap import patient_weights
from mmnar_lightning.evaluation.groups import GROUP_METRICS, GroupRow, by_group
from mmnar_lightning.metrics import binary_metric

NAMES = ("vitals", "labs", "notes")


def made(n: int = 1200, seed: int = 0) -> dict[str, Any]:
    """Samples of about n / 1.3 people, one task, with patterns of three modalities."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-1, 1.2, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)
    p = 1 / (1 + np.exp(-(x + rng.normal(0, 0.7, n))))
    return {
        "scores": {"raw": p[:, None], "rectified": p[:, None] ** 1.2},
        "targets": y[:, None],
        "labelled": rng.random((n, 1)) < 0.95,
        "patient": rng.integers(int(n / 1.3), size=n),
        "tasks": ["death"],
        "variables": {"sex": rng.choice(np.array(["female", "male", None], dtype=object), n, p=[0.4, 0.55, 0.05])},
        "pattern": rng.choice([7, 3, 5, 6, 1, 2], n, p=[0.5, 0.3, 0.08, 0.08, 0.02, 0.02]),
        "modalities": NAMES,
    }


def row_of(rows: list[GroupRow], variable: str, group: str) -> GroupRow:
    return next(row for row in rows if (row.variable, row.group) == (variable, group))


def draws_of(patient: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(np.random.SeedSequence(0).spawn(1)[0])
    member = np.unique(patient, return_inverse=True)[1].astype(np.int64)
    return np.concatenate(list(patient_weights(member, draws, generator)))


def test_intervals_are_those_of_the_metrics_on_shared_draws_of_patients() -> None:
    # 400 rows: no two share a rank that have not the same score
    data = made(400)
    rows = by_group(**data, draws=150)
    own = np.flatnonzero(data["labelled"][:, 0])
    weights = draws_of(data["patient"][own], 150)
    groups = {
        ("sex", "male"): data["variables"]["sex"][own] == "male",
        ("pattern", "vitals+labs"): data["pattern"][own] == 3,
    }
    for (variable, group), inside in groups.items():
        found = row_of(rows, variable, group)
        y = data["targets"][own, 0][inside]
        assert (found.samples, found.events) == (inside.sum(), y.sum())
        w = weights[:, inside]
        rate = (w @ y) / w.sum(1)
        assert found.rate == pytest.approx((y.mean(), *np.quantile(rate, [0.025, 0.975])), abs=1e-9)
        for version in ("raw", "rectified"):
            p = data["scores"][version][own, 0][inside]
            for name in GROUP_METRICS:
                of = binary_metric(name).of
                expected = (of(p, y, None)[0], *np.quantile(of(p, y, w), [0.025, 0.975]))
                assert found.metrics[version][name] == pytest.approx(expected, abs=1e-9), name


def test_many_scores_share_ranks_and_move_the_ends_little() -> None:
    data = made(6000)
    everyone = {"all": np.full(6000, "everyone", dtype=object)}
    found = by_group(**(data | {"variables": everyone, "pattern": None}), draws=200)[0]
    own = np.flatnonzero(data["labelled"][:, 0])
    weights, y, p = draws_of(data["patient"][own], 200), data["targets"][own, 0], data["scores"]["raw"][own, 0]
    for name in GROUP_METRICS:
        expected = np.quantile(binary_metric(name).of(p, y, weights), [0.025, 0.975])
        # a tenth of the interval's width would be seen
        assert found.metrics["raw"][name][1:] == pytest.approx(expected, abs=0.05 * float(np.ptp(expected))), name


def test_small_patterns_are_pooled_by_modality_count_and_then_together() -> None:
    data = made()
    rows = by_group(**data, draws=20)
    groups = [(row.variable, row.group) for row in rows if row.variable != "sex"]
    assert groups[:2] == [("pattern", "vitals+labs+notes"), ("pattern", "vitals+labs")]
    assert groups[-1][0] in ("pattern", "modality_count")
    sizes = [row.samples for row in rows if row.variable in ("pattern", "modality_count")]
    # every labelled sample is in exactly one of them
    assert sum(sizes) == data["labelled"].sum()
    few = made()
    few["targets"][np.isin(few["pattern"], [1, 2, 5]), 0] = 0.0
    few["targets"][np.flatnonzero(few["pattern"] == 5)[:5], 0] = 1.0
    told = {(row.variable, row.group): row for row in by_group(**few, draws=20) if row.variable != "sex"}
    # five people with the outcome would be told by subtraction: the next group is pooled with them
    assert ("pattern", "vitals+notes") not in told
    assert min(row.events or 0 for row in told.values()) >= 10


def test_a_group_with_few_events_has_its_size_alone_and_cannot_be_subtracted() -> None:
    data = made()
    rng = np.random.default_rng(1)
    unit = rng.choice(["a", "b", "c"], 1200, p=[0.6, 0.3, 0.1]).astype(object)
    data["targets"][unit == "c", 0] = 0.0
    data["targets"][np.flatnonzero(unit == "c")[:3], 0] = 1.0
    data["labelled"][:] = True
    rows = [row for row in by_group(**(data | {"variables": {"unit": unit}}), draws=20) if row.variable == "unit"]
    assert [row.group for row in rows] == ["a", "b", "c"]
    assert rows[2].samples == (unit == "c").sum()
    for row in rows[1:]:
        assert (row.events, row.rate, row.metrics) == (None, (None, None, None), {})
    assert rows[0].events is not None


def test_groups_of_fewer_than_ten_people_are_not_there() -> None:
    data = made()
    unit = np.full(1200, "large", dtype=object)
    nine = np.unique(data["patient"])[:9]
    unit[np.isin(data["patient"], nine)] = "small"
    data["labelled"][:] = True
    rows = by_group(**(data | {"variables": {"unit": unit}, "pattern": None}), draws=20)
    assert [row.group for row in rows] == ["large"]
    few = {name: data[name][:9] for name in ("targets", "labelled", "patient", "pattern")}
    scores = {name: p[:9] for name, p in data["scores"].items()}
    assert by_group(**(data | few | {"scores": scores, "variables": {"unit": unit[:9]}})) == []


def test_bands_come_in_the_order_of_their_numbers() -> None:
    bands = ["85+", "18-44", "<100", "100-249", ">=500", "unknown"]
    data = made(1200)
    variable = np.random.default_rng(0).choice(bands, 1200).astype(object)
    rows = by_group(**(data | {"variables": {"band": variable}, "pattern": None}), draws=20)
    assert [row.group for row in rows] == ["18-44", "85+", "<100", "100-249", ">=500", "unknown"]


def test_wrong_arguments_are_refused() -> None:
    data = made(100)
    with pytest.raises(ValueError, match="cannot be called 'pattern'"):
        by_group(**(data | {"variables": {"pattern": ["x"] * 100}}))
    with pytest.raises(ValueError, match="'sex' has 3 samples, not 100"):
        by_group(**(data | {"variables": {"sex": ["x"] * 3}}))
    with pytest.raises(ValueError, match=r"raw must be \[100, 1\]"):
        by_group(**(data | {"scores": {"raw": np.zeros((100, 2))}}))
