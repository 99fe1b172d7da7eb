"""Bad input of MIMIC-IV through the real command: one line that names file, column, count and rows, and no value.

What the reading of tables refuses in general is in `tests/bad_input`; here is what is MIMIC-IV's own. Every message and
every log record is searched for ids, dates and words of the extract.
"""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mmnar_lightning.__main__ import main
from mmnar_lightning.records import RecordStore

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

FILMS = "mimic-cxr-2.0.0-metadata"
WORDS = "sesame-7313-secret"  # planted
# Ids and dates as in `RawTables.life`; words of its notes, films and orders.
SECRETS = re.compile(
    r"\b[123]00000\d\d\b|\b50000001\b|21\d\d-\d\d|21\d{6}|lungs|Hospital Course|film-|-DS-|-RR-|" + WORDS
)
LIVES = 3


@dataclass
class Place:
    """An extract of three lives, to be damaged before or after it is written."""

    raw: RawTables
    root: Path
    stores: Path
    after: list[Callable[[], object]] = field(default_factory=list)

    def path(self, table: str) -> Path:
        return self.root / f"{table}.csv.gz"

    def later(self, do: Callable[[], object]) -> None:
        """Do something once the files are written."""
        self.after.append(do)


Break = Callable[[Place], object]


@pytest.fixture
def place(raw: RawTables, tmp_path: Path) -> Place:
    root = tmp_path / "extract"
    for number in range(LIVES):
        raw.life(number, root)
    return Place(raw, root, tmp_path / "stores")


@dataclass(frozen=True)
class Outcome:
    """Exit status of a run, and the last line of what it said."""

    status: int
    line: str


@pytest.fixture
def prepared(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., Outcome]:
    """`prepared(**options)` writes the extract, runs `mmnar prepare`, and searches all it says for what is secret."""

    def run(**options: Any) -> Outcome:
        place.raw.write(place.root)
        for do in place.after:
            do()
        given = {"root": str(place.root), "store": str(place.stores), "cxr_root": str(place.root), **options}
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"data": {"class_path": "MIMIC4DataModule", "init_args": given}}))
        capsys.readouterr()
        with caplog.at_level(logging.DEBUG):
            status = main(["prepare", "--config", str(config)])
        out, err = capsys.readouterr()
        said = err + "\n".join(record.getMessage() for record in caplog.records)
        assert not SECRETS.search(said.replace(str(tmp_path), "")), "a message holds a value"
        assert "Traceback" not in said
        assert (status == 0) == bool(out)
        return Outcome(status, err.splitlines()[-1])

    return run


def one_store(place: Place) -> RecordStore:
    (manifest,) = place.stores.glob("mimic4-*/manifest.json")
    return RecordStore(manifest.parent)


def counted(store: RecordStore) -> dict[tuple[str, str], int]:
    return {(table, what): n for table, what, n in store.manifest["counts"]}


def put(table: str, column: str, value: Any, *numbers: int) -> Break:
    def damage(place: Place) -> None:
        for number in numbers:
            place.raw.rows[table][number - 1][column] = value

    return damage


def repeat(table: str, number: int) -> Break:
    return lambda place: place.raw.rows[table].append(dict(place.raw.rows[table][number - 1]))


def unlink(table: str) -> Break:
    return lambda place: place.later(lambda: place.path(table).unlink())


def edit(table: str, change: Callable[[bytes], bytes]) -> Break:
    """Change the decompressed bytes of a table."""

    def damage(place: Place) -> None:
        def now() -> None:
            path = place.path(table)
            path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

        place.later(now)

    return damage


def cut(table: str) -> Break:
    return lambda place: place.later(lambda: place.path(table).write_bytes(place.path(table).read_bytes()[:-20]))


def renamed(table: str, old: str, new: str) -> Break:
    return edit(table, lambda text: text.replace(old.encode(), new.encode(), 1))


def in_core(place: Place) -> None:
    def now() -> None:
        (place.root / "core").mkdir()
        place.path("hosp/admissions").rename(place.path("core/admissions"))

    place.later(now)


