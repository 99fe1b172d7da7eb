from __future__ import annotations

import csv
import gzip
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts, TableSpec, scan
from mmnar_mimic4 import measurements, tables
from mmnar_mimic4.measurements import STATS, lab_items, labs, vital_items, vitals
from mmnar_mimic4.windows import Source

T0 = datetime(2150, 3, 1, 8)
SECOND = 1 / 3600
CREATININE, HEMATOCRIT, HEMATOCRIT_TOO, WBC = 50912, 51221, 51638, 51301
HEART_RATE, FAHRENHEIT, CELSIUS, FIO2, FOLEY = 220045, 223761, 223762, 223835, 226559

Row = tuple[Any, ...]


def at(hours: float) -> datetime:
    return T0 + timedelta(seconds=round(hours * 3600))


def table(spec: TableSpec, rows: Sequence[Row]) -> pl.LazyFrame:
    """Rows of (subject, itemid, charttime, storetime, value, unit), times in hours from `T0`."""
    made = [
        {
            "subject_id": subject,
            "itemid": item,
            "charttime": at(chart),
            "storetime": None if store is None else at(store),
            "valuenum": value,
            "value": value,
            "valueuom": unit,
        }
        for subject, item, chart, store, value, unit in rows
    ]
    return pl.LazyFrame([{name: row[name] for name in spec.schema} for row in made], schema=spec.schema)


# patient 1 with two stays, patient 2 with one
SAMPLES = ((1, 0, 24), (1, 100, 124), (2, 0, 24))


def source(
    lab: Sequence[Row] = (),
    chart: Sequence[Row] = (),
    output: Sequence[Row] = (),
    samples: Sequence[tuple[int, float, float]] = SAMPLES,
) -> Source:
    frames = {
        "labevents": table(tables.labs(), lab),
        "chartevents": table(tables.charts(), chart),
        "outputevents": table(tables.outputs(), output),
    }
    rows = [(i, s, at(start), at(end)) for i, (s, start, end) in enumerate(samples)]
    columns: dict[str, Any] = {
        "sample": pl.Int64,
        "subject_id": pl.Int64,
        "window_start": pl.Datetime("us"),
        "prediction_time": pl.Datetime("us"),
    }
    return Source(frames, pl.DataFrame(rows, schema=columns, orient="row"), Counts())


def stats(frame: pl.DataFrame, variable: str, sample: int = 0) -> tuple[float | None, ...]:
    """The statistics of a variable in a sample, in the order of `STATS`."""
    row = frame.filter(pl.col("sample") == sample).select(f"{variable}_{stat}" for stat in STATS)
    return tuple(row.row(0)) if row.height else (None,) * len(STATS)


def binary(frame: pl.DataFrame) -> bytes:
    return frame.write_ipc(None).getvalue()


def creatinine(chart: float, value: float, store: float | None = None, subject: int = 1) -> Row:
    return subject, CREATININE, chart, chart + 1 if store is None else store, value, "mg/dL"


def test_statistics_of_a_variable() -> None:
    made = labs(source([creatinine(1, 2.0), creatinine(5, 0.5), creatinine(3, 3.5)]))
    assert stats(made, "creatinine") == (0.5, 0.5, 3.5, 2.0, 3.0)
    assert made.rows(named=True)[0]["hours_before"] == 19.0
    assert stats(made, "sodium") == (None,) * 5


def test_columns_and_types() -> None:
    everything = source([creatinine(1, 2.0, subject=2), creatinine(1, 2.0)], [(2, HEART_RATE, 1, None, 80.0, "bpm")])
    for make, names in ((labs, lab_items()), (vitals, vital_items())):
        for made in (make(everything), make(source()), make(source(samples=()))):
            assert made.columns == ["sample", "hours_before", *names]
            assert made.schema["sample"] == pl.Int64
            assert set(made.schema.dtypes()[1:]) == {pl.Float32()}
    assert labs(everything)["sample"].to_list() == [0, 2]
    assert vitals(everything)["sample"].to_list() == [2]
    assert labs(source()).height == 0


def test_both_ends_of_the_window_belong_to_it() -> None:
    inside = [creatinine(0, 1.0, store=0), creatinine(24, 2.0, store=24)]
    outside = [creatinine(-SECOND, 9.0), creatinine(24 + SECOND, 9.0, store=24)]
    made = labs(source(inside + outside))
    assert stats(made, "creatinine") == (2.0, 1.0, 2.0, 1.5, 2.0)
    assert made["hours_before"].to_list() == [0.0]


