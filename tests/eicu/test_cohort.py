"""Episodes, prediction times, exclusions and labels, against hand-worked timelines and plain Python."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_eicu.cohort import TASKS, Cohort, CohortName, build_cohort, number_episodes, unit_stays
from mmnar_eicu.tables import OUTCOMES, PATIENT, STAY
from mmnar_lightning.extract import Counts

DAY = 1440
PERSON: dict[str, Any] = {
    "patienthealthsystemstayid": 10,
    "uniquepid": "001-1",
    "hospitalid": 7,
    "gender": "Male",
    "age": "60",
    "ethnicity": "Caucasian",
    "admissionheight": 180.0,
    "admissionweight": 80.0,
    "hospitaladmitoffset": 0,
    "hospitaladmitsource": "Floor",
    "unittype": "MICU",
    "unitadmittime24": "12:00:00",
    "unitadmitsource": "Floor",
    "unitstaytype": "admit",
    "unitdischargeoffset": 3 * DAY,
    "unitdischargestatus": "Alive",
    "hospitaldischargeoffset": 20 * DAY,
    "hospitaldischargestatus": "Alive",
    "hospitaldischargeyear": 2015,
}


def frames(*stays: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Patient table and outcomes of unit stays numbered from 1; what isn't said is one adult's ordinary stay."""
    rows = [{STAY: number, **PERSON, **stay} for number, stay in enumerate(stays, 1)]
    schema = {**PATIENT.schema, **OUTCOMES.schema}
    both = pl.DataFrame(rows, schema=schema)
    return both.select(*PATIENT.schema), both.select(*OUTCOMES.schema)


def cohort(
    *stays: dict[str, Any], name: CohortName = "landmark", hours: float = 24, log: Counts | None = None
) -> Cohort:
    return build_cohort(*frames(*stays), name, hours, Counts() if log is None else log)


def unit(start: int, end: int, **columns: Any) -> dict[str, Any]:
    """Unit stay from minute `start` to `end` after hospital admission; 30 days in the hospital."""
    return {
        "hospitaladmitoffset": -start,
        "unitdischargeoffset": end - start,
        "hospitaldischargeoffset": 30 * DAY - start,
        **columns,
    }


def label(found: Cohort, task: str) -> list[bool | None]:
    return found.samples[f"label/{task}"].to_list()


@pytest.mark.parametrize(("gap", "episodes"), [(-500, 1), (0, 1), (59, 1), (60, 1), (61, 2), (5000, 2)])
def test_unit_stays_at_most_60_minutes_apart_are_one_episode(gap: int, episodes: int) -> None:
    found = cohort(unit(100, 2000), unit(2000 + gap, 9000), name="unit_discharge")
    assert found.samples.height == episodes
    assert found.samples["prediction_time"].to_list() == ([8900.0] if episodes == 1 else [1900.0, 9000.0 - 2000 - gap])


def test_the_order_is_that_of_hospital_admission_not_of_the_rows() -> None:
    found = cohort(unit(6000, 9000), unit(100, 5000), name="unit_discharge")
    assert found.samples[STAY].to_list() == [2, 1]
    assert label(found, "readmission_icu") == [True, False]


def test_a_stay_inside_another_does_not_end_the_episode() -> None:
    # minute 500 to 500 lies within 0 to 4000; the stay at 4030 is 30 minutes from the end of the first, not 3530
    found = cohort(unit(0, 4000), unit(500, 500), unit(4030, 6000), name="unit_discharge")
    assert found.samples["prediction_time"].to_list() == [6000.0]


@pytest.mark.parametrize(("end", "there"), [(1439, False), (1440, False), (1441, True)])
def test_the_landmark_needs_a_patient_who_is_still_there_after_24_hours(end: int, there: bool) -> None:
    log = Counts()
    found = cohort(unit(300, 300 + end), log=log)
    assert found.samples.height == there
    assert dict(log.items())["episodes", "excluded: left the ICU or died by hour 24"] == (not there)


def test_a_bed_move_does_not_hide_a_patient_from_the_landmark() -> None:
    found = cohort(unit(0, 600), unit(630, 2000))
    assert found.samples["prediction_time"].to_list() == [1440.0]
    assert found.samples["length"].to_list() == [2000]


def test_the_landmark_takes_the_first_episode_of_each_hospital_stay() -> None:
    other = {"patienthealthsystemstayid": 11}
    found = cohort(unit(0, 2000), unit(4000, 9000), unit(50, 3000, **other))
    assert found.samples[STAY].to_list() == [1, 3]


@pytest.mark.parametrize(("end", "long"), [(7 * DAY - 1, False), (7 * DAY, False), (7 * DAY + 1, True)])
def test_a_long_stay_is_over_7_days(end: int, long: bool) -> None:
    assert label(cohort(unit(60, 60 + end)), "los_7d") == [long]
    assert label(cohort(unit(60, 60 + end)), "death_or_los_7d") == [long]


