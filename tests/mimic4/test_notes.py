"""Which notes a sample may contain, and what is kept of their text."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, ExtractError, TableSpec, scan
from mmnar_mimic4 import notes
from mmnar_mimic4.tables import DISCHARGE_NOTES, RADIOLOGY_NOTES
from mmnar_mimic4.windows import Source

At = Callable[..., datetime]
SUBJECT = 10_000_001
OTHER = 10_000_002
NOT_KNOWN = "not yet known at the prediction time"
ELSEWHERE = "of an admission outside the episode, not used"
EMPTY = "without text, not used"


@pytest.fixture
def samples(at: At) -> pl.DataFrame:
    """Two samples: an episode of two admissions (1, 2) from day 0 to 5, and another patient's (9)."""
    rows = [(0, SUBJECT, at(0), at(6)), (1, OTHER, at(0), at(6))]
    return pl.DataFrame(rows, schema=["sample", "subject_id", "window_start", "prediction_time"], orient="row")


@pytest.fixture
def admissions() -> pl.DataFrame:
    return pl.DataFrame({"sample": [0, 0, 1], "hadm_id": [1, 2, 9]})


class Notes:
    """Notes of one table, and what becomes of them."""

    def __init__(self, raw: Any, spec: TableSpec, samples: pl.DataFrame, admissions: pl.DataFrame) -> None:
        self.raw, self.spec, self.samples, self.admissions = raw, spec, samples, admissions
        self.counts: dict[str, int] = {}

    def add(self, text: str | None, charttime: datetime | str | None, **columns: Any) -> Notes:
        number = len(self.raw.rows[self.spec.file])
        columns = {"note_id": f"n-{number:03d}", "subject_id": SUBJECT, "charttime": charttime, "text": text} | columns
        self.raw.add(self.spec.file, **columns)
        return self

    def made(self, frame: pl.LazyFrame | None = None, **options: Any) -> pl.DataFrame:
        log = Counts()
        frame = self.raw.frame(self.spec).lazy() if frame is None else frame
        build = notes.radiology if self.spec is RADIOLOGY_NOTES else notes.discharge
        found = build(Source({self.spec.name: frame}, self.samples, log), self.admissions, **options)
        self.counts = {what: count for (_, what), count in log.items()}
        assert found.schema == {"sample": pl.Int64, "hours_before": pl.Float32, "text": pl.String}
        assert found["sample"].is_sorted()
        assert found["hours_before"].min() is None or (found["hours_before"] >= 0).all()
        return found

    def texts(self, sample: int = 0, **options: Any) -> list[str | None]:
        return self.made(**options).filter(sample=sample)["text"].to_list()


@pytest.fixture
def reports(raw: Any, samples: pl.DataFrame, admissions: pl.DataFrame) -> Notes:
    return Notes(raw, RADIOLOGY_NOTES, samples, admissions)


@pytest.fixture
def summaries(raw: Any, samples: pl.DataFrame, admissions: pl.DataFrame) -> Notes:
    return Notes(raw, DISCHARGE_NOTES, samples, admissions)


def test_a_report_counts_from_the_later_of_its_times(reports: Notes, at: At) -> None:
    reports.add("on time", at(1), storetime=at(6))
    reports.add("a second late", at(1), storetime=at(6, seconds=1))
    reports.add("never filed, an hour ago", at(6, hours=-1))
    reports.add("never filed, just made", at(6, minutes=-59))
    # filed before it was made: the later holds
    reports.add("filed too early", at(2), storetime=at(1))
    reports.add("made after the prediction time", at(6, seconds=1), storetime=at(1))
    assert reports.texts() == ["on time", "filed too early", "never filed, an hour ago"]
    assert reports.counts[NOT_KNOWN] == 2
    assert reports.made()["hours_before"].to_list() == [120, 96, 1]


def test_a_report_lies_in_the_window(reports: Notes, at: At) -> None:
    reports.add("before the window, filed in it", at(0, seconds=-1), storetime=at(1))
    reports.add("at its start", at(0), storetime=at(0))
    reports.add("no time at all", None, storetime=at(1))
    reports.add("of the other patient", at(1), storetime=at(1), subject_id=OTHER)
    reports.add("of a third", at(1), storetime=at(1), subject_id=3)
    assert reports.texts() == ["at its start"]
    assert reports.texts(1) == ["of the other patient"]
    assert reports.counts["rows without a time, not used"] == 1