def test_result_that_is_stored_after_the_prediction_time_changes_no_byte() -> None:
    rows = [creatinine(1, 1.0), creatinine(2, 1.5)]
    late = [creatinine(23, 9.0, store=24 + SECOND), (1, WBC, 20, 30, 5.0, "K/uL")]
    assert binary(labs(source(rows + late))) == binary(labs(source(rows)))
    known = [creatinine(23, 9.0, store=24)]
    assert stats(labs(source(rows + known)), "creatinine")[0] == 9.0


def test_without_storetime_a_value_is_known_an_hour_later() -> None:
    chart = [(1, HEART_RATE, 23, None, 80.0, "bpm"), (1, HEART_RATE, 23 + SECOND, None, 90.0, "bpm")]
    assert stats(vitals(source(chart=chart)), "heart_rate") == (80.0, 80.0, 80.0, 80.0, 1.0)


def test_values_of_another_stay_or_patient_stay_out() -> None:
    made = labs(source([creatinine(5, 1.0), creatinine(50, 2.0), creatinine(110, 3.0), creatinine(6, 4.0, subject=2)]))
    assert [stats(made, "creatinine", sample)[0] for sample in range(3)] == [1.0, 3.0, 4.0]
    assert [stats(made, "creatinine", sample)[4] for sample in range(3)] == [1.0, 1.0, 1.0]


def test_row_in_the_windows_of_two_samples_serves_both() -> None:
    made = labs(source([creatinine(5, 1.0), creatinine(30, 2.0)], samples=((1, 0, 24), (1, 0, 48))))
    assert stats(made, "creatinine", 0) == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert stats(made, "creatinine", 1) == (2.0, 1.0, 2.0, 1.5, 2.0)


LAB_HEADER = (
    "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum,valueuom,"
    "ref_range_lower,ref_range_upper,flag,priority,comments"
)


@pytest.mark.parametrize("admission", ["", "20000001"])
def test_raw_rows_are_linked_by_patient_and_time(tmp_path: Path, admission: str) -> None:
    (tmp_path / "hosp").mkdir()
    lines = [
        f"1,1,{admission},7,50912,,2150-03-01 09:00:00,2150-03-01 10:00:00,1.3,1.3,mg/dL,0.5,1.2,abnormal,STAT,",
        # a value that was blanked out, with and without its number
        f"2,1,{admission},8,50912,,2150-03-01 12:00:00,2150-03-01 13:00:00,___,1.1,mg/dL,0.5,1.2,,STAT,___",
        f"3,1,{admission},9,50912,,2150-03-01 15:00:00,2150-03-01 16:00:00,___,,mg/dL,0.5,1.2,,STAT,___",
        f"4,1,{admission},9,51266,,2150-03-01 15:00:00,2150-03-01 16:00:00,NORMAL,,,,,,STAT,",
    ]
    (tmp_path / "hosp" / "labevents.csv").write_text("\n".join([LAB_HEADER, *lines]) + "\n")
    here = source()
    here = Source({**here.frames, "labevents": scan(tmp_path, tables.labs())}, here.samples, here.log)
    made = labs(here)
    assert stats(made, "creatinine") == pytest.approx((1.1, 1.1, 1.3, 1.2, 2.0))
    counts = dict(here.log.items())
    assert counts["labevents", "rows of catalogued items without a number, not used"] == 1


def test_the_same_measurement_filed_twice_counts_once() -> None:
    twice = [creatinine(1, 2.0), creatinine(1, 2.0), creatinine(1, 2.0, store=3), creatinine(4, 5.0)]
    made = labs(source(twice))
    assert stats(made, "creatinine") == (5.0, 2.0, 5.0, 3.5, 2.0)
    # the copy that is late is none
    assert binary(labs(source([*twice, creatinine(4, 5.0, store=50)]))) == binary(made)


def test_other_times_values_and_items_are_no_duplicates() -> None:
    rows = [creatinine(1, 2.0), creatinine(1, 2.5), creatinine(2, 2.0)]
    rows += [(1, item, 1, 2, 30.0, "%") for item in (HEMATOCRIT, HEMATOCRIT_TOO)]
    made = labs(source(rows))
    assert stats(made, "creatinine")[4] == 3.0
    assert stats(made, "hematocrit") == (30.0, 30.0, 30.0, 30.0, 2.0)
    # two drains may hold the same
    drains = [(1, item, 1, 2, 40.0, None) for item in (226588, 226589)]
    assert stats(vitals(source(output=drains)), "chest_tube_output")[4] == 2.0


