from __future__ import annotations

import math
import random
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import STATS, aggregate, items, pivot

Row = tuple[int, str, int, float]
VALUES = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, math.nan, math.inf, 1e-9])
ROWS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(-5, 5), VALUES), max_size=40)


def frame(rows: list[Row], ids: bool = True) -> pl.LazyFrame:
    numbered = [(*row, i) for i, row in enumerate(rows)] if ids else [(*row, 0) for row in rows]
    schema = {"sample": pl.Int64, "variable": pl.String, "available": pl.Int64, "value": pl.Float64, "id": pl.Int64}
    return pl.LazyFrame(numbered, schema=schema, orient="row")


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_against_plain_python(rows: list[Row]) -> None:
    found = aggregate(frame(rows), tie=["id"], stats=STATS).collect(engine="streaming")
    groups: dict[tuple[int, str], list[tuple[int, int, float]]] = {}
    for i, (sample, variable, time, value) in enumerate(rows):
        if math.isfinite(value):
            groups.setdefault((sample, variable), []).append((time, i, value))
    assert {(s, v) for s, v in found.select("sample", "variable").rows()} == set(groups)
    for row in found.rows(named=True):
        ordered = sorted(groups[row["sample"], row["variable"]])
        values = [value for _, _, value in ordered]
        assert row["last"] == values[-1]
        assert row["first"] == values[0]
        assert row["delta"] == values[-1] - values[0]
        assert (row["min"], row["max"], row["count"]) == (min(values), max(values), len(values))
        exact = sum(map(Fraction, values), Fraction(0)) / len(values)
        # each value is rounded to 2^-32, the result once more to a double
        assert abs(Fraction(row["mean"]) - exact) <= Fraction(1, 2**32) + abs(exact) / 2**50


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_changes_no_byte(rows: list[Row], draw: random.Random) -> None:
    """Without an id to break ties, too: zeros of both signs and equal times included."""
    shuffled = rows[:]
    draw.shuffle(shuffled)
    made = []
    for some in (rows, shuffled):
        wide = pivot(aggregate(frame(some, ids=False), tie=["id"], stats=STATS), ["b", "a"], STATS)
        made.append((wide.columns, wide["sample"].to_list(), [wide[c].to_numpy().tobytes() for c in wide.columns]))
    assert made[0] == made[1]


def test_many_rows_in_any_order_are_bit_stable() -> None:
    draw = random.Random(1)
    rows = [(draw.randrange(50), draw.choice("ab"), draw.randrange(100), draw.gauss(100, 30)) for _ in range(100_000)]
    table = frame(rows).collect()
    made = set()
    for seed in range(4):
        mixed = table.sample(fraction=1, shuffle=True, seed=seed)
        wide = pivot(aggregate(mixed.lazy(), tie=["id"], stats=STATS), ["a", "b"], STATS)
        made.add(b"".join(wide[c].to_numpy().tobytes() for c in wide.columns))
    assert len(made) == 1


def test_pivot_has_every_item_in_order_also_without_data() -> None:
    stats = ("last", "count")
    rows: list[Row] = [(2, "b", 0, 1.0), (0, "b", 0, 2.0), (0, "b", 1, 3.0)]
    wide = pivot(aggregate(frame(rows), stats=stats), ["c", "b"], stats)
    assert tuple(wide.columns) == ("sample", *items(["c", "b"], stats))
    assert wide.columns == ["sample", "c_last", "c_count", "b_last", "b_count"]
    assert wide.rows() == [(0, None, None, 3.0, 2.0), (2, None, None, 1.0, 1.0)]
    assert wide.dtypes[1:] == [pl.Float32] * 4
    none = pivot(aggregate(frame([]), stats=stats), ["c", "b"], stats)
    assert none.shape == (0, 5)
    assert none.schema == wide.schema


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="median; there are: last"):
        aggregate(frame([]), stats=["median"])
    with pytest.raises(ValueError, match="1 rows of variables"):
        pivot(aggregate(frame([(0, "z", 0, 1.0)]), stats=["last"]), ["a"], ["last"])
    long = pl.LazyFrame({"sample": [0, 0], "variable": ["a", "a"], "last": [1.0, 2.0]})
    with pytest.raises(ValueError, match="repeat"):
        pivot(long, ["a"], ["last"])
