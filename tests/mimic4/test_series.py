"""Labs and vitals as series: the values that the statistics are made of, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from mmnar_lightning.extract import Counts, prepare, scan
from mmnar_lightning.records import RecordStore
from mmnar_mimic4 import MIMIC4Extractor, measurements, tables
from mmnar_mimic4.measurements import (
    STATS,
    lab_events,
    lab_variables,
    labs,
    vital_events,
    vital_variables,
    vitals,
)
from mmnar_mimic4.windows import Source

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

    NewRaw = Callable[[], RawTables]
    At = Callable[..., datetime]

CREATININE, SODIUM, HEART_RATE, FAHRENHEIT, DRAIN = 50912, 50983, 220045, 223761, 226588
OTHER_DRAIN = 226589
SPECS = (tables.labs(), tables.charts(), tables.outputs())
COLUMNS = ["sample", "hours_before", "variable", "value"]
MAKERS = ((lab_events, labs, lab_variables), (vital_events, vitals, vital_variables))


def source(frames: dict[str, pl.LazyFrame], windows: list[tuple[int, datetime, datetime]]) -> Source:
    columns: dict[str, Any] = {
        "subject_id": pl.Int64,
        "window_start": pl.Datetime("us"),
        "prediction_time": pl.Datetime("us"),
    }
    samples = pl.DataFrame(windows, schema=columns, orient="row").with_row_index("sample")
    return Source(frames, samples.cast({"sample": pl.Int64}), Counts())


def listed(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return [(sample, round(hours, 3), variable, value) for sample, hours, variable, value in frame.rows()]


def binary(frame: pl.DataFrame) -> bytes:
    return frame.write_ipc(None).getvalue()


def of_series(frame: pl.DataFrame) -> pl.DataFrame:
    """Statistics of each variable of a sample, from the values in their order."""
    value = pl.col("value").cast(pl.Float64)
    grouped = frame.group_by("sample", pl.col("variable").cast(pl.String), maintain_order=True)
    stats = grouped.agg(
        last=value.last(), min=value.min(), max=value.max(), mean=value.mean(), count=pl.len().cast(pl.Float64)
    )
    return stats.sort("sample", "variable")


def of_statistics(frame: pl.DataFrame, variables: tuple[str, ...]) -> pl.DataFrame:
    """The statistics as they are made, one row each variable of a sample that has it."""
    parts = [
        frame.select(
            "sample",
            pl.lit(name).alias("variable"),
            *(pl.col(f"{name}_{stat}").cast(pl.Float64).alias(stat) for stat in STATS),
        )
        for name in variables
    ]
    return pl.concat(parts).filter(pl.col("count").is_not_null()).sort("sample", "variable")


def check_same(series: pl.DataFrame, statistics: pl.DataFrame, variables: tuple[str, ...]) -> None:
    got, expected = of_series(series), of_statistics(statistics, variables)
    exact = ["sample", "variable", "last", "min", "max", "count"]
    assert got.select(exact).equals(expected.select(exact))
    # both sides are stored as Float32: relative 6e-8
    size = np.maximum(got["max"].abs().to_numpy(), got["min"].abs().to_numpy())
    assert (np.abs(got["mean"].to_numpy() - expected["mean"].to_numpy()) <= 2e-7 * size).all()
    latest = series.group_by("sample").agg(pl.col("hours_before").min()).sort("sample")
    assert latest.equals(statistics.select("sample", "hours_before"))
    hours = series["hours_before"].to_numpy()
    assert series["sample"].is_sorted()
    assert (np.diff(hours)[np.diff(series["sample"].to_numpy()) == 0] <= 0).all()


def lab(raw: RawTables, subject: int, item: int, chart: datetime, value: float, store: datetime | None = None) -> None:
    times = {"charttime": chart, "storetime": chart if store is None else store}
    raw.add("hosp/labevents", subject_id=subject, itemid=item, valuenum=value, **times)


def test_values_in_the_order_of_time(raw: RawTables, at: At) -> None:
    for hours, value in ((20, 2.5), (1, 1.0), (4, 4.0), (4, 3.0), (20, 2.5), (-1, 9.0), (25, 9.0), (22, 900.0)):
        lab(raw, 1, CREATININE, at(hours=hours), value)
    lab(raw, 1, CREATININE, at(hours=23), 9.0, store=at(hours=25))  # stored after the prediction time
    lab(raw, 1, SODIUM, at(hours=4), 138.0)
    lab(raw, 2, SODIUM, at(hours=5), 140.0)
    made = lab_events(source(raw.lazy(*SPECS), [(1, at(), at(1)), (1, at(), at(1)), (2, at(), at(1))]))
    order = lab_variables().index
    at_once = sorted([("creatinine", 3.0), ("creatinine", 4.0), ("sodium", 138.0)], key=lambda e: (order(e[0]), e[1]))
    mine = [(23.0, "creatinine", 1.0), *((20.0, *e) for e in at_once), (4.0, "creatinine", 2.5)]
    assert listed(made) == [*((0, *e) for e in mine), *((1, *e) for e in mine), (2, 19.0, "sodium", 140.0)]


def test_vitals_are_converted_and_volumes_stand_beside_them(raw: RawTables, at: At) -> None:
    for item, value in ((FAHRENHEIT, 98.6), (HEART_RATE, 80.0), (HEART_RATE, 0.0)):
        raw.add(
            "icu/chartevents", subject_id=1, itemid=item, charttime=at(hours=2), storetime=at(hours=3), valuenum=value
        )
    for item in (DRAIN, OTHER_DRAIN):  # two drains may hold the same
        raw.add("icu/outputevents", subject_id=1, itemid=item, charttime=at(hours=5), storetime=at(hours=5), value=40.0)
    made = vital_events(source(raw.lazy(*SPECS), [(1, at(), at(1))]))
    assert sorted(listed(made)) == [
        (0, 19.0, "chest_tube_output", 40.0),
        (0, 19.0, "chest_tube_output", 40.0),
        (0, 22.0, "heart_rate", 80.0),
        (0, 22.0, "temperature", 37.0),
    ]


def test_types_and_nothing_at_all(raw: RawTables, at: At) -> None:
    for windows in ([], [(1, at(), at(1))]):
        for make, _, variables in MAKERS:
            made = make(source(raw.lazy(*SPECS), windows))
            assert made.columns == COLUMNS
            assert made.height == 0
            assert made.schema["sample"] == pl.Int64
            assert made.schema["hours_before"] == made.schema["value"] == pl.Float32
            assert made.schema["variable"] == pl.Enum(variables())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch", [1, 70, measurements.BATCH])
def test_order_of_rows_and_size_of_batches_change_no_byte(
    new_raw: NewRaw, at: At, monkeypatch: pytest.MonkeyPatch, seed: int, batch: int
) -> None:
    rng = random.Random(0)
    rows = [
        (rng.choice((1, 2)), rng.choice((CREATININE, SODIUM)), rng.randrange(24), rng.choice((0.0, -0.0, 0.5, 130.0)))
        for _ in range(200)
    ]
    windows = [(1, at(), at(1)), (2, at(), at(0.5)), (2, at(), at(1))]
    made = []
    for shuffled in (False, True):
        raw = new_raw()
        if shuffled:
            random.Random(seed).shuffle(rows)
            monkeypatch.setattr(measurements, "BATCH", batch)
        for subject, item, hours, value in rows:
            lab(raw, subject, item, at(hours=hours), value)
        here = source(raw.lazy(*SPECS), windows)
        made.append((binary(lab_events(here)), here.log.to_list()))
        check_same(lab_events(here), labs(here), lab_variables())
    assert made[0] == made[1]


def test_what_is_logged_is_the_same_in_both_forms(raw: RawTables, at: At) -> None:
    for hours, value in ((1, 1.0), (2, 900.0), (30, 1.0)):
        lab(raw, 1, CREATININE, at(hours=hours), value)
    lab(raw, 1, 99999, at(hours=3), 1.0)
    one, other = (source(raw.lazy(*SPECS), [(1, at(), at(1))]) for _ in range(2))
    lab_events(one)
    labs(other)
    assert one.log.to_list() == other.log.to_list()
    assert ["labevents", "implausible values of creatinine, nulled", 1] in one.log.to_list()


@pytest.mark.shared_data
@pytest.mark.parametrize("days", [1, 30])
def test_statistics_of_the_demo_come_from_its_series(demo_root: Path, days: int) -> None:
    frames = {spec.name: scan(demo_root, spec) for spec in SPECS}
    stays = pl.read_csv(demo_root / "icu" / "icustays.csv.gz", try_parse_dates=True).sort("subject_id", "intime")
    begin = pl.col("intime").cast(pl.Datetime("us"))
    windows = stays.select("subject_id", begin, begin.dt.offset_by(f"{days}d").alias("end")).rows()
    here = source(frames, windows)
    for series, statistics, variables in MAKERS:
        made = series(here)
        assert made.height > 1000
        check_same(made, statistics(here), variables())


@pytest.mark.shared_data
@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_a_store_of_the_demo_with_series(demo_root: Path, tmp_path: Path, cohort: Any) -> None:
    series = MIMIC4Extractor(cohort=cohort, measurements="series")
    store = RecordStore(prepare(series, demo_root, tmp_path / "a", progress=False))
    other = RecordStore(prepare(MIMIC4Extractor(cohort=cohort), demo_root, tmp_path / "a", progress=False))
    assert store.fingerprint != other.fingerprint
    assert len(store) == len(other)
    assert store.manifest["counts"] == other.manifest["counts"]
    assert {m.name: m.kind for m in store.schema.modalities if m.name in ("labs", "vitals")} == {
        "labs": "series",
        "vitals": "series",
    }
    assert store.schema.modality("labs").items == lab_variables()
    assert store.schema.modality("vitals").items == vital_variables()
    # whoever has statistics has values, and nothing else is another
    names = [name for name in store.samples.columns if not name.startswith(("start/", "stop/"))]
    assert store.samples.select(names).equals(other.samples.select(names))
    unchanged = [name for name in store.manifest["files"] if "structured" in name or "treatments" in name]
    for name in unchanged:
        assert np.array_equal(store.column(name, "values"), other.column(name, "values"), equal_nan=True)
    assert len(unchanged) == 2


def test_options() -> None:
    with pytest.raises(ValueError, match="measurements 'events' is not one of statistics, series"):
        MIMIC4Extractor(measurements="events")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="merge_structured: series can't be merged"):
        MIMIC4Extractor(measurements="series", merge_structured=True)
    assert MIMIC4Extractor(measurements="series").options() != MIMIC4Extractor().options()