def test_impossible_values_are_null_and_counted() -> None:
    chart = [(1, HEART_RATE, hour, None, value, "bpm") for hour, value in enumerate((80.0, 0.0, 999.0))]
    chart += [(1, CELSIUS, 1, None, 99.0, "°C")]
    here = source(chart=chart)
    made = vitals(here)
    assert stats(made, "heart_rate") == (80.0, 80.0, 80.0, 80.0, 1.0)
    assert stats(made, "temperature") == (None,) * 5
    counts = dict(here.log.items())
    assert counts["chartevents", "implausible values of heart_rate, nulled"] == 2
    assert counts["chartevents", "implausible values of temperature, nulled"] == 1


def test_sample_with_impossible_values_alone_has_no_row() -> None:
    assert vitals(source(chart=[(1, HEART_RATE, 1, None, 0.0, "bpm")])).height == 0


def test_units() -> None:
    chart = [
        (1, FAHRENHEIT, 1, None, 98.6, "°F"),
        (1, FAHRENHEIT, 2, None, 104.0, None),
        (1, CELSIUS, 3, None, 38.0, "°C"),
    ]
    chart += [(1, FIO2, hour, None, value, None) for hour, value in enumerate((0.4, 60.0, 1.0))]
    here = source([creatinine(1, 1.0), (1, CREATININE, 2, 3, 7.0, "furlong"), (1, WBC, 2, 3, 4500.0, "#/uL")], chart)
    made = vitals(here)
    assert stats(made, "temperature") == pytest.approx((38.0, 37.0, 40.0, 115 / 3, 3.0))
    assert stats(made, "fio2") == pytest.approx((100.0, 40.0, 100.0, 200 / 3, 3.0))
    made = labs(here)
    assert stats(made, "creatinine") == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert stats(made, "white_blood_cells")[0] == 4.5
    counts = dict(here.log.items())
    assert counts["labevents", "values of creatinine in an unknown unit, nulled"] == 1
    assert ("labevents", "implausible values of creatinine, nulled") not in counts


def test_volumes_are_read_from_outputevents() -> None:
    made = vitals(
        source(output=[(1, FOLEY, 1, 2, 100.0, None), (1, FOLEY, 2, 2, 50.0, None), (1, FOLEY, 3, 30, 9.0, None)])
    )
    assert stats(made, "urine_output") == (50.0, 50.0, 100.0, 75.0, 2.0)


def scattered(seed: int) -> tuple[list[Row], list[Row]]:
    rng = random.Random(seed)
    lab = [
        (rng.choice((1, 2)), rng.choice((CREATININE, WBC)), rng.randrange(24), 24 - rng.randrange(3), value, None)
        for value in (rng.choice((0.1, 0.7, 1.9, -0.0, 0.0, 3.3)) for _ in range(150))
    ]
    chart = [(1, HEART_RATE, rng.randrange(24), None, rng.uniform(40, 150), "bpm") for _ in range(150)]
    return lab, chart


def test_ties_go_to_the_larger_value() -> None:
    lab = [creatinine(5, 1.0), creatinine(5, 4.0), creatinine(5, 2.0)]
    assert stats(labs(source(lab)), "creatinine")[0] == 4.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch", [1, 70, measurements.BATCH])
def test_order_of_rows_and_size_of_batches_change_no_byte(
    monkeypatch: pytest.MonkeyPatch, seed: int, batch: int
) -> None:
    lab, chart = scattered(0)
    first = source(lab, chart)
    expected = binary(labs(first)), binary(vitals(first))
    rng = random.Random(seed)
    rng.shuffle(lab)
    rng.shuffle(chart)
    monkeypatch.setattr(measurements, "BATCH", batch)
    again = source(lab, chart)
    assert (binary(labs(again)), binary(vitals(again))) == expected
    assert again.log.to_list() == first.log.to_list()


def test_counts_of_what_is_in_the_windows_and_late() -> None:
    rows = [creatinine(1, 1.0), creatinine(2, 1.0, store=30), creatinine(60, 1.0), creatinine(1, 1.0, subject=9)]
    here = source([*rows, (1, 99999, 1, 1, 1.0, None)])
    labs(here)
    assert here.log.to_list() == [
        ["labevents", "rows of catalogued items without a number, not used", 0],
        ["labevents", "rows in the samples' windows", 2],
        ["labevents", "not yet known at the prediction time", 1],
    ]


