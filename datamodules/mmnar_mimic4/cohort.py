"""Who is a sample, at which time, and with which outcome: hospital episodes of MIMIC-IV.

``post_discharge``: adults whose episode ended alive, at its end plus a grace in which the discharge summary is written.
``icu_landmark``: adults in their first ICU stay, some hours after it began. Boundaries, all to the second:

* admissions exactly `chain_hours` apart are one **episode** (`episodes`);
* *dead by the prediction time* includes that moment, and so does *returned*. A return is the **arrival** of the next
  episode, the earlier of edregtime and admittime: rows are linked by patient and time, so the emergency department's
  tests of a return would stand in the sample;
* *alive and in the ICU at the landmark* means that death, hospital discharge and the end of the ICU stay all are later
  than it. 4 of the demo's 10 deathtimes follow dischtime by some minutes, hence the earliest of them decides;
* the **window** opens with the arrival of the episode, or with the ICU stay where that is earlier.

Choice of episodes. ``first`` is the patient's first episode as an adult, chosen before anything else: where it is
excluded, no later one takes its place, for that would be a choice by its outcome. ``random`` is drawn, by a keyed hash
of the admission, among those that would be samples: what excludes one is known at its prediction time. An ICU stay is
the patient's first whether or not it can be used, and ends where its own row says: stays that follow it are others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl

from mmnar_lightning.extract import Counts
from mmnar_lightning.records import keyed_uniform
from mmnar_mimic4.episodes import (
    describe_episodes,
    drop,
    linked_icu_stays,
    number_episodes,
    usable_admissions,
)
from mmnar_mimic4.labels import TASKS, landmark_labels, post_discharge_labels
from mmnar_mimic4.tables import ADMISSION, STAY, SUBJECT
from mmnar_mimic4.years import FIRST_YEAR, possible_years

__all__ = ["TASKS", "Cohort", "CohortName", "CohortSettings", "Episodes", "build_cohort"]

CohortName = Literal["post_discharge", "icu_landmark"]
Episodes = Literal["first", "random", "all"]
TIME = pl.Datetime("us")

# what a cohort doesn't know is null
SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {
    "sample": pl.Int64,
    SUBJECT: pl.Int64,
    ADMISSION: pl.Int64,
    "last_hadm_id": pl.Int64,
    STAY: pl.Int64,
    "window_start": TIME,
    "prediction_time": TIME,
    "episode": pl.Int64,
    "admissions": pl.Int64,
    "admittime": TIME,
    "edregtime": TIME,
    "dischtime": TIME,
    "intime": TIME,
    "age": pl.Int64,
    "gender": pl.String,
    "anchor_year_group": pl.String,
    "admission_type": pl.String,
    "admission_location": pl.String,
    "insurance": pl.String,
    "language": pl.String,
    "marital_status": pl.String,
    "race": pl.String,
    "discharge_location": pl.String,
    "first_careunit": pl.String,
    "year_low": pl.Int64,
    "year_high": pl.Int64,
    "ed_by_then": pl.Boolean,
}
UNKNOWN_TO = {
    "post_discharge": (STAY, "intime", "first_careunit"),
    "icu_landmark": ("dischtime", "discharge_location"),
}


@dataclass(frozen=True)
class CohortSettings:
    """What changes who is a sample.

    Args:
        episodes: Which episodes of a patient ``post_discharge`` takes: ``first``, a ``random`` one, or ``all``.
        note_grace_hours: Hours from the end of the episode to the prediction time of ``post_discharge``.
        landmark_hours: Hours from the start of the ICU stay to the prediction time of ``icu_landmark``.
        prospective: False predicts at the end of the episode itself, without grace, as the paper did.
        max_patients: Keep that many patients, drawn by a keyed hash; None keeps all.
        draw_seed: Key of the draws. A patient's draw doesn't depend on who else is there.
        last_year: Last real year of the extract: 2019 for MIMIC-IV 2.2, 2022 for 3.1.
        chain_hours: Admissions at most so far apart are one episode.

    Raises:
        ValueError: If one is out of its range.
    """

    episodes: Episodes = "first"
    note_grace_hours: float = 24.0
    landmark_hours: float = 24.0
    prospective: bool = True
    max_patients: int | None = None
    draw_seed: int = 0
    last_year: int = 2019
    chain_hours: float = 24.0

    def __post_init__(self) -> None:
        if self.episodes not in get_args(Episodes):
            raise ValueError(f"episodes {self.episodes!r} is not one of {', '.join(get_args(Episodes))}")
        for name in ("landmark_hours", "note_grace_hours", "chain_hours"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a number of hours, got {getattr(self, name)}")
        if self.landmark_hours <= 0:
            raise ValueError(f"landmark_hours must be positive, got {self.landmark_hours:g}")
        for name in ("note_grace_hours", "chain_hours"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name):g}")
        if self.max_patients is not None and self.max_patients < 1:
            raise ValueError(f"max_patients must be at least 1, got {self.max_patients}")
        if self.last_year < FIRST_YEAR:
            raise ValueError(f"last_year must be {FIRST_YEAR} or later, got {self.last_year}")


@dataclass(frozen=True)
class Cohort:
    """Samples, and which admissions belong to them.

    Args:
        samples: One row a sample in the order of ``subject_id`` and ``prediction_time``, ``sample`` its number: the
            columns of `SCHEMA`, and the outcomes as ``label/<task>`` (null where unknown). `hadm_id` is the first
            admission of the episode and describes the sample. `last_hadm_id` is the one whose discharge ends it
            (``post_discharge``), or the latest that had begun (``icu_landmark``, as `admissions` counts). Real years
            that are possible in the window are `year_low` to `year_high`; `ed_by_then` tells whether any admission of
            the patient had begun in the emergency department.
        admissions: ``sample`` and ``hadm_id`` of the episode's admissions that had begun by the prediction time.
    """

    samples: pl.DataFrame
    admissions: pl.DataFrame

    def restrict(self, keep: pl.Series) -> Cohort:
        """Keep the samples marked True and number them anew."""
        samples = self.samples.filter(keep).rename({"sample": "old"}).with_row_index("sample")
        samples = samples.with_columns(pl.col("sample").cast(pl.Int64))
        new = samples.select("sample", "old")
        admissions = self.admissions.rename({"sample": "old"}).join(new, on="old").select("sample", ADMISSION)
        return Cohort(samples.drop("old"), admissions.sort("sample", ADMISSION))


def build_cohort(frames: Mapping[str, pl.DataFrame], name: CohortName, settings: CohortSettings, log: Counts) -> Cohort:
    """Find the samples of a cohort.

    Args:
        frames: ``patients``, ``deaths``, ``admissions``, ``discharges``, ``icustays``, ``icu_ends`` as `tables` lists
            them.
        name: ``post_discharge`` or ``icu_landmark``.
        settings: What changes who is a sample.
        log: Takes the counts: every row that is not used, by its reason.

    Raises:
        ValueError: If there is no such cohort.
    """
    if name not in get_args(CohortName):
        raise ValueError(f"cohort {name!r} is not one of {', '.join(get_args(CohortName))}")
    admissions = number_episodes(usable_admissions(frames, log), settings.chain_hours)
    stays = linked_icu_stays(frames, admissions)
    found = describe_episodes(admissions, stays)
    log.add("episodes", "found", found.height)
    chained = admissions.height - found.height
    log.add("episodes", f"admissions joined to the one before (at most {settings.chain_hours:g} hours apart)", chained)
    if name == "post_discharge":
        samples = post_discharge(found, settings, log)
    else:
        samples = icu_landmark(found, stays, frames["patients"], settings, log)
    samples = _drawn_patients(samples, settings, log)
    low, high = possible_years("window_start", "prediction_time", settings.last_year)
    samples = samples.with_columns(low, high)
    labelled = post_discharge_labels if name == "post_discharge" else landmark_labels
    samples = labelled(samples, settings.last_year, log)
    return _finished(samples, admissions, frames["admissions"], name)


def _chosen(found: pl.DataFrame, settings: CohortSettings, log: Counts) -> pl.DataFrame:
    """Adults' episodes, and of each patient only the first where it is to be that."""
    adults = drop(found, pl.col("age") >= 18, log, "episodes", "under 18")
    if settings.episodes != "first":
        return adults
    first = pl.col("episode") == pl.col("episode").min().over(SUBJECT)
    return drop(adults, first, log, "episodes", "not the patient's first")