@pytest.mark.parametrize(
    ("unit_end", "hospital_end", "status", "los", "either"),
    [
        (5 * DAY, 5 * DAY, "Expired", False, True),  # died in the ICU on day 5
        (3 * DAY, 7 * DAY, "Expired", False, True),  # died on the ward at the end of day 7
        (3 * DAY, 7 * DAY + 1, "Expired", False, False),  # alive after 7 days
        (9 * DAY, 9 * DAY, "Expired", True, True),
        (3 * DAY, 5 * DAY, "", False, None),  # nobody knows
        (3 * DAY, 9 * DAY, "", False, False),  # was in the hospital after 7 days
        (8 * DAY, 9 * DAY, "", True, True),
    ],
)
def test_death_within_7_days_is_negative_for_the_stay_and_positive_for_the_composite(
    unit_end: int, hospital_end: int, status: str, los: bool, either: bool | None
) -> None:
    found = cohort(
        unit(0, unit_end, hospitaldischargeoffset=hospital_end, hospitaldischargestatus=status)
        | {"unitdischargestatus": "Expired" if status == "Expired" and unit_end == hospital_end else "Alive"}
    )
    assert (label(found, "los_7d"), label(found, "death_or_los_7d")) == ([los], [either])


@pytest.mark.parametrize(
    ("in_unit", "in_hospital", "died_unit", "died_hospital"),
    [
        ("Alive", "Alive", False, False),
        ("Alive", "Expired", False, True),
        ("Expired", "Expired", True, True),
        ("Expired", None, True, True),  # who dies in the unit dies in the hospital
        ("Alive", None, False, None),
        ("Alive", " ", False, None),
        ("Alive", "Unknown", False, None),
        (None, "Alive", None, False),
        (None, None, None, None),
        ("Expired", "Alive", None, None),  # contradiction
        (" expired ", "EXPIRED", True, True),
    ],
)
def test_unknown_status_is_unknown_never_negative(
    in_unit: str | None, in_hospital: str | None, died_unit: bool | None, died_hospital: bool | None
) -> None:
    log = Counts()
    found = cohort({"unitdischargestatus": in_unit, "hospitaldischargestatus": in_hospital}, log=log)
    assert label(found, "mortality_unit") == [died_unit]
    assert label(found, "mortality_hospital") == [died_hospital]
    contradicts = (in_unit, in_hospital) == ("Expired", "Alive")
    assert dict(log.items())["samples", "outcome contradicts itself, label unknown"] == contradicts


def test_death_in_the_unit_is_that_of_the_last_unit_of_the_episode() -> None:
    dead = {"hospitaldischargestatus": "Expired"}
    moved = cohort(unit(0, 600, **dead), unit(600, 3000, unitdischargestatus="Expired", **dead))
    assert label(moved, "mortality_unit") == [True]
    # who died in the first of two units was not in the second: the record contradicts itself
    strange = cohort(unit(0, 600, unitdischargestatus="Expired", **dead), unit(600, 3000, **dead))
    assert label(strange, "mortality_unit") == [None]
    assert label(strange, "mortality_hospital") == [None]


@pytest.mark.parametrize(
    ("age", "years"),
    [("> 89", 90.0), (">89", 90.0), ("18", 18.0), ("17", None), ("0", None), ("", None), (None, None), ("95", 90.0)],
)
def test_age_is_capped_and_unknown_or_under_18_excluded(age: str | None, years: float | None) -> None:
    log = Counts()
    assert cohort({"age": age}, log=log).samples["years"].to_list() == ([] if years is None else [years])
    counts = dict(log.items())
    why = [counts["episodes", "excluded: age unknown"], counts["episodes", "excluded: under 18"]]
    assert why == ([0, 0] if years else [0, 1] if age in ("17", "0") else [1, 0])


def test_step_down_is_no_icu_and_breaks_no_episode() -> None:
    log = Counts()
    step_down = unit(2000, 2050, unitstaytype="stepdown/other")
    found = cohort(unit(0, 2000), step_down, unit(2060, 5000), name="unit_discharge", log=log)
    assert found.samples["prediction_time"].to_list() == [5000.0]
    assert dict(log.items())["patient", "excluded: step-down unit, no ICU"] == 1
    # a stay on the step-down unit after the ICU is no readmission
    later = cohort(unit(0, 2000), unit(4000, 6000, unitstaytype="stepdown/other"), name="unit_discharge")
    assert label(later, "readmission_icu") == [False]


@pytest.mark.parametrize(("after", "there"), [(-30, False), (0, False), (60, False), (61, True)])
def test_unit_discharge_needs_over_60_minutes_more_in_the_hospital(after: int, there: bool) -> None:
    log = Counts()
    found = cohort(unit(0, 3000, hospitaldischargeoffset=3000 + after), name="unit_discharge", log=log)
    assert found.samples.height == there
    assert dict(log.items())["episodes", "excluded: left the hospital within 60 minutes of the ICU"] == (not there)


