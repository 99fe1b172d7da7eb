"""Episodes, prediction times and exclusions of MIMIC-IV, against hand-worked timelines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts
from mmnar_mimic4.cohort import SCHEMA, Cohort, CohortName, CohortSettings, build_cohort

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

    NewRaw = Callable[[], RawTables]
    At = Callable[..., datetime]

SECOND = timedelta(seconds=1)


def cohort(
    raw: RawTables, name: CohortName = "post_discharge", log: Counts | None = None, **settings: Any
) -> pl.DataFrame:
    return built(raw, name, log, **settings).samples


def built(raw: RawTables, name: CohortName, log: Counts | None = None, **settings: Any) -> Cohort:
    return build_cohort(raw.cohort_frames(), name, CohortSettings(**settings), Counts() if log is None else log)


def excluded(raw: RawTables, name: CohortName = "post_discharge", **settings: Any) -> dict[str, int]:
    """Reasons that excluded something."""
    log = Counts()
    cohort(raw, name, log, **settings)
    return {what.removeprefix("excluded: "): n for (_, what), n in log.items() if what.startswith("excluded") and n}


# --- episodes


@pytest.mark.parametrize(
    ("gap", "episodes"),
    [(-50, 1), (-1, 1), (0, 1), (23.99, 1), (24, 1), (24 + 1 / 3600, 2), (200, 2)],
)
def test_admissions_at_most_24_hours_apart_are_one_episode(raw: RawTables, at: At, gap: float, episodes: int) -> None:
    raw.patient().admission(21, at(0), at(3)).admission(22, at(3, hours=gap), at(19))
    found = cohort(raw, episodes="all")
    assert found.height == episodes
    assert found["hadm_id"].to_list() == [21, 22][:episodes]
    assert found["prediction_time"].to_list() == ([at(20)] if episodes == 1 else [at(4), at(20)])
    assert found["admissions"].to_list() == ([2] if episodes == 1 else [1, 1])
    assert found["last_hadm_id"].to_list() == ([22] if episodes == 1 else [21, 22])


def test_the_gap_counts_from_the_latest_end_so_far(raw: RawTables, at: At) -> None:
    # the second lies inside the first, which ends at day 9: the third is 20 hours after that
    raw.patient().admission(1, at(0), at(9), discharge_location="REHAB").admission(2, at(2), at(3))
    raw.admission(3, at(9, hours=20), at(10)).admission(4, at(20), at(21))
    found = cohort(raw, episodes="all")
    assert found["admissions"].to_list() == [3, 1]
    assert found["dischtime"].to_list() == [at(10), at(21)]
    assert found["episode"].to_list() == [0, 1]


def test_an_admission_inside_another_does_not_end_the_episode(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(9), discharge_location="REHAB").admission(2, at(2), at(3))
    found = cohort(raw)
    assert found.select("hadm_id", "last_hadm_id", "discharge_location", "dischtime").row(0) == (1, 1, "REHAB", at(9))


def test_chaining_is_an_option(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3)).admission(2, at(3, hours=40), at(9))
    assert cohort(raw, episodes="all")["admissions"].to_list() == [1, 1]
    assert cohort(raw, chain_hours=48)["admissions"].to_list() == [2]


def test_patients_do_not_mix(raw: RawTables, at: At) -> None:
    raw.patient(1).patient(2).admission(1, at(0), at(3), subject=1).admission(2, at(3), at(5), subject=2)
    assert cohort(raw)["subject_id"].to_list() == [1, 2]
    assert cohort(raw)["episode"].to_list() == [0, 0]


# --- what a sample says


def test_a_sample_is_described_by_its_first_admission(raw: RawTables, at: At) -> None:
    raw.patient(gender="M", anchor_age=70, anchor_year=2148)
    raw.admission(
        1, at(0), at(1), admission_type="EU OBSERVATION", insurance="Other", race="ASIAN", edregtime=at(0, hours=-6)
    )
    raw.admission(2, at(1), at(4), admission_type="ELECTIVE", insurance="Medicaid", edregtime=at(0, hours=20))
    found = cohort(raw)
    assert {name: dtype() if isinstance(dtype, type) else dtype for name, dtype in SCHEMA.items()} == {
        name: dtype for name, dtype in found.schema.items() if not name.startswith("label/")
    }
    row = found.row(0, named=True)
    assert (row["gender"], row["age"], row["insurance"], row["race"]) == ("M", 72, "Other", "ASIAN")
    assert (row["admission_type"], row["edregtime"], row["window_start"]) == (
        "EU OBSERVATION",
        at(0, hours=-6),
        at(0, hours=-6),
    )
    assert (row["stay_id"], row["intime"], row["first_careunit"]) == (None, None, None)


def test_the_window_opens_with_admission_where_the_emergency_department_came_later(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3), edregtime=at(0, hours=2))
    assert cohort(raw)["window_start"].item() == at(0)


@pytest.mark.parametrize(
    ("anchor_age", "anchor_year", "age"),
    [(18, 2150, 18), (17, 2149, 18), (91, 2150, 90), (88, 2145, 90), (60, 2160, 50)],
)
def test_age_at_admission_capped_at_90(raw: RawTables, at: At, anchor_age: int, anchor_year: int, age: int) -> None:
    raw.patient(anchor_age=anchor_age, anchor_year=anchor_year).admission(1, at(0), at(3))
    assert cohort(raw)["age"].to_list() == [age]


def test_children_are_excluded_and_the_first_adult_episode_is_the_first(raw: RawTables, at: At) -> None:
    raw.patient(anchor_age=17, anchor_year=2150).admission(1, at(0), at(3)).admission(2, at(365), at(369))
    assert cohort(raw)["hadm_id"].to_list() == [2]
    assert cohort(raw)["episode"].to_list() == [1]
    assert excluded(raw) == {"under 18": 1}


def test_the_emergency_department_counts_once_it_was_entered(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3)).admission(2, at(60), at(63)).admission(
        3, at(120), at(123), edregtime=at(63, hours=24)
    )
    raw.admission(4, at(200), at(203))
    found = cohort(raw, episodes="all", chain_hours=0)
    # the second one's prediction time is that of the entry: it has happened, so that the return excludes it
    assert found["hadm_id"].to_list() == [1, 3, 4]
    assert found["ed_by_then"].to_list() == [False, True, True]


# --- post-discharge: who is in


@pytest.mark.parametrize(
    "death",
    [
        {"deathtime": True},
        {"hospital_expire_flag": 1},
        {"discharge_location": "DIED"},
        {"discharge_location": " died "},
    ],
)
@pytest.mark.parametrize("which", [1, 2])
def test_who_died_in_any_admission_of_the_episode_is_out(
    raw: RawTables, at: At, death: dict[str, Any], which: int
) -> None:
    columns = {"deathtime": at(3 * which)} if "deathtime" in death else death
    raw.patient().admission(1, at(0), at(3), **(columns if which == 1 else {}))
    raw.admission(2, at(3), at(6), **(columns if which == 2 else {}))
    assert cohort(raw).height == 0
    # what begins after the death is no admission any more, where it is not in the same moment
    assert excluded(raw) == {"died in the hospital": 1}


def test_an_unknown_outcome_is_not_survival(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3), hospital_expire_flag=None, discharge_location=None)
    assert excluded(raw) == {"hospital outcome unknown": 1}


@pytest.mark.parametrize(
    ("grace", "dod", "kept"),
    [
        # discharged at noon of 4 June, so that the prediction time is noon of 5 June
        (24, date(2150, 6, 3), False),
        (24, date(2150, 6, 4), False),  # the midnight that begins 5 June
        (24, date(2150, 6, 5), True),  # the next one: after the prediction time
        (12, date(2150, 6, 4), False),  # prediction at that very midnight
        (11.99, date(2150, 6, 4), True),
        (0, date(2150, 6, 4), True),
        (36, date(2150, 6, 5), False),
        (24, None, True),
    ],
)
def test_who_is_dead_by_the_prediction_time_is_out(
    raw: RawTables, at: At, grace: float, dod: date | None, kept: bool
) -> None:
    raw.patient(dod=dod).admission(1, at(0), at(3))
    assert cohort(raw, note_grace_hours=grace).height == kept
    assert excluded(raw, note_grace_hours=grace) == ({} if kept else {"died by the prediction time": 1})


@pytest.mark.parametrize(
    ("admit", "edreg", "kept"),
    [
        # discharge at day 3, prediction at day 4 with chains of an hour, so that a return can be seen
        (timedelta(days=4), None, False),
        (timedelta(days=4) + SECOND, None, True),
        (timedelta(days=4, hours=5), timedelta(days=4), False),
        (timedelta(days=4, hours=5), timedelta(days=4) + SECOND, True),
        (timedelta(days=3, hours=2), None, False),
    ],
)
def test_who_returned_by_the_prediction_time_is_out(
    raw: RawTables, at: At, admit: timedelta, edreg: timedelta | None, kept: bool
) -> None:
    raw.patient().admission(1, at(0), at(3))
    raw.admission(
        2, at(0) + admit, at(0) + admit + timedelta(days=2), edregtime=None if edreg is None else at(0) + edreg
    )
    found = cohort(raw, chain_hours=1)
    assert found.height == kept
    if kept:
        assert found["label/readmission_30d_any"].to_list() == [True]
    reasons = {"not the patient's first": 1} | ({} if kept else {"returned by the prediction time": 1})
    assert excluded(raw, chain_hours=1) == reasons


def test_an_excluded_first_episode_is_not_replaced(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3)).admission(2, at(4, hours=1), at(6), edregtime=at(3, hours=20))
    raw.admission(3, at(100), at(103))
    assert cohort(raw).height == 0
    assert cohort(raw, episodes="all")["hadm_id"].to_list() == [2, 3]
    assert cohort(raw, episodes="random")["hadm_id"].item() in (2, 3)


def test_the_paper_s_preset_predicts_at_discharge(raw: RawTables, at: At) -> None:
    raw.patient(dod=date(2150, 6, 4)).admission(1, at(0), at(3)).admission(
        2, at(4, minutes=1), at(5), edregtime=at(3, 6)
    )
    found = cohort(raw, prospective=False)
    assert found["prediction_time"].to_list() == [at(3)]
    assert found["label/readmission_30d_any"].to_list() == [False]  # dead by then, so that nobody was readmitted
    assert found["label/mortality_30d"].to_list() == [True]
    assert cohort(raw).height == 0


# --- draws


def many(new_raw: NewRaw, at: At, people: range) -> RawTables:
    raw = new_raw()
    for subject in people:
        raw.patient(subject)
        for k in range(3):
            raw.admission(10 * subject + k, at(100 * k), at(100 * k + 3), subject=subject)
    return raw


def test_one_random_episode_of_each_patient_by_a_keyed_hash(new_raw: NewRaw, at: At) -> None:
    few, more = (many(new_raw, at, range(1, n)) for n in (41, 61))
    drawn = cohort(few, episodes="random")
    assert drawn["subject_id"].to_list() == list(range(1, 41))
    assert set(drawn["episode"]) == {0, 1, 2}
    # others move nobody, the seed does
    assert cohort(more, episodes="random").head(40)["hadm_id"].equals(drawn["hadm_id"])
    assert not cohort(few, episodes="random", draw_seed=1)["hadm_id"].equals(drawn["hadm_id"])
    assert excluded(few, episodes="random") == {"not the one drawn of the patient's": 80}


@pytest.mark.parametrize("name", ["post_discharge", "icu_landmark"])
def test_patients_are_drawn_by_a_keyed_hash(new_raw: NewRaw, at: At, name: CohortName) -> None:
    raw = many(new_raw, at, range(1, 41))
    for subject in range(1, 41):
        raw.icu_stay(subject, 10 * subject, at(1), at(3), subject=subject)
    ten, twenty = (set(cohort(raw, name, max_patients=n)["subject_id"]) for n in (10, 20))
    assert (len(ten), len(twenty)) == (10, 20)
    assert ten < twenty
    assert set(cohort(raw, name, max_patients=10, draw_seed=5)["subject_id"]) != ten
    assert excluded(raw, name, max_patients=10)["patient not drawn (max_patients)"] == 30
    assert cohort(raw, "post_discharge", episodes="all", max_patients=10).height == 30


# --- unusable rows


def test_unusable_admissions_are_counted_by_their_reason(raw: RawTables, at: At) -> None:
    raw.patient()
    raw.admission(1, at(0), None)
    raw.admission(2, at(10), at(10) - SECOND)
    raw.admission(3, at(20), at(22), deathtime=at(20) - SECOND)
    raw.admission(4, at(30), at(31), subject=4)
    raw.admission(5, at(40), at(40))  # no length is one
    raw.admission(6, at(50), at(51), deathtime=at(51), hospital_expire_flag=1)
    raw.admission(7, at(51, minutes=5), at(51, minutes=50))  # an account for organ donation
    assert excluded(raw) == {
        "discharge time unknown": 1,
        "discharge before admission": 1,
        "death before admission": 1,
        "subject not in patients": 1,
        "admitted after the patient's death": 1,
        "not the patient's first": 1,
    }
    found = cohort(raw)
    assert found["hadm_id"].to_list() == [5]
    assert found["label/readmission_30d_any"].to_list() == [True]
    assert found["label/mortality_30d"].to_list() == [True]


# --- contract


def test_restricting_numbers_anew(new_raw: NewRaw, at: At) -> None:
    found = built(many(new_raw, at, range(1, 4)), "post_discharge", episodes="all")
    kept = found.restrict(found.samples["episode"] == 1)
    assert kept.samples["sample"].to_list() == [0, 1, 2]
    assert kept.samples["hadm_id"].to_list() == [11, 21, 31]
    assert kept.admissions.rows() == [(0, 11), (1, 21), (2, 31)]
    assert kept.samples.schema == found.samples.schema


@pytest.mark.parametrize("name", ["post_discharge", "icu_landmark"])
def test_nobody_is_a_cohort_too(raw: RawTables, at: At, name: CohortName) -> None:
    raw.patient(anchor_age=10).admission(1, at(0), at(3)).icu_stay(31, 1, at(0), at(3))
    found = built(raw, name, max_patients=5, episodes="random")
    assert found.samples.height == found.admissions.height == 0
    assert found.samples.schema["label/mortality_30d"] == pl.Boolean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": "last"}, "'last' is not one of first, random, all"),
        ({"landmark_hours": 0}, "landmark_hours"),
        ({"note_grace_hours": -1}, "note_grace_hours"),
        ({"chain_hours": -1}, "chain_hours"),
        ({"max_patients": 0}, "max_patients"),
        ({"last_year": 0}, "last_year"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CohortSettings(**options)


def test_an_unknown_cohort_is_named_with_its_alternatives(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(3))
    with pytest.raises(ValueError, match="'landmark' is not one of post_discharge, icu_landmark"):
        cohort(raw, "landmark")  # type: ignore[arg-type]
