"""What is known at the door and of the stay so far; subgroups; limits of care."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, scan
from mmnar_mimic4.structured import (
    care_limits,
    categories,
    groups,
    structured,
    structured_items,
)
from mmnar_mimic4.tables import ADMISSIONS, ICU_STAYS, ORDER_DETAILS, ORDERS, SERVICES, TRANSFERS
from mmnar_mimic4.windows import Source

SPECS = (TRANSFERS, SERVICES, ADMISSIONS)
SUBJECT = 10_000_001
MICU = "Medical Intensive Care Unit (MICU)"


def person(at: Any, **columns: Any) -> dict[str, Any]:
    """A sample: 24 hours into an ICU stay that began 6 hours after admission."""
    usual = {
        "sample": 0,
        "subject_id": SUBJECT,
        "hadm_id": 1,
        "window_start": at(0, -3),
        "prediction_time": at(1, 6),
        "episode": 1,
        "admissions": 2,
        "admittime": at(0),
        "edregtime": at(0, -3),
        "intime": at(0, 6),
        "age": 70,
        "gender": "F",
        "anchor_year_group": "2011 - 2013",
        "admission_type": "EW EMER.",
        "admission_location": "EMERGENCY ROOM",
        "insurance": "Medicare",
        "language": "ENGLISH",
        "marital_status": "MARRIED",
        "race": "WHITE - RUSSIAN",
        "discharge_location": None,
        "first_careunit": MICU,
    }
    return {**usual, **columns}


def people(*rows: dict[str, Any]) -> pl.DataFrame:
    texts = dict.fromkeys(("discharge_location", "race", "language", "marital_status", "insurance"), pl.String())
    times = dict.fromkeys(("edregtime", "intime"), pl.Datetime("us"))
    return pl.DataFrame(list(rows), schema_overrides={**texts, **times})


def made(
    frames: Mapping[str, pl.LazyFrame], samples: pl.DataFrame, cohort: str = "icu_landmark", log: Counts | None = None
) -> pl.DataFrame:
    log = log or Counts()
    return structured(Source(frames, samples, log), samples, cohort, log)


def course(raw: Any, at: Any) -> Any:
    """A way through the hospital, known for the first 30 hours."""
    raw.admission(1, at(0), at(9), edregtime=at(0, -3), edouttime=at(0, 2))
    for event, unit, start in (
        ("ED", "Emergency Department", at(0, -3)),
        ("admit", "Medicine", at(0, 2)),
        ("transfer", MICU, at(0, 6)),
    ):
        raw.add("hosp/transfers", subject_id=SUBJECT, eventtype=event, careunit=unit, intime=start)
    for service, start in (("MED", at(0)), ("CSURG", at(0, 6))):
        raw.add("hosp/services", subject_id=SUBJECT, transfertime=start, curr_service=service)
    return raw


def test_a_patient_by_hand(raw: Any, at: Any) -> None:
    row = made(course(raw, at).lazy(*SPECS), people(person(at))).row(0, named=True)
    ones = {name for name, value in row.items() if value == 1 and "_" in name and name != "icu_transfers"}
    assert ones == {
        "ed_entry",
        "sex_female",
        "admission_emergency",
        "from_emergency_room",
        "insurance_medicare",
        "language_english",
        "marital_married",
        "race_white",
        "unit_medical_icu",
        "service_medicine",
        "service_cardiac_surgery",
    }
    assert (row["age"], row["episode"], row["admissions"]) == (70, 1, 2)
    assert (row["transfers"], row["care_units"], row["icu_transfers"]) == (1, 3, 1)
    assert (row["hours_since_admission"], row["hours_before_icu"], row["ed_hours"]) == (30, 6, 5)
    assert row["hours_before"] == 30
    # admitted at noon
    assert row["admission_hour_sin"] == pytest.approx(0, abs=1e-6)
    assert row["admission_hour_cos"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("entered", "left", "hours"),
    [(None, None, None), (-3, 2, 5.0), (-3, None, None), (-3, 50, 33.0)],
)
def test_hours_in_the_emergency_department(
    raw: Any, at: Any, entered: float | None, left: float | None, hours: float | None
) -> None:
    times = [None if t is None else at(0, t) for t in (entered, left)]
    raw.admission(1, at(0), at(9), edregtime=times[0], edouttime=times[1])
    row = made(raw.lazy(*SPECS), people(person(at, edregtime=times[0]))).row(0, named=True)
    assert row["ed_hours"] == hours
    assert row["ed_entry"] == (entered is not None)


@pytest.mark.parametrize(
    ("column", "value", "item"),
    [
        ("language", "?", "language_unknown"),
        ("language", "Haitian", "language_other"),
        ("language", " english ", "language_english"),
        ("insurance", "No charge", "insurance_none"),
        ("insurance", "Something", "insurance_other"),
        ("race", "HISPANIC/LATINO - CUBAN", "race_hispanic"),
        ("race", "MULTIPLE RACE/ETHNICITY", "race_other"),
        ("race", "PATIENT DECLINED TO ANSWER", "race_unknown"),
        ("admission_type", "EU OBSERVATION", "admission_observation"),
        ("marital_status", None, None),
        ("marital_status", " ", None),
    ],
)
def test_values_and_their_items(raw: Any, at: Any, column: str, value: str | None, item: str | None) -> None:
    row = made(course(raw, at).lazy(*SPECS), people(person(at, **{column: value}))).row(0, named=True)
    table = categories()[0]
    mine = set(table.filter(pl.col("attribute") == column)["item"])
    wanted = dict.fromkeys(mine, None if item is None else 0.0) | ({} if item is None else {item: 1.0})
    assert {name: row[name] for name in mine} == wanted


def test_where_the_patient_went_is_known_after_discharge_alone(raw: Any, at: Any) -> None:
    course(raw, at)
    samples = people(person(at, discharge_location="REHAB", prediction_time=at(10)))
    after = made(raw.lazy(*SPECS), samples, "post_discharge")
    assert after["to_rehabilitation"].to_list() == [1]
    during = made(raw.lazy(*SPECS), samples, "icu_landmark")
    assert not [name for name in during.columns if name.startswith("to_")]
    assert "hours_before_icu" not in after.columns


@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_columns_are_the_items(raw: Any, at: Any, cohort: str) -> None:
    found = made(raw.lazy(*SPECS), people(person(at)), cohort)
    assert found.columns == ["sample", "hours_before", *structured_items(cohort)]
    assert len(set(structured_items(cohort))) == len(structured_items(cohort))
    assert set(found.schema.values()) == {pl.Int64(), pl.Float32()}
    row = found.row(0, named=True)
    assert (row["transfers"], row["unit_medicine"], row["service_medicine"]) == (0, None, None)


def test_an_event_of_discharge_is_no_unit(raw: Any, at: Any) -> None:
    course(raw, at).add("hosp/transfers", subject_id=SUBJECT, eventtype="discharge", careunit=None, intime=at(9))
    found = made(raw.lazy(*SPECS), people(person(at, prediction_time=at(10))), "post_discharge")
    assert found["unit_medical_icu"].to_list() == [1]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_becomes_known_later_changes_nothing(new_raw: Any, at: Any, data: st.DataObject) -> None:
    before = made(course(new_raw(), at).lazy(*SPECS), people(person(at)))
    raw = course(new_raw(), at)
    for _ in range(3):
        # a row is known an hour after it
        late = at(0, data.draw(st.one_of(st.just(29.01), st.floats(29.01, 5000))))
        event = data.draw(st.sampled_from(["ED", "admit", "transfer", "discharge"]))
        unit = data.draw(st.sampled_from([None, "Medicine", "Transplant", "Coronary Care Unit (CCU)"]))
        raw.add("hosp/transfers", subject_id=SUBJECT, eventtype=event, careunit=unit, intime=late)
        service = data.draw(st.sampled_from(["MED", "ORTHO", "SURG"]))
        raw.add("hosp/services", subject_id=SUBJECT, transfertime=late, curr_service=service)
    assert made(raw.lazy(*SPECS), people(person(at))).equals(before)
    # who leaves the emergency department later is in it until now
    waiting = [course(new_raw(), at) for _ in range(2)]
    for one, hours in zip(waiting, (31.0, data.draw(st.floats(31, 400))), strict=True):
        one.rows["hosp/admissions"][0]["edouttime"] = at(0, hours)
    first, second = (made(one.lazy(*SPECS), people(person(at))) for one in waiting)
    assert first.equals(second)


def test_subgroups(at: Any) -> None:
    rows = people(
        person(at, age=90, race="BLACK/CAPE VERDEAN", language="?", edregtime=None),
        person(at, sample=1, age=44, gender="M", race=None, insurance="Private"),
    )
    found = rows.select(groups("icu_landmark"))
    assert found.rows(named=True) == [
        {
            "group/sex": "female",
            "group/age_band": "85+",
            "group/race": "black",
            "group/insurance": "medicare",
            "group/language": "unknown",
            "group/admission_type": "emergency",
            "group/ed_entry": "no",
            "group/year": "2011 - 2013",
            "group/unit_type": MICU.lower(),
        },
        {
            "group/sex": "male",
            "group/age_band": "18-44",
            "group/race": None,
            "group/insurance": "private",
            "group/language": "english",
            "group/admission_type": "emergency",
            "group/ed_entry": "yes",
            "group/year": "2011 - 2013",
            "group/unit_type": MICU.lower(),
        },
    ]
    assert "group/unit_type" not in rows.select(groups("post_discharge")).columns


@pytest.mark.parametrize(
    ("age", "band"), [(18, "18-44"), (45, "45-64"), (64, "45-64"), (65, "65-74"), (84, "75-84"), (85, "85+")]
)
def test_age_bands(at: Any, age: int, band: str) -> None:
    assert people(person(at, age=age)).select(groups("post_discharge"))["group/age_band"].to_list() == [band]


def orders(*rows: tuple[str, datetime, str, str | None]) -> dict[str, pl.LazyFrame]:
    """Orders by (id, time, field, value)."""
    poe = [{"poe_id": one, "subject_id": SUBJECT, "ordertime": time} for one, time, _, _ in rows]
    details = [
        {"poe_id": one, "subject_id": SUBJECT, "field_name": name, "field_value": value} for one, _, name, value in rows
    ]
    return {
        ORDERS.name: pl.LazyFrame(poe, schema=ORDERS.schema),
        ORDER_DETAILS.name: pl.LazyFrame(details, schema=ORDER_DETAILS.schema),
    }


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("Resuscitate (Full code)", "full"),
        ("Full code  (attempt resuscitation)", "full"),
        ("Do not resuscitate (DNR/DNI)", "limited"),
        ("DNAR (DO NOT attempt resuscitation for cardiac arrest)", "limited"),
        ("Comfort measures only", "comfort"),
        ("CMO", "comfort"),
        (None, None),
    ],
)
def test_words_of_care_limits(at: Any, value: str | None, level: str | None) -> None:
    source = Source(orders(("a", at(0), "Code status", value)), people(person(at)), Counts())
    assert care_limits(source).rows() == ([] if level is None else [(0, level)])


def test_the_worst_limit_by_then_counts(at: Any) -> None:
    frames = orders(
        ("a", at(0, 1), "Code status", "Do not resuscitate (DNR/DNI)"),
        ("b", at(0, 2), "Code status", "Resuscitate (Full code)"),
        ("c", at(1, 6, 0.1), "Code status", "Comfort measures only"),  # after the prediction time
        ("d", at(0, -4), "Code status", "Comfort measures only"),  # of an earlier stay
        ("e", at(0, 3), "Admit to", "Comfort measures only"),
    )
    assert care_limits(Source(frames, people(person(at)), Counts())).rows() == [(0, "limited")]
    assert care_limits(Source(orders(), people(person(at)), Counts())).height == 0


def test_orders_of_the_demo(demo_root: Path) -> None:
    frames = {spec.name: scan(demo_root, spec) for spec in (ORDERS, ORDER_DETAILS)}
    details = frames[ORDER_DETAILS.name].filter(pl.col("field_name") == "Code status").collect()
    subjects = details["subject_id"].unique().sort()
    samples = pl.DataFrame({"sample": range(len(subjects)), "subject_id": subjects}).with_columns(
        window_start=datetime(2000, 1, 1), prediction_time=datetime(2300, 1, 1)
    )
    found = care_limits(Source(frames, samples, Counts()))
    limited = details.filter(pl.col("field_value").str.to_lowercase().str.contains("not "))["subject_id"].unique()
    assert found.height == len(subjects)
    assert set(found.filter(care_limits="limited")["sample"]) == set(
        samples.filter(pl.col("subject_id").is_in(limited.to_list()))["sample"]
    )


def test_every_value_of_the_demo_has_one_item(demo_root: Path) -> None:
    """One-hot groups add up to one, `other` is rare, and permuted rows give the same bytes."""
    frames = {spec.name: scan(demo_root, spec).collect() for spec in SPECS}
    stays = scan(demo_root, ICU_STAYS).collect()
    samples = stays.join(frames["admissions"].drop("subject_id"), on="hadm_id").sort("subject_id", "intime")
    samples = samples.drop("edouttime").with_columns(
        sample=pl.int_range(pl.len()),
        window_start=pl.coalesce("edregtime", "admittime"),
        prediction_time=pl.col("intime") + timedelta(days=1),
        age=pl.lit(60),
        gender=pl.lit("M"),
        episode=pl.lit(0),
        admissions=pl.lit(1),
    )
    found = made({name: frame.lazy() for name, frame in frames.items()}, samples)
    assert found.height == samples.height
    assert (found["hours_before"] >= 0).all()
    table = categories()[0]
    for attribute in ("admission_type", "admission_location", "insurance", "language", "race", "unit"):
        names = list(dict.fromkeys(table.filter(pl.col("attribute") == attribute)["item"]))
        total = found.select(pl.sum_horizontal(pl.col(names), ignore_nulls=False))[names[0]].drop_nulls()
        assert len(total) > 0.9 * found.height
        assert (total == 1).all()
    assert found["unit_other"].sum() == found["admission_other"].sum() == found["from_other"].sum() == 0
    assert found.filter(pl.col("icu_transfers") > 0).height > 80
    shuffled = {name: frame.sample(fraction=1, shuffle=True, seed=1).lazy() for name, frame in frames.items()}
    assert made(shuffled, samples).equals(found)
