"""Cultures exist an hour after they were taken, organisms when they were reported."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, scan
from mmnar_mimic4.micro import micro
from mmnar_mimic4.tables import ICU_STAYS, MICRO
from mmnar_mimic4.windows import Source

SUBJECT = 10_000_001
TABLE = "hosp/microbiologyevents"


def sample(at: Any, hours: float = 48) -> list[dict[str, Any]]:
    return [{"sample": 0, "subject_id": SUBJECT, "window_start": at(0), "prediction_time": at(0, hours)}]


def made(frames: Mapping[str, pl.LazyFrame], samples: list[dict[str, Any]], log: Counts | None = None) -> pl.DataFrame:
    return micro(Source(frames, pl.DataFrame(samples), log or Counts()))


def culture(raw: Any, taken: datetime | None, reported: datetime | None, organism: str | None, **columns: Any) -> Any:
    """Add a row; one without a time has the day of `of`."""
    day = (taken or columns.pop("of")).date()
    row = {"subject_id": SUBJECT, "chartdate": day, "charttime": taken, "storetime": reported, "org_name": organism}
    return raw.add(TABLE, **{**row, "spec_type_desc": "BLOOD CULTURE", **columns})


def found(raw: Any, at: Any, hours: float = 48) -> dict[str, float]:
    frame = made(raw.lazy(MICRO), sample(at, hours))
    return dict(zip(frame["code"], frame["hours_before"], strict=True))


@pytest.mark.parametrize(
    ("taken", "reported", "codes"),
    [
        (0, 40, {"specimen:BLOOD CULTURE", "organism:YEAST"}),
        (0, 48, {"specimen:BLOOD CULTURE", "organism:YEAST"}),
        (0, 48.01, {"specimen:BLOOD CULTURE"}),
        (0, None, {"specimen:BLOOD CULTURE"}),  # nobody knows when
        (47, 47.5, {"specimen:BLOOD CULTURE", "organism:YEAST"}),
        (47.01, 47.5, set()),
        (-0.01, 5, set()),
    ],
)
def test_when_a_culture_and_its_organism_are_known(
    raw: Any, at: Any, taken: float, reported: float | None, codes: set[str]
) -> None:
    culture(raw, at(0, taken), None if reported is None else at(0, reported), "YEAST")
    assert set(found(raw, at)) == codes


def test_the_last_specimen_of_a_kind_tells_the_hours(raw: Any, at: Any) -> None:
    culture(raw, at(0, 1), at(0, 9), "YEAST")
    culture(raw, at(0, 8), at(0, 9), None)
    culture(raw, at(0, 30), at(0, 31), None, spec_type_desc=" URINE ")
    assert found(raw, at) == {"organism:YEAST": 47, "specimen:BLOOD CULTURE": 40, "specimen:URINE": 18}


def test_words_that_are_no_organism(raw: Any, at: Any) -> None:
    for word in ("CANCELLED", "___", " ", None):
        culture(raw, at(0, 1), at(0, 2), word)
    assert set(found(raw, at)) == {"specimen:BLOOD CULTURE"}


@pytest.mark.parametrize(("hours", "known"), [(13, True), (12.99, False)])
def test_a_culture_of_a_day_counts_from_its_end(raw: Any, at: Any, hours: float, known: bool) -> None:
    # day 0 begins at noon: its midnight is hour 12, and a start is known an hour later
    culture(raw, None, at(0, 5), "YEAST", of=at(0))
    codes = found(raw, at, hours)
    assert ("specimen:BLOOD CULTURE" in codes) == known
    assert ("organism:YEAST" in codes) == known


def test_dates_are_read_as_the_files_have_them(raw: Any, at: Any, tmp_path: Path) -> None:
    raw.patient()
    culture(raw, None, at(1), "YEAST", of=at(0))
    raw.rows[TABLE][0]["chartdate"] = "2150-06-01 00:00:00"
    culture(raw, at(0, 2), at(1), None, spec_type_desc="URINE")
    raw.rows[TABLE][1]["chartdate"] = "2150-06-01 00:00:00"
    raw.rows[TABLE].append({"subject_id": SUBJECT, "spec_type_desc": "SPUTUM"})
    log = Counts()
    frame = made({MICRO.name: scan(raw.write(tmp_path), MICRO)}, sample(at), log)
    assert frame["code"].to_list() == ["organism:YEAST", "specimen:BLOOD CULTURE", "specimen:URINE"]
    assert frame["hours_before"].to_list() == [36, 36, 46]
    assert frame.schema == {"sample": pl.Int64, "hours_before": pl.Float32, "code": pl.String}
    assert dict(log.items())["micro", "rows without a time, not used"] == 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_becomes_known_later_changes_nothing(new_raw: Any, at: Any, data: st.DataObject) -> None:
    def course() -> Any:
        raw = culture(new_raw(), at(0, 3), at(0, 30), "YEAST")
        return culture(raw, at(0, 4), at(0, 60), "STAPH AUREUS COAG +", spec_type_desc="SPUTUM")

    before = made(course().lazy(MICRO), sample(at))
    raw = course()
    # the unreported one may turn out to be anything
    raw.rows[TABLE][1]["org_name"] = data.draw(st.sampled_from([None, "CANCELLED", "ESCHERICHIA COLI"]))
    raw.rows[TABLE][1]["storetime"] = at(0, data.draw(st.floats(48.01, 900)))
    for _ in range(3):
        word = data.draw(st.sampled_from([None, "KLEBSIELLA", "YEAST"]))
        late = data.draw(st.one_of(st.just(47.01), st.floats(47.01, 9000)))
        if data.draw(st.booleans()):
            culture(raw, at(0, late), at(0, 3), word, spec_type_desc="TISSUE")
        else:
            day = at(data.draw(st.integers(2, 400)))
            culture(raw, None, at(0, 3), word, of=day, spec_type_desc="TISSUE")
    assert made(raw.lazy(MICRO), sample(at)).equals(before)


def test_the_demo_by_hand(demo_root: Path) -> None:
    """Codes and hours of all patients, from the raw file in plain Python; permuted rows give the same bytes."""
    stays = scan(demo_root, ICU_STAYS).collect().sort("subject_id", "intime").unique("subject_id", keep="first")
    samples = [
        {
            "sample": k,
            "subject_id": row["subject_id"],
            "window_start": row["intime"] - timedelta(days=2),
            "prediction_time": row["intime"] + timedelta(days=4),
        }
        for k, row in enumerate(stays.sort("subject_id").iter_rows(named=True))
    ]
    who = {row["subject_id"]: row for row in samples}
    wanted: dict[tuple[int, str], float] = {}
    with gzip.open(demo_root / "hosp/microbiologyevents.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            one = who.get(int(row["subject_id"]))
            taken = datetime.fromisoformat(row["chartdate"]) + timedelta(days=1)
            taken = datetime.fromisoformat(row["charttime"]) if row["charttime"] else taken
            if one is None or taken < one["window_start"] or taken + timedelta(hours=1) > one["prediction_time"]:
                continue
            codes = [f"specimen:{row['spec_type_desc'].strip()}"]
            reported = row["storetime"] and datetime.fromisoformat(row["storetime"]) <= one["prediction_time"]
            if reported and row["org_name"] not in ("", "CANCELLED"):
                codes.append(f"organism:{row['org_name']}")
            for code in codes:
                hours = (one["prediction_time"] - taken) / timedelta(hours=1)
                wanted[one["sample"], code] = min(hours, wanted.get((one["sample"], code), hours))
    frame = scan(demo_root, MICRO).collect()
    got = made({MICRO.name: frame.lazy()}, samples)
    assert {row[:2] for row in got.select("sample", "code", "hours_before").iter_rows()} == set(wanted)
    assert sum(code.startswith("organism:") for _, code in wanted) > 10
    for number, hours, code in got.iter_rows():
        assert hours == pytest.approx(wanted[number, code], rel=1e-6)
    assert got.equals(got.sort("sample", "code"))
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert made({MICRO.name: shuffled.lazy()}, samples).equals(got)
