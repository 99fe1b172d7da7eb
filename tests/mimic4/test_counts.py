"""Both MIMIC-IV cohorts against a count that shares no code with them: on the open demo, and on drawn timelines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, TableSpec, scan
from mmnar_mimic4.cohort import Cohort, CohortSettings, build_cohort
from mmnar_mimic4.tables import ADMISSIONS, DEATHS, DISCHARGES, ICU_ENDS, ICU_STAYS, PATIENTS

if TYPE_CHECKING:
    from tests.mimic4.independent_count import Count, Rules

COHORTS = ("post_discharge", "icu_landmark")
SPECS = (PATIENTS, DEATHS, ADMISSIONS, DISCHARGES, ICU_STAYS, ICU_ENDS)
# the extractor's name of a reason: ours
REASONS = {
    ("admissions", "subject not in patients"): "no patient",
    ("admissions", "discharge time unknown"): "discharge time unknown",
    ("admissions", "discharge before admission"): "discharge before admission",
    ("admissions", "death before admission"): "death before admission",
    ("admissions", "admitted after the patient's death"): "admitted after death",
    ("episodes", "under 18"): "under 18",
    ("episodes", "not the patient's first"): "not the first",
    ("episodes", "hospital outcome unknown"): "outcome unknown",
    ("episodes", "died in the hospital"): "died in the hospital",
    ("episodes", "died by the prediction time"): "died by then",
    ("episodes", "returned by the prediction time"): "returned by then",
    ("icustays", "subject not in patients"): "no patient",
    ("icustays", "hospital admission after hour 24"): "admitted later",
    ("icustays", "not the patient's first"): "not the first ICU stay",
    ("icustays", "of no usable admission of the patient"): "ICU stay without admission",
    ("icustays", "ICU discharge before ICU admission or unknown"): "ICU discharge unknown",
    ("icustays", "under 18"): "under 18",
    ("icustays", "died by hour 24"): "died by then",
    ("icustays", "left the ICU by hour 24"): "left the ICU by then",
    ("icustays", "left the hospital by hour 24"): "left the hospital by then",
}


def ours(frames: Mapping[str, pl.DataFrame], rules: Rules) -> tuple[Cohort, Counts]:
    """The extractor's cohort by the same rules."""
    log = Counts()
    options = CohortSettings(
        episodes=rules.episodes,  # type: ignore[arg-type]
        note_grace_hours=rules.hours,
        landmark_hours=rules.hours,
        last_year=rules.last_year,
        chain_hours=rules.chain,
    )
    return build_cohort(frames, rules.cohort, options, log), log  # type: ignore[arg-type]


def as_theirs(cohort: Cohort) -> list[tuple[Any, ...]]:
    """Samples as the independent count has them."""
    linked: dict[int, set[int]] = {}
    for sample, hadm in cohort.admissions.rows():
        linked.setdefault(sample, set()).add(hadm)
    return [
        (
            row["subject_id"],
            row["hadm_id"],
            row["last_hadm_id"],
            row["stay_id"],
            row["window_start"],
            row["prediction_time"],
            row["episode"],
            linked.get(row["sample"], set()),
            row["age"],
            {name.removeprefix("label/"): value for name, value in row.items() if name.startswith("label/")},
        )
        for row in cohort.samples.iter_rows(named=True)
    ]


def as_listed(count: Count) -> list[tuple[Any, ...]]:
    found = [
        (
            *(s.subject, s.hadm, s.last_hadm, s.stay, s.window, s.prediction),
            *(s.episode, s.admissions, s.age, s.labels),
        )
        for s in count.samples
    ]
    return sorted(found, key=lambda s: (s[0], s[5], s[6]))


def differing(cohort: Cohort, count: Count) -> int:
    """How many samples differ; a count, so that no value of a person reaches a log."""
    mine, theirs = as_theirs(cohort), as_listed(count)
    return abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False))


def exclusions(log: Counts) -> Counter[str]:
    found: Counter[str] = Counter()
    for (table, what), n in log.items():
        if what.startswith("excluded: "):
            found[REASONS[table, what.removeprefix("excluded: ")]] += n
    return +found


@pytest.fixture(scope="module")
def demo_frames(demo_root: Path) -> dict[str, pl.DataFrame]:
    return {spec.name: scan(demo_root, spec).collect() for spec in SPECS}


