from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.extract import Clock, Column, TableSpec, available_at, known_by, window

MINUTES = st.none() | st.integers(-5000, 5000)


def spec(clock: Clock | None, dtype: Any = pl.Int64, **columns: Column) -> TableSpec:
    times = {"event": Column(dtype), "entry": Column(dtype), "value": Column(pl.Float64)}
    return TableSpec("t", "t", times | columns, clock)


@given(
    rows=st.lists(st.tuples(MINUTES, MINUTES), max_size=20),
    lag=st.integers(0, 200),
    prediction=st.integers(-5000, 5000),
    with_entry=st.booleans(),
)
def test_the_rule_against_plain_python(
    rows: list[tuple[int | None, int | None]], lag: int, prediction: int, with_entry: bool
) -> None:
    table = spec(Clock("event", "entry" if with_entry else None, lag=lag))
    frame = pl.LazyFrame(
        {
            "event": [r[0] for r in rows],
            "entry": [r[1] for r in rows],
            "value": [float(i) for i in range(len(rows))],
            "prediction_time": [float(prediction)] * len(rows),
        },
        schema={"event": pl.Int64, "entry": pl.Int64, "value": pl.Float64, "prediction_time": pl.Float64},
    )
    expected = []
    for i, (event, entry) in enumerate(rows):
        if event is None:
            continue
        known = max(event, entry) if with_entry and entry is not None else event + lag
        if known <= prediction:
            expected.append((float(i), float(known)))
    found = known_by(frame, table).select("value", "available").collect()
    assert found.rows() == expected


@pytest.mark.parametrize(("prediction", "kept"), [(1439.0, 0), (1440.0, 1), (1441.0, 1)])
def test_the_boundary_belongs_to_the_past(prediction: float, kept: int) -> None:
    frame = pl.LazyFrame({"event": [1380], "entry": [None], "value": [1.0], "prediction_time": [prediction]})
    assert known_by(frame, spec(Clock("event"))).collect().height == kept


def test_a_column_on_a_later_clock_is_hidden_with_its_time() -> None:
    table = spec(
        Clock("event", lag=0),
        stop=Column(pl.Int64),
        organism=Column(pl.String, clock=Clock("stop", lag=30)),
    )
    frame = pl.LazyFrame(
        {
            "event": [0, 0, 0],
            "entry": [None] * 3,
            "value": [1.0] * 3,
            "stop": [70, 71, None],
            "organism": ["a", "b", "c"],
            "prediction_time": [100.0] * 3,
        }
    )
    found = known_by(frame, table).collect()
    assert found["organism"].to_list() == ["a", None, None]
    assert found["stop"].to_list() == [70, None, None]
    assert found["value"].to_list() == [1.0] * 3


def test_a_static_table_keeps_its_rows_but_hides_later_columns() -> None:
    table = spec(None, left=Column(pl.Int64, clock=Clock("left", lag=0)))
    frame = pl.LazyFrame({"event": [9, 9], "left": [5, 50], "prediction_time": [10.0, 10.0]})
    found = known_by(frame, table).collect()
    assert found["left"].to_list() == [5, None]
    assert found["available"].null_count() == 2
    with pytest.raises(ValueError, match="static"):
        available_at(table)


@given(
    event=st.datetimes(datetime(2100, 1, 1), datetime(2200, 1, 1)),
    delay=st.integers(-3000, 3000),
    entered=st.booleans(),
    lag=st.integers(0, 100),
)
def test_datetime_clocks(event: datetime, delay: int, entered: bool, lag: int) -> None:
    entry = event + timedelta(minutes=delay) if entered else None
    known = max(event, entry) if entry else event + timedelta(minutes=lag)
    frame = pl.LazyFrame(
        {"event": [event], "entry": [entry]}, schema={"event": pl.Datetime("us"), "entry": pl.Datetime("us")}
    )
    table = spec(Clock("event", "entry", lag=lag), pl.Datetime("us"))
    assert frame.select(available_at(table)).collect().item() == known


def test_a_date_without_a_time_is_the_end_of_that_day() -> None:
    frame = pl.LazyFrame({"event": [date(2180, 5, 6)] * 2, "entry": [None, date(2180, 5, 8)]})
    table = spec(Clock("event", "entry", lag=60), pl.Date)
    found = frame.select(available_at(table)).collect().to_series().to_list()
    assert found == [datetime(2180, 5, 7, 1), datetime(2180, 5, 9)]


def test_window_keeps_from_its_start_on() -> None:
    frame = pl.LazyFrame({"available": [-1.0, 0.0, 5.0], "start": [0.0, 0.0, 6.0]})
    assert frame.filter(window("start")).collect()["available"].to_list() == [0.0]


def test_a_clock_must_be_on_the_allow_list_and_a_time() -> None:
    with pytest.raises(ValueError, match="missing_time"):
        spec(Clock("missing_time"))
    with pytest.raises(ValueError, match="before it happened"):
        Clock("event", lag=-1)
    with pytest.raises(ValueError, match="can't be a clock"):
        available_at(spec(Clock("event"), pl.String))