def post_discharge(found: pl.DataFrame, settings: CohortSettings, log: Counts) -> pl.DataFrame:
    """Episodes of adults that ended alive, who neither died nor returned by the prediction time."""
    kept = _chosen(found, settings, log)
    kept = drop(kept, pl.col("died").is_not_null(), log, "episodes", "hospital outcome unknown")
    kept = drop(kept, ~pl.col("died"), log, "episodes", "died in the hospital")
    grace = pl.duration(microseconds=round(settings.note_grace_hours * 3.6e9 * settings.prospective))
    kept = kept.with_columns(prediction_time=pl.col("dischtime") + grace, window_start=pl.col("arrival"))
    now = pl.col("prediction_time")
    alive = (pl.col("died_at") > now).fill_null(True)
    kept = drop(kept, alive, log, "episodes", "died by the prediction time")
    away = (pl.col("next_arrival") > now).fill_null(True)
    kept = drop(kept, away, log, "episodes", "returned by the prediction time")
    if settings.episodes == "random":
        drawn = keyed_uniform(kept[ADMISSION].cast(pl.String), settings.draw_seed, "episodes")
        kept = kept.with_columns(pl.Series("_draw", drawn)).sort(SUBJECT, "_draw", ADMISSION)
        one = pl.col(SUBJECT).is_first_distinct()
        kept = drop(kept, one, log, "episodes", "not the one drawn of the patient's")
    return kept