# fmt: off
BAD: dict[str, tuple[Break, str]] = {
    "no labevents": (unlink("hosp/labevents"), r"missing table hosp/labevents"),
    "no icustays": (unlink("icu/icustays"), r"missing tables? (\S+, )?icu/icustays \("),
    "no storetime": (renamed("hosp/labevents", "storetime", "stored"),
        r"hosp/labevents\.csv\.gz: missing column storetime"),
    "no race": (renamed("hosp/admissions", "race", "colour"), r"hosp/admissions\.csv\.gz: missing column race"),
    "no text": (renamed("note/radiology", "text", "words"), r"note/radiology\.csv\.gz: missing column text"),
    "no StudyDate": (renamed(FILMS, "StudyDate", "When"), rf"{FILMS}\.csv\.gz: missing column StudyDate"),
    "text for a number": (put("hosp/labevents", "valuenum", WORDS, 2, 3),
        r"hosp/labevents\.csv\.gz: column valuenum: 2 rows \(rows 2, 3\) where no number could be read"),
    "text for an item": (put("icu/inputevents", "itemid", WORDS, 1),
        r"icu/inputevents\.csv\.gz: column itemid: 1 row \(row 1\) where no whole number could be read"),
    "text for a time": (put("icu/icustays", "intime", WORDS, 4),
        r"icu/icustays\.csv\.gz: column intime: 1 row \(row 4\) where no date and time could be read"),
    "a month that is none": (put("hosp/admissions", "admittime", "2150-13-01 10:00:00", 2),
        r"hosp/admissions\.csv\.gz: column admittime: 1 row \(row 2\) where no date and time could be read"),
    "a death on no day": (put("hosp/patients", "dod", "2150-02-30", 3),
        r"hosp/patients\.csv\.gz: column dod: 1 row \(row 3\) where no date could be read"),
    "hadm_id twice": (repeat("hosp/admissions", 2),
        r"hosp/admissions\.csv\.gz: column hadm_id: 1 row \(row 7\) that repeat a key"),
    "stay_id twice": (repeat("icu/icustays", 1),
        r"icu/icustays\.csv\.gz: column stay_id: 1 row \(row 7\) that repeat a key"),
    "subject_id twice": (repeat("hosp/patients", 1),
        r"hosp/patients\.csv\.gz: column subject_id: 1 row \(row 4\) that repeat a key"),
    "note_id twice": (repeat("note/discharge", 2),
        r"note/discharge\.csv\.gz: column note_id: 1 row \(row 4\) that repeat a key"),
    "report twice": (repeat("note/radiology", 2),
        r"note/radiology\.csv\.gz: column note_id: 1 row \(row 4\) that repeat a key"),
    "dicom_id twice": (repeat(FILMS, 2), rf"{FILMS}\.csv\.gz: column dicom_id: 1 row \(row 4\) that repeat a key"),
    "a summary of no admission": (put("note/discharge", "hadm_id", None, 2),
        r"note/discharge\.csv\.gz: column hadm_id: 1 row \(row 2\) without a value"),
    "a lab of nobody": (put("hosp/labevents", "subject_id", None, 3),
        r"hosp/labevents\.csv\.gz: column subject_id: 1 row \(row 3\) without a value"),
    "truncated labs": (cut("hosp/labevents"), r"labevents\.csv\.gz: the compressed file is (truncated|damaged)"),
    "truncated notes": (cut("note/radiology"), r"radiology\.csv\.gz: the compressed file is (truncated|damaged)"),
    "truncated film list": (cut(FILMS), rf"{FILMS}\.csv\.gz: the compressed file is (truncated|damaged)"),
    "a note at an impossible time": (put("note/radiology", "charttime", "2150-06-01 25:61:00", 1, 3),
        r"note/radiology\.csv\.gz: column charttime: 2 rows \(rows 1, 3\) where no date and time could be read"),
    "a summary stored at an impossible time": (put("note/discharge", "storetime", "0000-00-00 00:00:00", 2),
        r"note/discharge\.csv\.gz: column storetime: 1 row \(row 2\) where no date and time could be read"),
    "a film at an impossible time": (put(FILMS, "StudyTime", "256100.000", 2),
        rf"{FILMS}: column StudyTime: 1 row \(row 2\) where no time could be read"),
    "a film on no day": (put(FILMS, "StudyDate", "21501301", 1, 3),
        rf"{FILMS}: column StudyDate: 2 rows \(rows 1, 3\) where no date could be read"),
    "an open quote in a note": (edit("note/discharge", lambda text: text[: text.rindex(b'"')] + b"\n"),
        r"note/discharge\.csv\.gz: is no well-formed CSV: a quote that is not closed"),
    "release 1.0 by its folder": (in_core, r"core/admissions\.csv\.gz: .*MIMIC-IV 1\.0.*use MIMIC-IV 2\.2 or 3\.1"),
    "release 1.0 by its ethnicity": (renamed("hosp/admissions", "race", "ethnicity"),
        r"ethnicity is that of MIMIC-IV 1\.0"),
    "release 2.0 or 2.1": (renamed("hosp/admissions", "admit_provider_id", "x"),
        r"hosp/admissions\.csv\.gz: .*looks like MIMIC-IV 2\.0 or 2\.1.*use MIMIC-IV 2\.2 or 3\.1"),
    "release 3.0": (renamed("hosp/d_labitems", "53132,Absolute Lymphocyte Count", "53132,Blasts"),
        r"hosp/d_labitems: .*MIMIC-IV 3\.0.*use MIMIC-IV 3\.1"),
}
# fmt: on


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name: str, place: Place, prepared: Any) -> None:
    damage, says = BAD[name]
    damage(place)
    done = prepared(include_micro=True)
    assert done.status != 0
    assert done.line.startswith("mmnar prepare: error: ")
    assert re.search(says, done.line), done.line
    assert not place.stores.exists() or not any(place.stores.glob("mimic4-*"))


@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_what_the_cases_above_start_from_is_sound(cohort: str, place: Place, prepared: Any) -> None:
    """And neither the closing table nor any log record holds a value."""
    assert prepared(cohort=cohort, include_micro=True).status == 0
    store = one_store(place)
    assert len(store) == LIVES
    assert store.samples["observed/cxr"].all()
    assert store.samples["observed/radiology"].all()