@pytest.mark.parametrize(("status", "there"), [("Alive", True), ("Expired", False), (None, False)])
def test_unit_discharge_needs_a_patient_known_to_be_alive(status: str | None, there: bool) -> None:
    assert cohort({"unitdischargestatus": status}, name="unit_discharge").samples.height == there


@pytest.mark.parametrize(
    "wrong",
    [
        {"unitdischargeoffset": -1},
        {"unitdischargeoffset": None},
        {"hospitaladmitoffset": -480_446},
        {"hospitaladmitoffset": None},
        {"hospitaladmitoffset": -100, "hospitaldischargeoffset": -200},
        {"hospitaldischargeoffset": None},
    ],
)
def test_legal_but_unusable_stays_are_excluded_and_counted(wrong: dict[str, Any]) -> None:
    log = Counts()
    good = {"patienthealthsystemstayid": 11}
    assert cohort(wrong, good, log=log).samples[STAY].to_list() == [2]
    excluded = [n for (table, what), n in log.items() if table == "patient" and what.startswith("excluded")]
    assert sum(excluded) == 1


def test_a_unit_stay_that_has_not_begun_serves_no_sample() -> None:
    found = cohort(unit(300, 1500), unit(1550, 1900), unit(1950, 9000))
    stays = found.stays.sort(STAY).to_dicts()
    # prediction at minute 300 + 1440 = 1740 of the hospital stay; the third unit begins at 1950
    assert [s[STAY] for s in stays] == [1, 2]
    assert [s["prediction_time"] for s in stays] == [1440.0, 190.0]
    assert [s["shift"] for s in stays] == [0.0, 1250.0]
    assert [s["window_start"] for s in stays] == [-300.0 - DAY, -1550.0 - DAY]


@pytest.mark.parametrize(("start", "opens"), [(0, -DAY), (120, -DAY - 120), (-69, -DAY + 69), (-DAY, 0), (-2000, 0)])
def test_the_window_opens_a_day_before_the_hospital_or_with_the_unit(start: int, opens: int) -> None:
    assert cohort(unit(start, start + 3000)).stays["window_start"].to_list() == [opens]


def test_restrict_numbers_samples_and_stays_anew() -> None:
    found = cohort(*[{"patienthealthsystemstayid": n} for n in (3, 1, 2)])
    kept = found.restrict(pl.Series([False, True, True]))
    assert kept.samples["sample"].to_list() == [0, 1]
    assert kept.samples["patienthealthsystemstayid"].to_list() == [2, 3]
    assert kept.stays.select(STAY, "sample").rows() == [(3, 0), (1, 1)]


times = st.integers(0, 3000)
statuses = st.sampled_from(["Alive", "Expired", None])
random_stays = st.lists(
    st.builds(
        lambda stay, start, length, in_unit, in_hospital: {
            **unit(start, start + length, unitdischargestatus=in_unit, hospitaldischargestatus=in_hospital),
            "patienthealthsystemstayid": stay,
        },
        st.integers(1, 2),
        times,
        st.one_of(times, st.sampled_from([DAY, 7 * DAY, 7 * DAY + 1, 9 * DAY])),
        statuses,
        statuses,
    ),
    min_size=1,
    max_size=7,
)


def plain_episodes(stays: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Chain (start, end) with nothing but Python."""
    chains: list[list[tuple[int, int]]] = []
    for start, end in sorted(stays):
        if chains and start - max(e for _, e in chains[-1]) <= 60:
            chains[-1].append((start, end))
        else:
            chains.append([(start, end)])
    return chains


@settings(max_examples=60, deadline=None)
@given(random_stays)
def test_episodes_agree_with_plain_python(stays: list[dict[str, Any]]) -> None:
    numbered = number_episodes(unit_stays(*frames(*stays), Counts()))
    for hospital_stay in {s["patienthealthsystemstayid"] for s in stays}:
        mine = [
            (-s["hospitaladmitoffset"], s["unitdischargeoffset"] - s["hospitaladmitoffset"])
            for s in stays
            if s["patienthealthsystemstayid"] == hospital_stay
        ]
        part = numbered.filter(pl.col("patienthealthsystemstayid") == hospital_stay)
        found = [g.select("start", "end").sort("start", "end").rows() for g in part.partition_by("episode")]
        assert found == plain_episodes(mine)


@settings(max_examples=40, deadline=None)
@given(random_stays, st.permutations(range(7)), st.sampled_from(["landmark", "unit_discharge"]))
def test_children_need_their_parents_and_row_order_is_nothing(
    stays: list[dict[str, Any]], order: list[int], name: CohortName
) -> None:
    patient, outcomes = frames(*stays)
    found = build_cohort(patient, outcomes, name, 24, Counts())
    for task in TASKS[name]:
        if task.parent is not None:
            child, parent = label(found, task.name), label(found, task.parent)
            assert all(p is True for c, p in zip(child, parent, strict=True) if c)
    shuffled = [k for k in order if k < patient.height]
    again = build_cohort(patient[shuffled], outcomes[shuffled], name, 24, Counts())
    assert again.samples.equals(found.samples)
    assert again.stays.equals(found.stays)