# Written down again here, by hand: item → variable, factor, offset, lowest and highest plausible value.
LABS = {
    50912: ("creatinine", 1.0, 0.0, 0.0, 40.0),
    50971: ("potassium", 1.0, 0.0, 1.0, 15.0),
    50813: ("lactate", 1.0, 0.0, 0.0, 50.0),
    51301: ("white_blood_cells", 1.0, 0.0, 0.0, 1000.0),
    51237: ("inr", 1.0, 0.0, 0.3, 50.0),
    51249: ("mchc", 1.0, 0.0, 10.0, 60.0),
}
CHARTS = {
    220045: ("heart_rate", 1.0, 0.0, 5.0, 300.0),
    220210: ("respiratory_rate", 1.0, 0.0, 1.0, 100.0),
    223761: ("temperature", 5 / 9, -160 / 9, 25.0, 45.0),
    223762: ("temperature", 1.0, 0.0, 25.0, 45.0),
    223835: ("fio2", 1.0, 0.0, 20.0, 100.0),
    223901: ("gcs_motor", 1.0, 0.0, 1.0, 6.0),
    220052: ("map_invasive", 1.0, 0.0, 10.0, 280.0),
    225312: ("map_invasive", 1.0, 0.0, 10.0, 280.0),
}
URINE = (226559, 226560, 226561, 226563, 226564, 226565, 226557, 226558, 226567, 226584)
OUTPUTS = dict.fromkeys(URINE, ("urine_output", 1.0, 0.0, 0.0, 5000.0))

Items = dict[int, tuple[str, float, float, float, float]]
Found = dict[tuple[int, str], list[tuple[datetime, float]]]


def raw(demo_root: Path, name: str) -> Iterator[dict[str, str]]:
    with gzip.open(demo_root / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def first_days(demo_root: Path) -> list[tuple[int, datetime, datetime]]:
    """The first 24 hours of each ICU stay, in order: patient, start, end."""
    stays = [(int(row["subject_id"]), datetime.fromisoformat(row["intime"])) for row in raw(demo_root, "icu/icustays")]
    return [(subject, intime, intime + timedelta(days=1)) for subject, intime in sorted(stays)]


def find(
    demo_root: Path, name: str, column: str, listed: Items, days: Sequence[tuple[int, datetime, datetime]]
) -> Found:
    """Values by sample and variable, read with the csv module and linked by a loop."""
    by_patient: dict[int, list[tuple[int, datetime, datetime]]] = defaultdict(list)
    for sample, (subject, start, end) in enumerate(days):
        by_patient[subject].append((sample, start, end))
    seen: set[tuple[int, int, datetime, float]] = set()
    for row in raw(demo_root, name):
        item = int(row["itemid"])
        if item not in listed or row[column] == "":
            continue
        charted = datetime.fromisoformat(row["charttime"])
        stored = datetime.fromisoformat(row["storetime"]) if row["storetime"] else charted + timedelta(hours=1)
        for sample, start, end in by_patient[int(row["subject_id"])]:
            if start <= charted and max(charted, stored) <= end:
                seen.add((sample, item, charted, float(row[column])))
    found: Found = defaultdict(list)
    for sample, item, charted, value in seen:
        variable, factor, offset, low, high = listed[item]
        value = value * factor + offset
        if low <= value <= high:
            found[sample, variable].append((charted, value))
    return found


@pytest.mark.shared_data
def test_first_days_of_the_demo_against_plain_python(demo_root: Path) -> None:
    days = first_days(demo_root)
    frames = {spec.name: scan(demo_root, spec) for spec in (tables.labs(), tables.charts(), tables.outputs())}
    columns: dict[str, Any] = {
        "subject_id": pl.Int64,
        "window_start": pl.Datetime("us"),
        "prediction_time": pl.Datetime("us"),
    }
    samples = pl.DataFrame(days, schema=columns, orient="row").with_row_index("sample").cast({"sample": pl.Int64})
    here = Source(frames, samples, Counts())
    expected = find(demo_root, "hosp/labevents", "valuenum", LABS, days)
    expected_vitals = find(demo_root, "icu/chartevents", "valuenum", CHARTS, days)
    expected_vitals |= find(demo_root, "icu/outputevents", "value", OUTPUTS, days)
    checked: dict[str, int] = defaultdict(int)
    for made, listed, values in (
        (labs(here), LABS, expected),
        (vitals(here), CHARTS | OUTPUTS, expected_vitals),
    ):
        rows = {row["sample"]: row for row in made.rows(named=True)}
        assert len(rows) > 60
        for variable in {name for name, *_ in listed.values()}:
            for sample in range(len(days)):
                row = rows.get(sample, {})
                got = tuple(row.get(f"{variable}_{stat}") for stat in STATS)
                dated = sorted(values.get((sample, variable), []))
                numbers = [value for _, value in dated]
                if not numbers:
                    assert got == (None,) * 5, variable
                    continue
                mean = math.fsum(numbers) / len(numbers)
                wanted = (numbers[-1], min(numbers), max(numbers), mean, len(numbers))
                assert got == pytest.approx(wanted, rel=1e-6), variable
                checked[variable] += 1
    assert len(checked) == len({name for name, *_ in (LABS | CHARTS | OUTPUTS).values()})
    assert min(checked.values()) >= 10, dict(checked)