def films(place: Place) -> list[Path]:
    return sorted((place.root / "files").rglob("*.jpg"))


def test_a_film_that_is_listed_but_absent_is_counted(place: Place, prepared: Any) -> None:
    films(place)[1].unlink()
    assert prepared().status == 0
    store = one_store(place)
    assert counted(store)["cxr", "listed but not there"] == 1
    assert store.samples["observed/cxr"].to_list() == [True, False, True]
    assert store.samples["reason/cxr"].to_list() == [None, "unreadable", None]


def test_a_film_that_is_listed_but_absent_is_an_error_by_option(place: Place, prepared: Any) -> None:
    films(place)[1].unlink()
    done = prepared(absent_films="error")
    assert done.status != 0
    assert re.search(rf"{FILMS}: 1 row \(row 2\) with a film that is not below files", done.line), done.line
    assert not any(place.stores.glob("mimic4-*"))


def test_an_unreadable_image_is_none_and_says_so(place: Place, prepared: Any) -> None:
    first, _, third = films(place)
    first.write_bytes(first.read_bytes()[:200])
    third.write_bytes(WORDS.encode())
    assert prepared(absent_films="error").status == 0
    store = one_store(place)
    assert counted(store)["cxr", "unreadable"] == 2
    assert store.samples["observed/cxr"].to_list() == [False, True, False]
    assert store.samples["reason/cxr"].to_list() == ["unreadable", None, "unreadable"]


def test_films_that_no_sample_has_may_be_broken(place: Place, prepared: Any, at: Any) -> None:
    """Those after the prediction time are looked at by nobody, under either option."""
    place.raw.film(None, "later", at(20))
    place.raw.film(None, "nobodys", at(1), subject=19_999_999)
    assert prepared(absent_films="error").status == 0
    assert counted(one_store(place))["cxr", "listed but not there"] == 0


def test_subjects_that_are_not_in_patients_are_counted(place: Place, prepared: Any) -> None:
    tables = ("hosp/labevents", "icu/chartevents", "icu/outputevents", "icu/inputevents", "icu/procedureevents")
    tables += ("hosp/prescriptions",)  # type: ignore[assignment]
    for times, table in enumerate(tables, start=1):
        place.raw.rows[table] += [{**place.raw.rows[table][0], "subject_id": 10_000_099}] * times
    place.raw.admission(20_000_099, place.raw.rows["hosp/admissions"][0]["admittime"], None, 10_000_099)
    assert prepared().status == 0
    store = one_store(place)
    what = "rows of subjects that are not in patients, not used"
    assert [counted(store)[table.split("/")[1], what] for table in tables] == [1, 2, 3, 4, 5, 6]
    assert counted(store)["admissions", "excluded: subject not in patients"] == 1
    assert store.samples["patient"].to_list() == ["10000001", "10000011", "10000021"]


def test_rows_that_are_legal_but_unusable_are_counted_and_left_out(place: Place, prepared: Any) -> None:
    """Discharged before admission; a summary of another patient's admission; labs, notes and films without a time."""
    rows = place.raw.rows
    rows["hosp/admissions"][0]["dischtime"] = rows["hosp/admissions"][0]["admittime"] - timedelta(hours=1)
    rows["note/discharge"][1]["hadm_id"] = 20_000_021
    for table, column in (("hosp/labevents", "charttime"), ("note/radiology", "charttime"), (FILMS, "StudyDate")):
        rows[table][2][column] = None
    assert prepared().status == 0
    store, counts = one_store(place), counted(one_store(place))
    assert counts["admissions", "excluded: discharge before admission"] == 1
    assert counts["discharge", "with another patient than their admission, not used"] == 1
    assert counts["radiology", "rows without a time, not used"] == 1
    assert counts["cxr", "rows without a date, not used"] == 1
    # the first patient's first usable stay is the one after 40 days
    observed = {name: store.samples[f"observed/{name}"].to_list() for name in ("labs", "radiology", "discharge", "cxr")}
    assert observed["labs"] == observed["radiology"] == observed["cxr"] == [False, True, False]
    assert observed["discharge"] == [False, False, True]


@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_an_empty_cohort_is_refused(cohort: str, place: Place, prepared: Any) -> None:
    for row in place.raw.rows["hosp/patients"]:
        row["anchor_age"] = 12
    done = prepared(cohort=cohort)
    assert done.status != 0
    assert re.search("no sample is left", done.line), done.line
    assert not any(place.stores.glob("mimic4-*"))


def test_notes_and_orders_may_be_absent(place: Place, prepared: Any) -> None:
    for table in ("note/discharge", "note/radiology", "hosp/poe", "hosp/poe_detail"):
        unlink(table)(place)
    assert prepared(cxr_root=None).status == 0
    store = one_store(place)
    assert store.schema.names == ("structured", "labs", "vitals", "treatments")
    assert store.samples["group/care_limits"].to_list() == ["not recorded"] * LIVES