def icu_landmark(
    found: pl.DataFrame, stays: pl.DataFrame, patients: pl.DataFrame, settings: CohortSettings, log: Counts
) -> pl.DataFrame:
    """First ICU stays of adults who are alive and in the ICU at the landmark."""
    hours = settings.landmark_hours
    log.add("icustays", "rows", stays.height)
    kept = drop(stays, pl.col(SUBJECT).is_in(patients[SUBJECT].implode()), log, "icustays", "subject not in patients")
    kept = drop(kept, pl.col("rank") == 0, log, "icustays", "not the patient's first")
    usable = pl.col("episode").is_not_null()
    kept = drop(kept, usable, log, "icustays", "of no usable admission of the patient")
    ended = pl.col("outtime") >= pl.col("intime")
    kept = drop(kept, ended, log, "icustays", "ICU discharge before ICU admission or unknown")
    own = {"own_admittime": "admittime", "own_dischtime": "dischtime"}
    kept = kept.select(SUBJECT, "episode", STAY, "first_careunit", "intime", "outtime", **own)
    kept = kept.join(found, on=[SUBJECT, "episode"], how="inner", validate="1:1")
    kept = drop(kept, pl.col("age") >= 18, log, "icustays", "under 18")
    landmark = pl.col("intime") + pl.duration(microseconds=round(hours * 3.6e9))
    kept = kept.with_columns(prediction_time=landmark, window_start=pl.min_horizontal("arrival", "intime"))
    now = pl.col("prediction_time")
    admitted = pl.col("own_admittime") <= now
    kept = drop(kept, admitted, log, "icustays", f"hospital admission after hour {hours:g}")
    alive = (pl.col("died_at") > now).fill_null(True)
    kept = drop(kept, alive, log, "icustays", f"died by hour {hours:g}")
    kept = drop(kept, pl.col("outtime") > now, log, "icustays", f"left the ICU by hour {hours:g}")
    return drop(kept, pl.col("own_dischtime") > now, log, "icustays", f"left the hospital by hour {hours:g}")


def _drawn_patients(samples: pl.DataFrame, settings: CohortSettings, log: Counts) -> pl.DataFrame:
    if settings.max_patients is None:
        return samples
    people = samples.select(SUBJECT).unique().sort(SUBJECT)
    drawn = keyed_uniform(people[SUBJECT].cast(pl.String), settings.draw_seed, "patients")
    chosen = people.with_columns(pl.Series("_draw", drawn)).sort("_draw", SUBJECT).head(settings.max_patients)
    keep = pl.col(SUBJECT).is_in(chosen[SUBJECT].implode())
    return drop(samples, keep, log, "samples", "patient not drawn (max_patients)")


def _finished(samples: pl.DataFrame, admissions: pl.DataFrame, raw: pl.DataFrame, name: CohortName) -> Cohort:
    """Number the samples, link their admissions, and blank what the cohort can't know."""
    now = pl.col("prediction_time")
    seen = raw.group_by(SUBJECT).agg(_first_ed=pl.col("edregtime").min())
    samples = samples.drop(c for c in UNKNOWN_TO[name] if c in samples.columns)
    samples = samples.with_columns(pl.lit(None).cast(SCHEMA[column]).alias(column) for column in UNKNOWN_TO[name]).join(
        seen, on=SUBJECT, how="left", validate="m:1"
    )
    samples = samples.sort(SUBJECT, "prediction_time", "episode").with_row_index("sample")
    samples = samples.with_columns(
        pl.when(pl.col("edregtime") <= now).then("edregtime"),
        ed_by_then=(pl.col("_first_ed") <= now).fill_null(False),
    )
    moments = samples.select(SUBJECT, "episode", "sample", "prediction_time")
    begun = admissions.select(SUBJECT, "episode", ADMISSION, "admittime").join(moments, on=[SUBJECT, "episode"])
    begun = begun.filter(pl.col("admittime") <= now).sort("sample", "admittime", ADMISSION)
    if name == "icu_landmark":
        latest = begun.group_by("sample").agg(pl.last(ADMISSION).alias("last_hadm_id"), pl.len().alias("admissions"))
        samples = samples.drop("last_hadm_id", "admissions")
        samples = samples.join(latest, on="sample", how="left", validate="1:1", maintain_order="left")
    labels = [column for column in samples.columns if column.startswith("label/")]
    linked = begun.select(pl.col("sample").cast(pl.Int64), ADMISSION).sort("sample", ADMISSION)
    return Cohort(samples.select(*(pl.col(c).cast(t) for c, t in SCHEMA.items()), *labels), linked)
