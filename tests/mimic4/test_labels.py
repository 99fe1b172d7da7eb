"""Labels of MIMIC-IV against hand-worked timelines, at both ends of every window."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts
from mmnar_mimic4.cohort import CohortName, CohortSettings, build_cohort
from mmnar_mimic4.labels import PLANNED, TASKS, UNPLANNED, within

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

    At = Callable[..., datetime]

SECOND = timedelta(seconds=1)
NONE = dict.fromkeys((task.name for task in TASKS["post_discharge"]), False)


def labels(
    raw: RawTables, name: CohortName = "post_discharge", log: Counts | None = None, **settings: Any
) -> dict[str, bool | None]:
    """Labels of the first sample."""
    log = Counts() if log is None else log
    found = build_cohort(raw.cohort_frames(), name, CohortSettings(**settings), log).samples
    row = found.row(0, named=True)
    return {column.removeprefix("label/"): row[column] for column in found.columns if column.startswith("label/")}


def index_stay(raw: RawTables, at: At, **patient: Any) -> RawTables:
    """One who went home at noon of 4 June, so that the prediction time is noon of 5 June: `at(4)`."""
    return raw.patient(**patient).admission(1, at(0), at(3))


def test_nothing_happens(raw: RawTables, at: At) -> None:
    assert labels(index_stay(raw, at)) == NONE


@pytest.mark.parametrize(
    ("days", "seconds", "positive"),
    [
        (0, 1, {"readmission_30d_any", "readmission_30d_unplanned", "readmission_90d", "death_or_readmission_30d"}),
        (30, 0, {"readmission_30d_any", "readmission_30d_unplanned", "readmission_90d", "death_or_readmission_30d"}),
        (30, 1, {"readmission_90d"}),
        # the released code counted any later admission as one within 90 or 180 days
        (90, 0, {"readmission_90d"}),
        (90, 1, set()),
        (180, 0, set()),
        (3000, 0, set()),
    ],
)
def test_readmission_windows(raw: RawTables, at: At, days: int, seconds: int, positive: set[str]) -> None:
    admit = at(4 + days, seconds=seconds)
    index_stay(raw, at).admission(2, admit, admit + timedelta(days=2))
    assert labels(raw) == NONE | dict.fromkeys(positive, True)


def test_a_window_is_open_at_its_start_and_closed_at_its_end(at: At) -> None:
    times = [at(0), at(0) + SECOND, at(30), at(30) + SECOND, None]
    frame = pl.DataFrame({"prediction_time": [at(0)] * 5, "event": times})
    assert frame.select(within("event", 30)).to_series().to_list() == [False, True, True, False, False]


def test_windows_move_with_the_grace(raw: RawTables, at: At) -> None:
    index_stay(raw, at).admission(2, at(34), at(36))
    assert labels(raw)["readmission_30d_any"] is True
    assert labels(raw, prospective=False)["readmission_30d_any"] is False
    assert labels(raw, note_grace_hours=23.99)["readmission_30d_any"] is False


def test_an_admission_of_the_same_episode_is_no_readmission(raw: RawTables, at: At) -> None:
    index_stay(raw, at).admission(2, at(3, minutes=15), at(9)).icu_stay(31, 2, at(5), at(6))
    assert labels(raw) == NONE


def test_all_types_of_admission_are_sorted() -> None:
    """The values of ``admission_type`` in MIMIC-IV, all of which the demo has."""
    assert sorted((*PLANNED, *UNPLANNED)) == [
        "AMBULATORY OBSERVATION",
        "DIRECT EMER.",
        "DIRECT OBSERVATION",
        "ELECTIVE",
        "EU OBSERVATION",
        "EW EMER.",
        "OBSERVATION ADMIT",
        "SURGICAL SAME DAY ADMISSION",
        "URGENT",
    ]


@pytest.mark.parametrize("kind", [*PLANNED, *UNPLANNED])
def test_unplanned_readmission(raw: RawTables, at: At, kind: str) -> None:
    index_stay(raw, at).admission(2, at(20), at(22), admission_type=kind)
    found = labels(raw)
    assert found["readmission_30d_any"] is True
    assert found["readmission_30d_unplanned"] is (kind in UNPLANNED)


@pytest.mark.parametrize(
    ("kinds", "unplanned"),
    [
        (["ELECTIVE", "EW EMER."], True),  # the emergency is one, though not the first admission
        (["EU OBSERVATION", "ELECTIVE"], False),
        (["SOMETHING NEW"], None),
        ([None], None),
        (["SOMETHING NEW", "URGENT"], True),
        (["SOMETHING NEW", "ELECTIVE"], None),
    ],
)
@pytest.mark.parametrize("gap", [timedelta(0), timedelta(days=3)])
def test_unplanned_among_several(
    raw: RawTables, at: At, kinds: list[str], unplanned: bool | None, gap: timedelta
) -> None:
    index_stay(raw, at)
    time = at(10)
    for number, kind in enumerate(kinds):
        raw.admission(2 + number, time, time + timedelta(days=1), admission_type=kind)
        time += timedelta(days=1) + gap
    log = Counts()
    assert labels(raw, log=log)["readmission_30d_unplanned"] is unplanned
    logged = dict(log.items())["samples", "label readmission_30d_unplanned unknown: admission of another type"]
    assert logged == (unplanned is None)


def test_an_unplanned_admission_counts_at_its_own_time(raw: RawTables, at: At) -> None:
    # the episode begins within 30 days, its unplanned part after them
    index_stay(raw, at).admission(2, at(33), at(35), admission_type="ELECTIVE").admission(3, at(35), at(37))
    found = labels(raw)
    assert (found["readmission_30d_any"], found["readmission_30d_unplanned"]) == (True, False)


@pytest.mark.parametrize(
    ("admit", "into", "readmitted", "icu"),
    [
        (timedelta(days=20), timedelta(days=25), True, True),
        (timedelta(days=89), timedelta(days=94), True, True),
        (timedelta(days=89), timedelta(days=94) + SECOND, True, False),
        (timedelta(days=95), timedelta(days=96), False, False),
        # an ICU stay that begins before its admission counts with that, so that the child keeps to its parent
        (timedelta(days=94) + SECOND, timedelta(days=93), False, False),
        (timedelta(days=94), timedelta(days=93), True, True),
        (timedelta(days=20), timedelta(days=2), True, True),
    ],
)
def test_icu_within_90_days(
    raw: RawTables, at: At, admit: timedelta, into: timedelta, readmitted: bool, icu: bool
) -> None:
    index_stay(raw, at).admission(2, at(0) + admit, at(200)).icu_stay(31, 2, at(0) + into, at(150))
    found = labels(raw)
    assert (found["readmission_90d"], found["icu_90d"]) == (readmitted, icu)


def test_an_icu_stay_of_this_episode_or_of_nobody_s_admission_does_not_count(raw: RawTables, at: At) -> None:
    index_stay(raw, at).icu_stay(31, 1, at(10), at(12)).icu_stay(32, 77, at(10), at(12)).admission(2, at(20), at(22))
    assert labels(raw)["icu_90d"] is False


@pytest.mark.parametrize(
    ("dod", "positive"),
    [
        # noon of 5 June + 30 days is noon of 5 July; a date counts at its next midnight
        (date(2150, 6, 5), {"mortality_30d", "mortality_180d", "death_or_readmission_30d"}),
        (date(2150, 7, 4), {"mortality_30d", "mortality_180d", "death_or_readmission_30d"}),
        (date(2150, 7, 5), {"mortality_180d"}),
        (date(2150, 12, 1), {"mortality_180d"}),  # noon of 5 June + 180 days is noon of 2 December
        (date(2150, 12, 2), set()),
        (date(2160, 1, 1), set()),
    ],
)
def test_mortality_by_date(raw: RawTables, at: At, dod: date, positive: set[str]) -> None:
    assert labels(index_stay(raw, at, dod=dod)) == NONE | dict.fromkeys(positive, True)


@pytest.mark.parametrize(("seconds", "died"), [(0, True), (1, False)])
@pytest.mark.parametrize("told_by", ["deathtime", "flag"])
def test_mortality_by_time_in_a_later_admission(raw: RawTables, at: At, seconds: int, died: bool, told_by: str) -> None:
    death = at(34, seconds=seconds)
    told: dict[str, Any] = {"deathtime": death} if told_by == "deathtime" else {"hospital_expire_flag": 1}
    index_stay(raw, at, dod=death.date()).admission(2, at(20), death, **told)
    found = labels(raw)
    assert found["mortality_30d"] is died
    assert found["mortality_180d"] is True


def test_the_earliest_record_of_a_death_counts(raw: RawTables, at: At) -> None:
    # deathtime three minutes after discharge, within the window; dod's midnight lies after it
    index_stay(raw, at, dod=at(34).date()).admission(2, at(20), at(34, minutes=-5), deathtime=at(34, minutes=-2))
    assert labels(raw)["mortality_30d"] is True


def test_a_death_first_is_negative_for_readmission_and_in_the_composite(raw: RawTables, at: At) -> None:
    found = labels(index_stay(raw, at, dod=date(2150, 6, 10)))
    assert found["readmission_30d_any"] is False
    assert found["death_or_readmission_30d"] is True


def test_an_account_after_death_is_no_readmission(raw: RawTables, at: At) -> None:
    index_stay(raw, at, dod=date(2150, 6, 10)).admission(2, datetime(2150, 6, 11, 0, 0, 1), at(20))
    found = labels(raw)
    assert (found["readmission_30d_any"], found["mortality_30d"]) == (False, True)


@pytest.mark.parametrize(
    ("group", "anchor_year", "known"),
    [
        ("2014 - 2016", 2150, True),
        ("2014 - 2016", 2148, True),  # 2016–2018
        ("2014 - 2016", 2147, False),  # 2017–2019
        ("2014 - 2016", 2145, False),
        ("2017 - 2019", 2150, False),
        ("2017 - 2019", 2151, True),
        ("2008 - 2010", 2150, True),
        (" 2017-2019 ", 2150, False),
        ("unknown", 2150, False),
    ],
)
@pytest.mark.parametrize("event", ["nothing", "readmission and death"])
def test_follow_up_may_end(raw: RawTables, at: At, group: str, anchor_year: int, known: bool, event: str) -> None:
    index_stay(raw, at, anchor_year_group=group, anchor_year=anchor_year)
    if event != "nothing":
        raw.admission(2, at(10), at(12), deathtime=at(12), hospital_expire_flag=1).icu_stay(31, 2, at(11), at(12))
    log = Counts()
    found = labels(raw, log=log)
    assert set(found.values()) == ({event != "nothing"} if known else {None})
    assert dict(log.items())["samples", "labels after discharge unknown: follow-up may end"] == (not known)
    assert None not in labels(raw, last_year=2030).values() or group == "unknown"


def test_follow_up_is_that_of_the_prediction_time_s_year(raw: RawTables, at: At) -> None:
    """A stay over New Year: its discharge, plus the grace, decides."""
    new_year = datetime(2151, 1, 1)
    raw.patient(anchor_year_group="2016 - 2018", anchor_year=2150)
    raw.admission(1, at(0), new_year - timedelta(hours=24) - SECOND)
    assert labels(raw)["readmission_30d_any"] is False
    raw.rows["hosp/admissions"][0]["dischtime"] = new_year - timedelta(hours=24)
    assert labels(raw)["readmission_30d_any"] is None
    assert labels(raw, prospective=False)["readmission_30d_any"] is False


def test_labels_of_the_landmark(raw: RawTables, at: At) -> None:
    # landmark at day 2; + 30 days is day 32
    def dead(at_time: datetime | None, **patient: Any) -> dict[str, bool | None]:
        raw.rows["hosp/patients"].clear()
        raw.rows["hosp/admissions"].clear()
        raw.rows["icu/icustays"].clear()
        told: dict[str, Any] = {} if at_time is None else {"deathtime": at_time, "hospital_expire_flag": 1}
        raw.patient(**patient).admission(1, at(0), at_time or at(20), **told).icu_stay(31, 1, at(1), at(9))
        return labels(raw, "icu_landmark")

    assert dead(None) == {"mortality_hospital": False, "mortality_30d": False}
    assert dead(at(32)) == {"mortality_hospital": True, "mortality_30d": True}
    assert dead(at(32, seconds=1)) == {"mortality_hospital": True, "mortality_30d": False}
    assert dead(None, dod=date(2150, 7, 2)) == {"mortality_hospital": False, "mortality_30d": True}
    assert dead(None, dod=date(2150, 7, 3)) == {"mortality_hospital": False, "mortality_30d": False}
    # follow-up ends for what reaches past the stay alone, died or not
    late: dict[str, Any] = {"anchor_year_group": "2017 - 2019"}
    assert dead(at(20), **late) == {"mortality_hospital": True, "mortality_30d": None}
    assert dead(None, **late) == {"mortality_hospital": False, "mortality_30d": None}


def test_an_unknown_hospital_outcome_is_an_unknown_label(raw: RawTables, at: At) -> None:
    raw.patient().admission(1, at(0), at(20), hospital_expire_flag=None, discharge_location=None)
    raw.icu_stay(31, 1, at(1), at(9))
    assert labels(raw, "icu_landmark") == {"mortality_hospital": None, "mortality_30d": False}


@pytest.mark.parametrize("name", ["post_discharge", "icu_landmark"])
def test_every_task_has_its_label_and_children_keep_to_their_parents(raw: RawTables, at: At, name: CohortName) -> None:
    index_stay(raw, at).icu_stay(31, 1, at(0), at(3))
    found = build_cohort(raw.cohort_frames(), name, CohortSettings(), Counts()).samples
    assert [c for c in found.columns if c.startswith("label/")] == [f"label/{task.name}" for task in TASKS[name]]
    assert all(found.schema[f"label/{task.name}"] == pl.Boolean for task in TASKS[name])
    names = [task.name for task in TASKS[name]]
    assert all(task.parent in names for task in TASKS[name] if task.parent)