def test_a_report_with_another_stays_admission_is_not_the_samples(reports: Notes, at: At) -> None:
    for text, hadm in (("own", 2), ("unlinked", None), ("a later stay's", 3), ("another patient's", 9)):
        reports.add(text, at(1), storetime=at(1), hadm_id=hadm)
    assert reports.texts() == ["own", "unlinked"]
    assert reports.counts[ELSEWHERE] == 2


def test_reports_by_charttime_alone(reports: Notes, at: At) -> None:
    reports.add("written later", at(1), storetime=at(60))
    reports.add("at the very end", at(6))
    reports.add("after it", at(6, seconds=1))
    assert reports.texts() == []
    assert reports.texts(prospective=False) == ["written later", "at the very end"]


def test_a_summary_counts_when_it_was_stored(summaries: Notes, at: At) -> None:
    midnight = at(5).replace(hour=0)  # of the day of discharge: charttime is only a date
    summaries.add("in the grace", midnight, storetime=at(6), hadm_id=2, note_type="DS")
    summaries.add("after it", midnight, storetime=at(6, seconds=1), hadm_id=2, note_type="DS")
    summaries.add("addendum", midnight, storetime=at(5, hours=12), hadm_id=2, note_type="AD")
    summaries.add("not stored: the end of its day", midnight, hadm_id=1)
    summaries.add("charted after it was stored", at(5.5), storetime=at(1), hadm_id=1)
    summaries.add("charted too late", at(6.5), storetime=at(1), hadm_id=1)
    assert summaries.texts() == [
        "addendum",
        "not stored: the end of its day",
        "charted after it was stored",
        "in the grace",
    ]
    assert summaries.counts[NOT_KNOWN] == 2
    assert summaries.made()["hours_before"].to_list() == [12, 12, 12, 0]


def test_a_summary_is_of_the_episodes_admissions(summaries: Notes, at: At) -> None:
    stored = {"storetime": at(5)}
    summaries.add("own", at(4), hadm_id=1, **stored)
    # of a day before the window: the patient came and left on one day, and its charttime is midnight
    summaries.add("short stay", at(-0.5), hadm_id=2, **stored)
    summaries.add("an earlier stay's, written late", at(1), hadm_id=77, **stored)
    summaries.add("with the wrong patient", at(4), hadm_id=1, subject_id=OTHER, **stored)
    summaries.add("the other's", at(4), hadm_id=9, subject_id=OTHER, **stored)
    assert sorted(map(str, summaries.texts())) == ["own", "short stay"]
    assert summaries.texts(1) == ["the other's"]
    assert summaries.counts["with another patient than their admission, not used"] == 1
    assert summaries.counts["notes of the samples' admissions"] == 3


def test_summaries_by_charttime_alone(summaries: Notes, at: At) -> None:
    summaries.add("stored much later", at(5), storetime=at(90), hadm_id=1)
    summaries.add("charted later", at(7), storetime=at(5), hadm_id=1)
    assert summaries.texts(prospective=False) == ["stored much later"]
    assert summaries.made(prospective=False)["hours_before"].to_list() == [24]


@pytest.mark.parametrize("kind", ["radiology", "discharge"])
def test_notes_of_a_later_stay_change_nothing(
    kind: str, raw: Any, samples: pl.DataFrame, admissions: pl.DataFrame, at: At
) -> None:
    table = Notes(raw, RADIOLOGY_NOTES if kind == "radiology" else DISCHARGE_NOTES, samples, admissions)
    table.add("own", at(1), storetime=at(5), hadm_id=1)
    before = table.made()
    table.add("of a later stay", at(40), storetime=at(41), hadm_id=5)
    table.add("of a later stay, dated back", at(1), storetime=at(5), hadm_id=5)
    table.add("of this stay, much later", at(1), storetime=at(50), hadm_id=1)
    table.add("of nobody known", at(1), storetime=at(5), hadm_id=6, subject_id=5)
    assert table.made().equals(before)


def test_blanks(reports: Notes, at: At) -> None:
    texts = ["Mr. ___ was seen", "___", "  \n___ \n", "____________", "a_b__c", None, "", "kept\n"]
    for k, text in enumerate(texts):
        reports.add(text, at(1, minutes=k), storetime=at(1, hours=2))
    nothing = [None, None, None]
    assert reports.texts(blanks="keep") == ["Mr. ___ was seen", *nothing, "a_b__c", None, None, "kept\n"]
    assert reports.counts[EMPTY] == 5
    assert reports.texts(blanks="drop") == ["Mr.  was seen", *nothing, "a_b__c", None, None, "kept\n"]


