"""Real years as ranges, and what was collected in them."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmnar_mimic4.years import Collected, collection, may_reach, possible_years


def years(group: str, anchor: int, first: int, last: int, last_year: int = 2022) -> tuple[int | None, int | None]:
    frame = pl.DataFrame(
        {
            "anchor_year_group": [group],
            "anchor_year": [anchor],
            "from": [datetime(first, 12, 31, 23)],
            "to": [datetime(last, 1, 1)],
        }
    )
    low, high = frame.select(*possible_years("from", "to", last_year)).row(0)
    return low, high


@pytest.mark.parametrize(
    ("group", "anchor", "first", "last", "expected"),
    [
        ("2011 - 2013", 2150, 2150, 2150, (2011, 2013)),
        ("2011 - 2013", 2150, 2153, 2153, (2014, 2016)),
        ("2011 - 2013", 2150, 2153, 2154, (2014, 2017)),  # over New Year
        ("2011 - 2013", 2150, 2148, 2148, (2009, 2011)),
        ("2008 - 2010", 2150, 2149, 2149, (2008, 2009)),  # MIMIC-IV begins in 2008
        ("2020 - 2022", 2150, 2151, 2151, (2021, 2022)),  # and ends with the extract's last year
        ("2014 - 2016", 2150, 2159, 2159, (2022, 2022)),
        ("2011-2013", 2150, 2150, 2150, (2011, 2013)),
        ("", 2150, 2150, 2150, (None, None)),
    ],
)
def test_possible_years(
    group: str, anchor: int, first: int, last: int, expected: tuple[int | None, int | None]
) -> None:
    assert years(group, anchor, first, last) == expected


def reason(modality: Collected, low: int | None, high: int | None, seen: bool = True) -> str:
    schema = {"year_low": pl.Int64, "year_high": pl.Int64, "ed_by_then": pl.Boolean}
    frame = pl.DataFrame([(low, high, seen)], schema, orient="row")
    found: str = frame.select(collection(modality)).item()
    return found


@pytest.mark.parametrize(
    ("low", "high", "films"),
    [
        (2008, 2010, "not_collected"),
        (2009, 2011, "unknown"),
        (2011, 2013, "not_ordered"),
        (2014, 2016, "not_ordered"),
        (2016, 2017, "unknown"),
        (2010, 2017, "unknown"),
        (2017, 2019, "not_collected"),
        (None, None, "unknown"),
    ],
)
def test_films(low: int | None, high: int | None, films: str) -> None:
    assert reason("cxr", low, high) == films
    # who never entered the emergency department has no film, whatever was ordered
    assert reason("cxr", low, high, seen=False) == ("not_collected" if films == "not_ordered" else films)


@pytest.mark.parametrize("modality", ["radiology", "discharge"])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "notes"),
    [
        (2008, 2010, "not_ordered"),
        (2017, 2019, "not_ordered"),
        (2018, 2020, "unknown"),
        (2020, 2022, "not_collected"),
        (2022, 2022, "not_collected"),
        (None, None, "unknown"),
    ],
)
def test_notes(modality: Collected, low: int | None, high: int | None, seen: bool, notes: str) -> None:
    assert reason(modality, low, high, seen) == notes


@given(low=st.integers(2008, 2022), length=st.integers(0, 4), seen=st.booleans())
def test_a_reason_is_given_only_where_every_possible_year_agrees(low: int, length: int, seen: bool) -> None:
    possible = range(low, low + length + 1)
    each = {reason("cxr", year, year, seen) for year in possible}
    found = reason("cxr", low, low + length, seen)
    inside = {2011 <= year <= 2016 for year in possible}
    assert found == ("unknown" if len(inside) == 2 else each.pop())


def test_reaching_a_year() -> None:
    frame = pl.DataFrame({"year_high": [2018, 2019, 2020, None]})
    assert frame.select(may_reach(2019)).to_series().to_list() == [False, True, True, True]