@pytest.mark.shared_data
@pytest.mark.parametrize("episodes", ["first", "all"])
@pytest.mark.parametrize("cohort", COHORTS)
def test_the_demo_counted_twice(
    independent: Any, demo_root: Path, demo_frames: dict[str, pl.DataFrame], cohort: str, episodes: str
) -> None:
    rules = independent.Rules(cohort, episodes)
    count = independent.count_cohort(demo_root, rules)
    found, log = ours(demo_frames, rules)
    assert exclusions(log) == count.excluded
    logged = dict(log.items())
    assert logged["episodes", "found"] == count.episodes
    joined = "admissions joined to the one before (at most 24 hours apart)"
    assert logged["episodes", joined] == count.joined
    assert found.samples.height == len(count.samples)
    assert differing(found, count) == 0


@pytest.mark.shared_data
def test_the_demo_s_numbers(independent: Any, demo_frames: dict[str, pl.DataFrame]) -> None:
    """As counted once, by both: a change of the demo or of a definition shows."""
    expected = {
        "post_discharge": (63, {"readmission_30d_any": 9, "readmission_30d_unplanned": 4, "readmission_90d": 11}
        | {"icu_90d": 7, "mortality_30d": 1, "mortality_180d": 4, "death_or_readmission_30d": 10}),
        "icu_landmark": (57, {"mortality_hospital": 5, "mortality_30d": 5}),
    }  # fmt: skip
    for cohort, (samples, positive) in expected.items():
        found, _ = ours(demo_frames, independent.Rules(cohort))
        assert found.samples.height == samples
        labels = {name: int(found.samples[f"label/{name}"].sum()) for name in positive}
        assert labels == positive


@pytest.mark.shared_data
@pytest.mark.parametrize("cohort", COHORTS)
def test_the_order_of_the_rows_changes_nothing(
    independent: Any, demo_frames: dict[str, pl.DataFrame], cohort: str
) -> None:
    rules = independent.Rules(cohort, "random")
    expected, log = ours(demo_frames, rules)
    for seed in (1, 2):
        shuffled = {name: frame.sample(fraction=1, shuffle=True, seed=seed) for name, frame in demo_frames.items()}
        found, again = ours(shuffled, rules)
        assert found.samples.equals(expected.samples)
        assert found.admissions.equals(expected.admissions)
        assert again.items() == log.items()


# Distances that matter: chains, graces, landmarks, the days of label windows, each to the second.
_HOURS = [
    -30,
    -2,
    0,
    1,
    23,
    24,
    24,
    25,
    25,
    28,
    29,
    47,
    48,
    49,
    100,
    719,
    720,
    743,
    744,
    745,
    2160,
    2183,
    2184,
    2185,
    4320,
    4344,
]
_STEP = st.builds(
    lambda h, s: timedelta(hours=h, seconds=s), st.sampled_from(_HOURS), st.sampled_from([-1, 0, 0, 0, 1])
)
_LENGTH = st.builds(
    lambda h, s: timedelta(hours=h, seconds=s),
    st.sampled_from([0, 1, 23, 24, 25, 48, 300, 8000]),
    st.sampled_from([0, 1]),
)
_TYPES = ["EW EMER.", "URGENT", "ELECTIVE", "OBSERVATION ADMIT", "EU OBSERVATION", "SOMETHING NEW", ""]


def _text(time: datetime | None) -> str:
    return "" if time is None else time.isoformat(sep=" ")


