"""The ICU landmark cohort of MIMIC-IV, against hand-worked timelines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts
from mmnar_mimic4.cohort import Cohort, CohortSettings, build_cohort

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

    NewRaw = Callable[[], RawTables]
    At = Callable[..., datetime]

SECOND = timedelta(seconds=1)


def built(raw: RawTables, log: Counts | None = None, **settings: Any) -> Cohort:
    counts = Counts() if log is None else log
    return build_cohort(raw.cohort_frames(), "icu_landmark", CohortSettings(**settings), counts)


def cohort(raw: RawTables, **settings: Any) -> pl.DataFrame:
    return built(raw, **settings).samples


def excluded(raw: RawTables, **settings: Any) -> dict[str, int]:
    """Reasons that excluded something."""
    log = Counts()
    built(raw, log, **settings)
    return {what.removeprefix("excluded: "): n for (_, what), n in log.items() if what.startswith("excluded") and n}


@pytest.mark.parametrize(
    ("outtime", "dischtime", "deathtime", "reason"),
    [
        (timedelta(days=2), timedelta(days=3), None, None),
        (timedelta(days=1) + SECOND, timedelta(days=1) + SECOND, None, None),
        (timedelta(days=1), timedelta(days=3), None, "left the ICU by hour 24"),
        (timedelta(days=2), timedelta(days=1), None, "left the hospital by hour 24"),
        # as in the demo, death some minutes after discharge: the earliest of the three decides
        (timedelta(days=2), timedelta(days=1), timedelta(days=1, minutes=4), "left the hospital by hour 24"),
        (timedelta(days=2), timedelta(days=2), timedelta(days=1), "died by hour 24"),
        (timedelta(days=2), timedelta(days=2), timedelta(days=1) + SECOND, None),
        (timedelta(days=2), timedelta(days=2), timedelta(days=2, minutes=9), None),
    ],
)
def test_alive_and_in_the_icu_at_the_landmark(
    raw: RawTables, at: At, outtime: timedelta, dischtime: timedelta, deathtime: timedelta | None, reason: str | None
) -> None:
    zero = at(10)
    dead: dict[str, Any] = {} if deathtime is None else {"deathtime": zero + deathtime, "hospital_expire_flag": 1}
    raw.patient().admission(1, at(9), zero + dischtime, edregtime=at(8), **dead)
    raw.icu_stay(31, 1, zero, zero + outtime)
    found = cohort(raw)
    assert excluded(raw) == ({} if reason is None else {reason: 1})
    if reason is None:
        row = found.row(0, named=True)
        assert (row["prediction_time"], row["intime"], row["stay_id"]) == (at(11), zero, 31)
        assert (row["window_start"], row["dischtime"], row["discharge_location"]) == (at(8), None, None)
        assert row["label/mortality_hospital"] is (deathtime is not None)


def test_dead_by_date_alone_is_not_alive_at_the_landmark(raw: RawTables, at: At) -> None:
    raw.patient(dod=date(2150, 6, 1)).admission(1, at(0), at(3)).icu_stay(31, 1, at(0), at(2))
    assert excluded(raw) == {"died by hour 24": 1}


def test_the_landmark_is_an_option(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(9)).icu_stay(31, 1, at(0), at(2))
    assert cohort(raw, landmark_hours=47)["prediction_time"].to_list() == [at(0, hours=47)]
    assert excluded(raw, landmark_hours=48) == {"left the ICU by hour 48": 1}


def test_only_the_first_icu_stay_of_a_patient_whatever_becomes_of_it(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(9)).icu_stay(32, 1, at(4), at(8)).icu_stay(31, 1, at(0), at(0, hours=5))
    raw.icu_stay(33, 99, at(-300), at(-200))
    assert excluded(raw) == {
        "not the patient's first": 2,
        "of no usable admission of the patient": 1,
    }
    assert cohort(raw).height == 0


def test_icu_stays_that_follow_each_other_are_not_joined(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(9)).icu_stay(31, 1, at(0), at(0, 20)).icu_stay(32, 1, at(0, 20), at(8))
    assert excluded(raw) == {"not the patient's first": 1, "left the ICU by hour 24": 1}


def test_the_landmark_knows_only_the_admissions_that_had_begun(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(1)).admission(2, at(1), at(3), edregtime=at(0, hours=-30))
    raw.admission(3, at(3), at(6), deathtime=at(6), hospital_expire_flag=1).icu_stay(31, 2, at(1), at(5))
    found = built(raw)
    assert found.samples.select("hadm_id", "last_hadm_id", "admissions", "window_start").row(0) == (1, 2, 2, at(0))
    assert found.admissions.rows() == [(0, 1), (0, 2)]
    assert found.samples["label/mortality_hospital"].to_list() == [True]  # the episode's


def test_a_later_row_changes_no_sample(new_raw: NewRaw, at: At) -> None:
    def base() -> RawTables:
        raw = new_raw().patient().admission(1, at(0), at(9), edregtime=at(0, hours=-3))
        return raw.icu_stay(31, 1, at(1), at(4))

    raw = base().admission(2, at(5), at(30), edregtime=at(-20), insurance="Other").icu_stay(32, 2, at(6), at(8))
    expected, found = cohort(base()), cohort(raw)
    same = [name for name in found.columns if name != "ed_by_then"]  # an absurd entry in the past has happened
    assert found.select(same).equals(expected.select(same))


def test_an_icu_stay_before_its_admission(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(9)).icu_stay(31, 1, at(0, hours=-2), at(4))
    assert cohort(raw)["window_start"].to_list() == [at(0, hours=-2)]
    raw.patient(2).admission(2, at(2), at(9), subject=2).icu_stay(32, 2, at(0), at(4), subject=2)
    assert excluded(raw) == {"hospital admission after hour 24": 1}


def test_unusable_icu_stays_are_counted_by_their_reason(raw: RawTables, at: At) -> None:
    for subject in (1, 2, 3, 4):
        raw.patient(subject).admission(subject, at(0), at(9), subject=subject)
    raw.icu_stay(31, 1, at(0), None, subject=1).icu_stay(32, 2, at(1), at(1) - SECOND, subject=2)
    raw.icu_stay(33, 1, at(1), at(3), subject=3)  # of another patient's admission
    raw.icu_stay(34, 4, at(1), at(3), subject=4).icu_stay(35, 5, at(1), at(3), subject=5)
    assert excluded(raw) == {
        "ICU discharge before ICU admission or unknown": 2,
        "of no usable admission of the patient": 1,
        "subject not in patients": 1,
    }
    assert cohort(raw)["stay_id"].to_list() == [34]
