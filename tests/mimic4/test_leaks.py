"""Over the whole extractor: nothing that became known after the prediction time changes a byte of the store.

Each test compares stores of the same people. `RawTables.clocks` is written out by hand, not taken from the tables'
specs. What a single table or modality does at its boundaries is tested beside it (`test_measurements.py`,
`test_notes.py`, …).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_mimic4 import MIMIC4Extractor
from mmnar_mimic4.cohort import CohortName

if TYPE_CHECKING:
    from tests.mimic4.conftest import Extracted, RawTables

    NewRaw = Callable[[], RawTables]
    At = Callable[..., datetime]
    Run = Callable[[MIMIC4Extractor, Path], Extracted]

COHORTS: tuple[CohortName, ...] = ("post_discharge", "icu_landmark")
FILMS = "mimic-cxr-2.0.0-metadata"
# What a new row says: something that no life (`RawTables.life`) has said yet.
NEW: dict[str, dict[str, Any]] = {
    "hosp/labevents": {"itemid": 50983, "valuenum": 140, "valueuom": "mEq/L"},
    "icu/chartevents": {"itemid": 220210, "valuenum": 18, "valueuom": "insp/min"},
    "icu/outputevents": {"itemid": 226560, "value": 350, "valueuom": "mL"},
    "icu/inputevents": {"itemid": 221289, "originalrate": 0.2, "rateuom": "mcg/kg/min"},
    "icu/procedureevents": {"itemid": 225802},
    "hosp/prescriptions": {"drug_type": "MAIN", "drug": "Warfarin"},
    "hosp/microbiologyevents": {"spec_type_desc": "URINE"},
    "hosp/transfers": {"eventtype": "transfer", "careunit": "Surgical Intensive Care Unit (SICU)"},
    "hosp/services": {"curr_service": "SURG"},
    "hosp/poe": {"order_type": "General Care"},
    "note/radiology": {"note_type": "RR", "text": "worse"},
    "note/discharge": {"note_type": "DS", "text": "died at home"},
    FILMS: {},
}
KNOWS_THE_FUTURE = {"last_careunit", "los", "outtime", "stoptime", "rate", "dod", "deathtime", "dischtime", "value"}
KNOWS_THE_FUTURE |= {"hospital_expire_flag", "discharge_location", "statusdescription", "order_status", "totalamount"}
KNOWS_THE_FUTURE |= {"discontinued_by_poe_id", "originalamount", "isopenbag", "continueinnextdept", "flag"}
LIVES = 52  # patients; of each four, two are bare
SECOND = timedelta(seconds=1)


def extractor(cohort: CohortName, root: Path, **options: Any) -> MIMIC4Extractor:
    return MIMIC4Extractor(cohort=cohort, cxr_root=root, include_micro=True, **options)


@pytest.fixture
def prediction(at: At) -> dict[str, datetime]:
    """Prediction time of each cohort in `RawTables.life`."""
    return {"post_discharge": at(6), "icu_landmark": at(1, hours=2)}


def subject(number: int) -> int:
    return 10_000_001 + 10 * number


def lives(raw: RawTables, root: Path) -> RawTables:
    for number in range(LIVES):
        raw.life(number, root, bare=number % 4 > 1)
        if number % 4 == 3:
            # not by way of the emergency department
            raw.rows["hosp/admissions"][2 * number] |= {"edregtime": None, "edouttime": None}
    return raw


@pytest.fixture(scope="module")
def untouched(new_raw: NewRaw, extracted: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Extracted]:
    """What is made of `lives`, by cohort."""
    root = tmp_path_factory.mktemp("untouched")
    lives(new_raw(), root).write(root)
    return {cohort: extracted(extractor(cohort, root), root) for cohort in COHORTS}


def put(raw: RawTables, root: Path, number: int, table: str, event: datetime, entry: datetime | None) -> None:
    """Add a row that says something new of a patient."""
    name, entered, _ = raw.clocks[table]
    row: dict[str, Any] = {**NEW[table], "subject_id": subject(number)}
    key = f"{subject(number)}-new-{len(raw.rows[table])}"
    if table == FILMS:
        raw.film(root, key, event, subject(number))
        return
    row |= {name: event} if entered is None else {name: event, entered: entry}
    if table.startswith("note/"):
        row["note_id"] = key
    if table == "note/discharge":
        row["hadm_id"] = 20_000_001 + 10 * number
    if table == "hosp/poe":
        row["poe_id"] = key
        words = {"field_name": "Code status", "field_value": "Comfort measures only"}
        raw.add("hosp/poe_detail", poe_id=key, subject_id=subject(number), **words)
    raw.add(table, **row)


def put_late(raw: RawTables, root: Path, table: str, number: int, moment: datetime, rng: random.Random) -> None:
    """Add a row that becomes known a second, or up to 60 days, after the prediction time."""
    _, entered, lag = raw.clocks[table]
    late = moment + rng.choice(
        [SECOND, SECOND, timedelta(hours=rng.uniform(0, 48)), timedelta(days=rng.uniform(1, 60))]
    )
    late = late.replace(microsecond=0) + SECOND * (late.microsecond > 0)
    unentered = late - timedelta(minutes=lag)
    if entered is None:
        put(raw, root, number, table, unentered, None)
        return
    way = rng.choice(["entered late", "happened late", "never entered"])
    if way == "entered late":
        about = moment - timedelta(hours=rng.randint(0, 28))
        put(raw, root, number, table, about, late)
    elif way == "happened late":
        put(raw, root, number, table, late, moment - timedelta(hours=1))
    else:
        put(raw, root, number, table, unentered, None)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("cohort", COHORTS)
def test_rows_that_become_known_later_change_nothing(
    cohort: CohortName, seed: int, new_raw: NewRaw, prediction: Any, extracted: Run, untouched: Any, tmp_path: Path
) -> None:
    root = tmp_path / "raw"
    raw = lives(new_raw(), root)
    before = untouched[cohort]
    assert before.samples.height == LIVES
    rng = random.Random(seed)
    added: dict[int, list[str]] = {}
    for number in range(LIVES):
        added[number] = rng.sample(sorted(raw.clocks), 4)
        for table in added[number]:
            put_late(raw, root, table, number, prediction[cohort], rng)
    assert {table for tables in added.values() for table in tables} == raw.clocks.keys()
    after = extracted(extractor(cohort, root), raw.write(root))
    found = after.differing(before)
    assert not found, {name: [added[number] for number in numbers] for name, numbers in found.items()}
    assert after.stored(tmp_path / "b") == before.stored(tmp_path / "a")


@pytest.mark.parametrize("cohort", COHORTS)
def test_the_same_rows_in_time_are_seen(
    cohort: CohortName, new_raw: NewRaw, prediction: Any, extracted: Run, untouched: Any, tmp_path: Path
) -> None:
    """The test above can fail: what becomes known at the very prediction time changes its patient and no other."""
    raw = lives(new_raw(), tmp_path)
    before = untouched[cohort]
    given: dict[int, str] = {}
    for number in range(LIVES):
        table = sorted(raw.clocks)[number // 4]
        # every other one gets a row; summaries are none of the landmark's modalities
        if number % 2 == 0 or (cohort == "icu_landmark" and table == "note/discharge"):
            continue
        given[number] = table
        _, entered, lag = raw.clocks[table]
        moment = prediction[cohort]
        lagged = moment - timedelta(minutes=lag)
        put(raw, tmp_path, number, table, lagged, None if entered is None or number % 4 > 1 else moment)
    found = extracted(extractor(cohort, tmp_path), raw.write(tmp_path)).differing(before)
    changed = set().union(*found.values())
    assert set(given.values()) == raw.clocks.keys() - ({"note/discharge"} if cohort == "icu_landmark" else set())
    assert changed == given.keys(), [given.get(number) for number in changed ^ given.keys()]


@pytest.mark.parametrize("cohort", COHORTS)
def test_films_and_notes_of_a_later_stay_change_no_availability(
    cohort: CohortName, new_raw: NewRaw, at: At, extracted: Run, untouched: Any, tmp_path: Path
) -> None:
    """Neither of those who have some already, nor of those who have none, whatever stay their hadm_id says."""
    root = tmp_path / "raw"
    raw = lives(new_raw(), root)
    before = untouched[cohort]
    for number in range(LIVES):
        later, hadm = at(41, hours=number), 20_000_001 + 10 * number
        keys = {"subject_id": subject(number), "charttime": later, "storetime": later}
        text = {"note_type": "RR", "text": "back again"}
        raw.add("note/radiology", note_id=f"{number}-RR-9", hadm_id=hadm + number % 2, **keys, **text)
        raw.add("note/discharge", note_id=f"{number}-DS-9", hadm_id=hadm + 1, **keys, **text)
        raw.film(root, f"later-{number}", later, subject(number))
    after = extracted(extractor(cohort, root), raw.write(root))
    stores = [one.store(tmp_path / name) for name, one in (("a", before), ("b", after))]
    modalities = [c for c in stores[0].samples.columns if c.startswith(("observed/", "reason/"))]
    assert {"observed/cxr", "observed/radiology", "reason/cxr"} <= set(modalities)
    assert stores[0].samples["observed/cxr"].sum() == LIVES / 2
    assert stores[1].samples.select(modalities).equals(stores[0].samples.select(modalities))
    assert after.stored(tmp_path / "b") == before.stored(tmp_path / "a")


def allowed(one: MIMIC4Extractor) -> dict[str, set[str]]:
    """Columns that may be read, by file."""
    found: dict[str, set[str]] = {}
    for spec in one.tables():
        found.setdefault(spec.file, set()).update(spec.columns)
    return found


@pytest.mark.parametrize("cohort", COHORTS)
def test_columns_and_tables_off_the_lists_change_nothing(
    cohort: CohortName, new_raw: NewRaw, extracted: Run, tmp_path: Path
) -> None:
    """The full headers of the release, every column off the allow-lists garbage; tables off them, no tables at all."""
    roots = [tmp_path / "sound", tmp_path / "garbage"]
    made, corrupted = [], set()
    for root in roots:
        raw = lives(new_raw(), root)
        one = extractor(cohort, root, include_billing=cohort == "post_discharge")
        if root.name == "garbage":
            rng = random.Random(3)
            for table, columns in allowed(one).items():
                for row in raw.rows[table]:
                    for name in set(raw.header(table)) - columns:
                        row[name] = rng.choice(["\u2603 not for your eyes", "-1", "2150-06-01 12:00:00", ""])
                        corrupted.add(f"{table}.{name}")
        raw.write(root)
        if root.name == "garbage":
            for name in ("hosp/emar", "hosp/emar_detail", "hosp/pharmacy", "hosp/drgcodes", "hosp/omr", "icu/d_items"):
                (root / f"{name}.csv.gz").write_bytes(b"no gzip")
        made.append(extracted(one, root).stored(tmp_path / "stores" / root.name))
    assert made[0] == made[1]
    assert {"hosp/labevents.hadm_id", "icu/icustays.los", "hosp/prescriptions.stoptime"} <= corrupted
    assert len(corrupted) > 100


def test_no_allow_list_holds_a_column_that_knows_the_future() -> None:
    """But those of outcomes, which the cohort alone reads, and volumes, whose `value` is a number of a moment."""
    for cohort in COHORTS:
        one = MIMIC4Extractor(
            cohort=cohort, cxr_root=Path(), include_micro=True, include_billing=cohort != "icu_landmark"
        )
        listed = {(s.name, c) for s in one.tables() for c in s.columns if c.lower() in KNOWS_THE_FUTURE}
        outcomes = {name for name, _ in listed}
        assert outcomes == {"deaths", "discharges", "icu_ends", "outputevents"}
        assert {column for name, column in listed if name == "outputevents"} == {"value"}


@pytest.mark.parametrize("cohort", COHORTS)
def test_what_has_begun_is_present_and_its_end_and_result_are_not(
    cohort: CohortName, new_raw: NewRaw, prediction: Any, extracted: Run, tmp_path: Path
) -> None:
    moment: datetime = prediction[cohort]
    rng = random.Random(4)
    made = []
    for _ in range(2):
        raw = lives(new_raw(), tmp_path)
        for number in range(LIVES):
            # ends after the prediction time, or before it but entered after it
            end = moment + timedelta(hours=rng.uniform(-1 if number % 2 else 0, 90))
            stored = max(end, moment + SECOND)
            times = {"starttime": moment - timedelta(hours=15), "endtime": end, "storetime": stored}
            told = {
                "amount": rng.random(),
                "rate": rng.random(),
                "statusdescription": rng.choice(["Stopped", "Paused"]),
            }
            told |= {"totalamount": rng.random(), "originalamount": rng.random(), "patientweight": 70 + rng.random()}
            drip = {"itemid": 221906, "originalrate": 0.25, "rateuom": "mcg/kg/min"}
            fluid = {"itemid": 225158, "originalrate": 100, "rateuom": "mL/hour", "amountuom": "ml"}
            who = {"subject_id": subject(number)}
            raw.add("icu/inputevents", **who, **drip, **times, **told).add(
                "icu/inputevents", **who, **fluid, **times, **told
            )
            said = {"value": rng.random(), "ORIGINALRATE": rng.random(), "statusdescription": told["statusdescription"]}
            raw.add("icu/procedureevents", **who, itemid=225792, **times, **said)
            asked = {"drug_type": "MAIN", "drug": "Heparin", "starttime": times["starttime"]}
            raw.add("hosp/prescriptions", **who, **asked, stoptime=end, doses_per_24_hrs=rng.randint(1, 9))
            status = {"order_status": rng.choice(["Active", "Inactive"]), "discontinued_by_poe_id": str(rng.random())}
            raw.add("hosp/poe", **who, poe_id=f"{number}-x", ordertime=times["starttime"], **status)
            grown = {"org_name": rng.choice(["YEAST", "PROTEUS MIRABILIS"]), "ab_name": rng.choice(["MEROPENEM", None])}
            taken = {"charttime": times["starttime"], "chartdate": times["starttime"].date(), "storetime": stored}
            raw.add("hosp/microbiologyevents", **who, spec_type_desc="SPUTUM", **taken, **grown)
        made.append(extracted(extractor(cohort, tmp_path), raw.write(tmp_path)))
    assert made[0].differing(made[1]) == {}
    assert made[0].stored(tmp_path / "a") == made[1].stored(tmp_path / "b")
    expected = {"norepinephrine_ongoing": 1, "norepinephrine_rate_last": 0.25, "invasive_ventilation_ongoing": 1}
    expected |= {"crystalloid_amount": 1500, "rx_heparin_count": 1}
    for item, value in expected.items():
        assert {made[0].value("treatments", item, n) for n in range(LIVES)} == {value}, item
    assert set(made[0].elements["micro"]["code"]) == {
        "specimen:SPUTUM",
        "specimen:BLOOD CULTURE",
        "organism:ESCHERICHIA COLI",
    }


def features(one: Extracted) -> pl.DataFrame:
    return one.samples.drop(c for c in one.samples.columns if c.startswith("label/"))


@pytest.mark.parametrize("cohort", COHORTS)
def test_outcomes_after_the_prediction_time_change_labels_at_most(
    cohort: CohortName, new_raw: NewRaw, prediction: Any, extracted: Run, untouched: Any, tmp_path: Path
) -> None:
    raw = lives(new_raw(), tmp_path)
    before = untouched[cohort]
    rng = random.Random(5)
    inside = cohort == "icu_landmark"
    for number in range(LIVES):
        stay = next(row for row in raw.rows["icu/icustays"] if row["subject_id"] == subject(number))
        admission, again = (row for row in raw.rows["hosp/admissions"] if row["subject_id"] == subject(number))
        person = raw.rows["hosp/patients"][number]
        end = prediction[cohort] + timedelta(hours=rng.uniform(0.01, 300))
        if inside:
            died = rng.choice([True, False])
            stay |= {"outtime": end, "los": 3.5, "last_careunit": "Neuro Stepdown"}
            admission |= {"dischtime": end, "discharge_location": "DIED" if died else "HOSPICE"}
            admission |= {"hospital_expire_flag": int(died), "deathtime": end if died else None}
            person["dod"] = end.date() + timedelta(days=rng.randint(0, 40))
        elif number % 2:
            person["dod"] = end.date() + timedelta(days=1)
        if number % 3 == 0:
            # back within a day of the end, or never
            again |= {"admittime": end + timedelta(hours=5), "dischtime": end + timedelta(days=9)}
            again |= {"edregtime": end + timedelta(hours=1)}
        elif number % 3 == 1:
            again["subject_id"] = 99
    after = extracted(extractor(cohort, tmp_path), raw.write(tmp_path))
    assert features(after).equals(features(before))
    assert [name for name in after.differing(before) if name != "samples"] == []
    assert not after.samples.equals(before.samples), "no label was changed"


def test_a_discharge_summary_counts_by_storetime_within_the_grace(
    new_raw: NewRaw, at: At, extracted: Run, tmp_path: Path
) -> None:
    """Discharged at noon of day 5; charttime is but a date, whose day is over at midnight."""
    midnight = at(4.5)
    cases: list[tuple[datetime, datetime | None, bool]] = [
        (midnight, at(5, hours=-20), True),
        (midnight, at(6), True),
        (midnight, at(6) + SECOND, False),
        (midnight, at(9), False),
        (midnight, None, True),
        (midnight + timedelta(days=1), None, False),
        (midnight + timedelta(days=1), at(6), True),
        (midnight + timedelta(days=9), at(5), False),
    ]
    raw = new_raw()
    for number, (chart, store, _) in enumerate(cases):
        raw.life(number, tmp_path, bare=True)
        put(raw, tmp_path, number, "note/discharge", chart, store)
    raw.film(tmp_path, "a", at(0, 1))
    samples = extracted(extractor("post_discharge", tmp_path), raw.write(tmp_path)).store(tmp_path / "s").samples
    assert samples["observed/discharge"].to_list() == [known for _, _, known in cases]
    assert samples["reason/discharge"].to_list() == [None if known else "not_ordered" for _, _, known in cases]


@pytest.mark.parametrize("cohort", COHORTS)
def test_the_order_of_rows_changes_no_byte(
    cohort: CohortName, new_raw: NewRaw, prediction: Any, extracted: Run, tmp_path: Path
) -> None:
    root = tmp_path / "raw"
    raw, rng = lives(new_raw(), root), random.Random(6)
    for number in range(LIVES):
        for table in raw.clocks:
            for _ in range(2):
                event = prediction[cohort] - timedelta(hours=rng.choice([1, 2, 20]))
                put(raw, root, number, table, event, event + timedelta(hours=1))
    expected = extracted(extractor(cohort, root), raw.write(root)).stored(tmp_path / "a")
    for rows in raw.rows.values():
        rng.shuffle(rows)
    assert extracted(extractor(cohort, root), raw.write(root)).stored(tmp_path / "b") == expected