def test_notes_at_one_time_come_in_the_order_of_their_ids(reports: Notes, at: At) -> None:
    for name in ("c", "a", "b"):
        reports.add(name, at(1), storetime=at(1), note_id=name)
    assert reports.texts() == ["a", "b", "c"]


def test_a_note_in_two_windows_serves_both(reports: Notes, at: At) -> None:
    reports.samples = reports.samples.with_columns(subject_id=pl.lit(SUBJECT))
    reports.add("shared", at(1), storetime=at(1))
    assert reports.texts(0) == reports.texts(1) == ["shared"]


def test_counts_and_errors_hold_no_text(
    reports: Notes, at: At, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports.add("secret", at(1), storetime=at(1)).add("secret", "31.12.2150", storetime="secret")
    with caplog.at_level("DEBUG"):
        reports.raw.write(tmp_path)
        with pytest.raises(ExtractError) as caught:
            scan(tmp_path, RADIOLOGY_NOTES)
    message = str(caught.value)
    assert "note/radiology.csv.gz: column charttime: 1 row (row 2) where no date and time could be read" in message
    assert "note/radiology.csv.gz: column storetime: 1 row (row 2)" in message
    reports.raw.rows["note/radiology"].pop()
    reports.made()
    for said in (message, caplog.text, *reports.counts):
        assert "secret" not in said
        assert "31.12" not in said


NASTY = st.text(alphabet=st.sampled_from("ab,\"\n\r\t';_ü1"), max_size=30)


@given(st.lists(NASTY, min_size=1, max_size=8))
def test_texts_are_those_that_pythons_csv_reads(
    tmp_path_factory: pytest.TempPathFactory, new_raw: Any, at: At, texts: list[str]
) -> None:
    # polars reads quotes and line breaks by its own parser
    samples = pl.DataFrame(
        {"sample": [0], "subject_id": [SUBJECT], "window_start": [at(0)], "prediction_time": [at(6)]}
    )
    table = Notes(new_raw(), RADIOLOGY_NOTES, samples, pl.DataFrame(schema={"sample": pl.Int64, "hadm_id": pl.Int64}))
    root = tmp_path_factory.mktemp("raw")
    (root / "note").mkdir()
    with gzip.open(root / "note" / "radiology.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text"])
        for k, text in enumerate(texts):
            writer.writerow([f"{k:03d}", SUBJECT, "", "RR", k, at(1), at(1), text])
    with gzip.open(root / "note" / "radiology.csv.gz", "rt", encoding="utf-8", newline="") as file:
        read = [row["text"] for row in csv.DictReader(file)]
    assert read == texts
    wanted = [text if re.sub("_{3,}", "", text).strip() else None for text in texts]
    assert table.made(scan(root, RADIOLOGY_NOTES))["text"].to_list() == wanted


@pytest.mark.slow
def test_a_hundred_megabytes_of_quoted_lines_are_read_row_for_row(tmp_path: Path, at: At) -> None:
    # chunks of a file are parsed apart: no border of one may fall into a text that looks like rows
    words = ["FINDINGS:", 'said "hurts"', "a,b", "1,2\n3,4", '""', "\r\n", '"', ",", "\n", 'n,1,,RR,1,2,3,"x"\n', "ü"]
    random = Random(0)
    path = tmp_path / "note" / "radiology.csv.gz"
    path.parent.mkdir()
    written = 0
    with gzip.open(path, "wt", encoding="utf-8", newline="", compresslevel=1) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text"])
        for k in count():
            text = " ".join(random.choices(words, k=random.choice([0, 1, 30, 300, 3000] if k % 1000 else [200_000])))
            writer.writerow([f"n-{k}", k % 50, "", "RR", k, at(k % 9), "", text])
            written += len(text)
            if written > 100e6:
                break
    frame = scan(tmp_path, RADIOLOGY_NOTES, tmp_path / "cache")
    limit = csv.field_size_limit(10_000_000)
    ours = iter(frame.select("note_id", "subject_id", "text").collect().iter_rows())
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert next(ours) == (row["note_id"], int(row["subject_id"]), row["text"] or None)
    csv.field_size_limit(limit)
    assert next(ours, None) is None