@st.composite
def extracts(draw: st.DrawFn) -> dict[str, list[dict[str, str]]]:
    """Rows of patients, admissions and ICU stays whose times lie on and beside every boundary, some of them absurd."""
    rare = st.sampled_from([False] * 9 + [True])
    patients: list[dict[str, str]] = []
    admissions: list[dict[str, str]] = []
    stays: list[dict[str, str]] = []
    for subject in range(1, draw(st.integers(1, 2)) + 1):
        start = draw(st.sampled_from([datetime(2150, 3, 1), datetime(2150, 12, 20, 13, 30)]))
        time, last = start, start
        for _ in range(draw(st.integers(1, 5))):
            end = time + draw(_LENGTH)
            fate = draw(st.sampled_from(["home"] * 6 + ["died", "death only", "flag only", "place only", "unknown"]))
            death = end + draw(st.sampled_from([timedelta(0), timedelta(minutes=-7), timedelta(minutes=9)]))
            hadm = str(100 + len(admissions))
            whose = "9" if draw(rare) else str(subject)
            admissions.append(
                {
                    "subject_id": whose,
                    "hadm_id": hadm,
                    "admittime": _text(time),
                    "dischtime": "" if draw(rare) else _text(end - timedelta(days=3) if draw(rare) else end),
                    "deathtime": _text(death) if fate in ("died", "death only") else "",
                    "admission_type": draw(st.sampled_from(_TYPES)),
                    "edregtime": _text(
                        draw(st.sampled_from([None, time - timedelta(hours=5), time + timedelta(hours=1)]))
                    ),
                    "discharge_location": {"died": "DIED", "place only": "DIED", "unknown": ""}.get(fate, "HOME"),
                    "hospital_expire_flag": {"died": "1", "flag only": "1", "unknown": ""}.get(fate, "0"),
                }
            )
            for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
                into = time + draw(st.sampled_from([timedelta(hours=h) for h in (-26, -1, 0, 0, 1, 23, 24)]))
                stays.append(
                    {
                        "subject_id": whose,
                        "hadm_id": "7" if draw(rare) else hadm,
                        "stay_id": str(1000 + len(stays)),
                        "intime": _text(into),
                        "outtime": "" if draw(rare) else _text(into + draw(_LENGTH)),
                    }
                )
            last = max(last, end)
            time = end + draw(_STEP)
        dod = draw(st.sampled_from([None, None, 0, 1, 2, 30, 31, 32, 180, 181, 182]))
        patients.append(
            {
                "subject_id": str(subject),
                "gender": "F",
                "anchor_age": draw(st.sampled_from(["17", "18", "60", "91"])),
                "anchor_year": str(draw(st.sampled_from([2149, 2150, 2151]))),
                "anchor_year_group": draw(st.sampled_from(["2011 - 2013", "2014 - 2016", "2017 - 2019", "never"])),
                "dod": "" if dod is None else (last + timedelta(days=dod)).date().isoformat(),
            }
        )
    return {
        "hosp/patients": draw(st.permutations(patients)),
        "hosp/admissions": draw(st.permutations(admissions)),
        "icu/icustays": draw(st.permutations(stays)),
    }


def typed(rows: list[dict[str, str]], spec: TableSpec) -> pl.DataFrame:
    """Rows of text as a spec reads them."""
    schema = dict.fromkeys(spec.columns, pl.String)
    frame = pl.DataFrame([{name: row.get(name) or None for name in spec.columns} for row in rows], schema=schema)
    read: dict[type[pl.DataType], Callable[[str], pl.Expr]] = {
        pl.Datetime: lambda name: pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us"),
        pl.Date: lambda name: pl.col(name).str.to_date("%Y-%m-%d"),
    }
    return frame.with_columns(
        read[type(dtype)](name) if type(dtype) in read else pl.col(name).cast(dtype)
        for name, dtype in spec.schema.items()
    )


@settings(max_examples=300, deadline=None)
@given(
    rows=extracts(),
    cohort=st.sampled_from(COHORTS),
    episodes=st.sampled_from(["first", "all"]),
    hours=st.sampled_from([24.0, 24.0, 24.0, 1.0, 48.0]),
    last_year=st.sampled_from([2013, 2019]),
)
def test_cohorts_at_their_boundaries(
    independent: Any, rows: dict[str, list[dict[str, str]]], cohort: str, episodes: str, hours: float, last_year: int
) -> None:
    rules = independent.Rules(cohort, episodes, hours, last_year)
    count = independent.draw(rows["hosp/patients"], rows["hosp/admissions"], rows["icu/icustays"], rules)
    found, log = ours({spec.name: typed(rows[spec.file], spec) for spec in SPECS}, rules)
    assert as_theirs(found) == as_listed(count)
    if hours == 24:
        assert exclusions(log) == count.excluded


def test_the_boundaries_are_reached(independent: Any) -> None:
    """The drawn timelines aren't all of one kind: each reason and each label value occurs."""
    seen: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(rows=extracts(), cohort=st.sampled_from(COHORTS))
    def collect(rows: dict[str, list[dict[str, str]]], cohort: str) -> None:
        count = independent.draw(
            rows["hosp/patients"], rows["hosp/admissions"], rows["icu/icustays"], independent.Rules(cohort)
        )
        seen.update(count.excluded)
        seen.update(f"{task} {value}" for s in count.samples for task, value in s.labels.items())

    collect()
    tasks = ("readmission_30d_any", "readmission_30d_unplanned", "icu_90d", "mortality_30d", "mortality_180d")
    expected = {*REASONS.values(), *(f"{task} {value}" for task in tasks for value in (True, False, None))}
    assert expected <= set(seen), sorted(expected - set(seen))
