from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, ExtractError, ItemCatalogue

HEADER = "raw_id,variable,unit,factor,offset,low,high,description\n"
TEXT = (
    HEADER
    + "10,temperature,F,0.5555555555555556,-17.77777777777778,25,45,\n"
    + "11,temperature,C|°C,,,25,45,\n"
    + "20,glucose,mg/dL|mg%,,,0,2000,\n20,glucose,mmol/L,18,,0,2000,\n"
)


@pytest.fixture
def catalogue() -> ItemCatalogue:
    return ItemCatalogue.from_text(TEXT, "toy.csv")


def test_variables_in_the_order_of_the_catalogue(catalogue: ItemCatalogue) -> None:
    assert catalogue.variables == ("temperature", "glucose")
    assert catalogue.raw_ids == ("10", "11", "20")


def test_apply_maps_converts_and_counts(catalogue: ItemCatalogue) -> None:
    rows = [
        (0, 10, 98.6, "f"),
        (1, 11, 37.0, " °c "),
        (2, 20, 10.0, "mmol/l"),
        (3, 20, 90.0, None),
        (4, 20, 5000.0, "mg%"),
        (5, 99, 1.0, "x"),
        (6, 11, None, "C"),
    ]
    schema = {"row": pl.Int64, "item": pl.Int64, "value": pl.Float64, "unit": pl.String}
    frame = pl.LazyFrame(rows, schema=schema, orient="row")
    log = Counts()
    found = catalogue.apply(frame, "item", "value", "unit", log, "lab").sort("row").collect()
    assert found.columns == ["row", "item", "value", "unit", "variable", "unknown_unit"]
    assert found["variable"].to_list() == ["temperature"] * 2 + ["glucose"] * 3 + ["temperature"]
    wanted = [37.0, 37.0, 180.0, 90.0, None, None]
    for got, expected in zip(found["value"].to_list(), wanted, strict=True):
        assert got == pytest.approx(expected) if expected is not None else got is None
    assert log.to_list() == [
        ["lab", "rows of items not in the catalogue", 1],
        ["lab", "implausible values of glucose, nulled", 1],
    ]


def test_an_unknown_unit_is_an_error_or_counted(catalogue: ItemCatalogue) -> None:
    frame = pl.LazyFrame(
        {"row": [0, 1, 2], "item": ["20", "20", "99"], "value": [5.0, 6.0, 7.0], "unit": ["stones", "", "stones"]}
    )
    with pytest.raises(ExtractError, match=r"lab: column unit: 1 rows .* toy\.csv") as caught:
        catalogue.apply(frame, "item", "value", "unit", table="lab")
    assert "stones" not in str(caught.value)
    log = Counts()
    found = catalogue.apply(frame, "item", "value", "unit", log, "lab", unknown_unit="count").sort("row").collect()
    assert found["value"].to_list() == [None, 6.0]
    assert found["unknown_unit"].to_list() == [True, False]
    assert ["lab", "values of glucose in an unknown unit, nulled", 1] in log.to_list()


UNITS = st.sampled_from([None, "", " mg/dL ", "MG%", "mmol/L", "F", "°c", "stones"])
VALUE = st.none() | st.floats(-100, 3000)


@given(st.lists(st.tuples(st.sampled_from([10, 11, 20, 99, None]), VALUE, UNITS), max_size=15), st.booleans())
@settings(max_examples=80, deadline=None)
def test_apply_against_plain_python(rows: list[tuple[int | None, float | None, str | None]], given_pairs: bool) -> None:
    """With one unit an item, where units need not be compared, and with several."""
    catalogue = ItemCatalogue.from_text(TEXT, "toy.csv")
    schema = {"item": pl.Int64, "value": pl.Float64, "unit": pl.String}
    frame = pl.LazyFrame(rows, schema=schema, orient="row").with_row_index()
    # of a larger table
    more = pl.DataFrame([(20, 1.0, "mmol/L"), (99, 1.0, "x")], schema=schema, orient="row")
    pairs = pl.concat([frame.drop("index").collect(), more]) if given_pairs else None
    log = Counts()
    found = catalogue.apply(frame, "item", "value", "unit", log, "t", unknown_unit="count", pairs=pairs)
    wanted: list[tuple[int, str, float | None, bool]] = []
    impossible = unread = 0
    for i, (item, value, unit) in enumerate(rows):
        lines = [entry for entry in catalogue.entries if entry.raw_id == str(item)]
        if not lines:
            continue
        said = (unit or "").strip().lower()
        line = lines[0] if not said else next((entry for entry in lines if said in entry.units), None)
        number = None if value is None or line is None else value * line.factor + line.offset
        plausible = number is not None and line is not None and line.low <= number <= line.high  # type: ignore[operator]
        impossible += number is not None and not plausible
        unread += line is None and value is not None
        wanted.append((i, lines[0].variable, number if plausible else None, line is None))
    made = found.sort("index").select("index", "variable", "value", "unknown_unit").collect().rows()
    assert made == [(i, variable, pytest.approx(value), bad) for i, variable, value, bad in wanted]
    counts = {what: n for _, what, n in log.to_list()}
    assert sum(n for what, n in counts.items() if "implausible" in what) == impossible
    assert sum(n for what, n in counts.items() if "unknown unit" in what) == unread
    assert counts["rows of items not in the catalogue"] == sum(item in (99, None) for item, _, _ in rows)


@given(st.lists(st.floats(-1e4, 1e4, width=32) | st.sampled_from([math.nan, math.inf, 0.0, 2000.0]), max_size=20))
@settings(max_examples=40, deadline=None)
def test_ranges_are_inclusive_and_nothing_else_is_lost(values: list[float]) -> None:
    catalogue = ItemCatalogue.from_text(HEADER + "a,x,,2,1,0,4001,\n", "t.csv")
    frame = pl.LazyFrame({"i": ["a"] * len(values), "v": values}, schema={"i": pl.String, "v": pl.Float64})
    found = catalogue.apply(frame.with_row_index(), "i", "v").sort("index").collect()["value"].to_list()
    assert found == [2 * v + 1 if math.isfinite(v) and 0 <= 2 * v + 1 <= 4001 else None for v in values]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raw_id,variable\na,b\n", "unit"),
        (HEADER.replace("low", "lower") + "a,b,,,,,,\n", "lower"),
        (HEADER, "no lines"),
        (HEADER + "a,b,,one,,,,\n", "line 2: column factor is no number"),
        (HEADER + "a,b,,,,,,\na,b,,,,,,\n", "line 3: the raw id has this unit already"),
        (HEADER + "a,b,,,,,,\na,c,mg,,,,,\n", "line 3: the raw id stands for another variable"),
        (HEADER + "a,b,,,,5,5,\n", "low is not below high"),
        (HEADER + "a,b,,0,,,,\n", "factor is 0"),
        (HEADER + ",b,,,,,,\n", "must not be empty"),
        (HEADER + "a,b,,inf,,,,\n", "not finite"),
        (HEADER + "a,b\n", "another number of fields"),
    ],
)
def test_a_wrong_catalogue_is_refused(text: str, says: str) -> None:
    with pytest.raises(ExtractError, match=r"catalogue t\.csv") as caught:
        ItemCatalogue.from_text(text, "t.csv")
    assert says in str(caught.value)


def test_a_catalogue_ships_in_a_package() -> None:
    with pytest.raises(ExtractError, match="not found in package mmnar_lightning"):
        ItemCatalogue.read("mmnar_lightning", "none.csv")
