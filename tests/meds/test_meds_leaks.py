"""Nothing a sample holds happened after its prediction time, and no column off the allow-list is read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, Extraction
from mmnar_meds import DEFAULT, MEDSExtractor, Selection

EVERYTHING = {
    **DEFAULT,
    "series": Selection("series", pattern="."),
    "texts": Selection("text", pattern="."),
    "codes": Selection("codes", pattern="."),
    "static_numbers": Selection("vector", pattern=".", rows="static"),
}
LAST = {1: datetime(2150, 1, 3), 2: datetime(2150, 5, 2), 3: datetime(2150, 6, 1)}
FIRST = LAST | {1: datetime(2150, 1, 1, 12)}
CODES = [
    "LAB//50912//mg/dL", "VITAL//HEART_RATE", "DIAGNOSIS//ICD//10//I10", "PROCEDURE//NEW", "MEDICATION//START//heparin",
    "GENDER//M", "GENDER//F", "MEDS_BIRTH", "MEDS_DEATH", "NOTE//PROGRESS", "A_NEW//CODE",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).with_name("conftest.py"))


def made_of(root: Path, rows: list[Any], small: ModuleType) -> tuple[Extraction, dict[str, pl.DataFrame]]:
    """Extract the small dataset with further rows, straight from frames: files would only cost time."""
    extractor = MEDSExtractor(root, events=None)
    extractor.events = EVERYTHING
    tables: dict[str, pl.LazyFrame] = {}
    for spec in extractor.tables():
        if spec.name == "data/train/0":
            every = [row for shard in small.EVENTS.values() for row in shard] + rows
            frame = pl.DataFrame(
                every,
                schema={"subject_id": pl.Int64, "time": pl.String, "code": pl.String, "numeric_value": pl.Float32}
                | {"text_value": pl.String},
                orient="row",
            )
            tables[spec.name] = frame.with_columns(pl.col("time").str.to_datetime(time_unit="us")).lazy()
        elif spec.name.startswith("data/"):
            tables[spec.name] = pl.LazyFrame(schema=spec.schema)
        else:
            folder = root if spec.folder is None else spec.folder
            stored = pl.scan_parquet(folder / f"{spec.file}.parquet")
            missing = [n for n in spec.columns if n not in stored.collect_schema().names()]
            tables[spec.name] = stored.with_columns(pl.lit(None).cast(spec.schema[n]).alias(n) for n in missing)
    made = extractor.extract(tables, Counts())
    return made, {name: e if isinstance(e, pl.DataFrame) else e() for name, e in made.elements.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, small: ModuleType) -> Path:
    folder: Path = small.write_dataset(tmp_path_factory.mktemp("leaks") / "meds")
    return folder


later = st.tuples(
    st.sampled_from(sorted(LAST)),
    st.integers(min_value=1, max_value=10**12),  # microseconds, to eleven days
    st.sampled_from(CODES),
    st.none() | st.floats(-1e6, 1e6, width=32),
    st.none() | st.text(max_size=8),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(later, min_size=1, max_size=12))
def test_events_after_the_last_prediction_time_change_nothing(rows: Any, root: Path, small: ModuleType) -> None:
    plain, parts = made_of(root, [], small)
    late = [(s, (LAST[s] + timedelta(microseconds=us)).isoformat(), *rest) for s, us, *rest in rows]
    other, others = made_of(root, late, small)
    assert other.schema == plain.schema
    assert other.samples.equals(plain.samples)
    assert others.keys() == parts.keys()
    for name, frame in parts.items():
        assert others[name].equals(frame), name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(later, min_size=1, max_size=6))
def test_events_between_two_prediction_times_change_the_later_sample_only(
    rows: Any, root: Path, small: ModuleType
) -> None:
    _, parts = made_of(root, [], small)
    between = [
        (1, (FIRST[1] + timedelta(microseconds=1 + us % (36 * 3600 * 10**6))).isoformat(), *rest)
        for _, us, *rest in rows
    ]
    _, others = made_of(root, between, small)
    for name, frame in parts.items():
        mine, its = (f.filter(pl.col("sample") == 0) for f in (frame, others[name]))
        # a later sample may bring an item that this one has no value of
        assert its.select(frame.columns).equals(mine), name
        assert all(its[column].null_count() == its.height for column in set(its.columns) - set(frame.columns))


def test_an_event_just_before_is_seen_so_that_these_tests_can_fail(root: Path, small: ModuleType) -> None:
    _, parts = made_of(root, [], small)
    row = (3, LAST[3].isoformat(), "LAB//50912//mg/dL", 5.0, None)
    _, others = made_of(root, [row], small)
    assert 3 not in parts["labs"]["sample"]
    assert others["labs"].filter(pl.col("sample") == 3)["LAB//50912//mg/dL_last"].to_list() == [5.0]


def test_columns_off_the_list_are_never_read(root: Path, tmp_path: Path, small: ModuleType) -> None:
    extractor = MEDSExtractor(root)
    listed = {spec.name: set(spec.columns) for spec in extractor.tables()}
    assert listed["data/train/0"] == {"subject_id", "time", "code", "numeric_value"}
    assert listed["labels/death/death/0"] == {"subject_id", "prediction_time", "boolean_value", "integer_value"}
