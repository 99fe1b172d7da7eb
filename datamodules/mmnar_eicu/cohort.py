"""Who is a sample, at which time, and with which outcome: ICU episodes of eICU-CRD.

eICU counts minutes from each unit admission; unit stays of one hospital stay are put on one clock by their
``hospitaladmitoffset``. Boundaries, all in whole minutes:

* unit stays at most 60 minutes apart (60 included) are one **episode**; step-down units are no ICU and break none;
* *in the unit at +24 h* means the episode ends after minute 1,440: who leaves or dies in that very minute is gone;
* *a stay of over 7 days* ends after minute 10,080, likewise;
* *leaving the hospital within 60 minutes* includes minute 60;
* *the window* opens 24 hours before hospital admission, or with the episode where that is earlier: what the emergency
  department or the operating room did just before is part of the stay, the patient's earlier life isn't.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from mmnar_eicu.tables import STAY
from mmnar_lightning.extract import Counts
from mmnar_lightning.records import Task

CohortName = Literal["landmark", "unit_discharge"]
HOSPITAL_STAY = "patienthealthsystemstayid"

EPISODE_GAP = 60  # minutes between unit stays of one episode, and from its end to leaving the hospital
LONG_STAY = 7 * 24 * 60
BEFORE_HOSPITAL = 24 * 60  # emergency department and operating room: how long before hospital admission rows count
# No hospital stay before the ICU is this long; eICU has offsets such as -480,446, which are wrong years.
LONGEST_STAY_BEFORE = 180 * 24 * 60

_MORTALITY = Task("mortality_hospital", "until hospital discharge", "died in the hospital")
TASKS: dict[str, tuple[Task, ...]] = {
    "landmark": (
        _MORTALITY,
        Task("mortality_unit", "until the end of the ICU episode", "died in the ICU", parent="mortality_hospital"),
        Task(
            "death_or_los_7d",
            "7 days from ICU admission",
            "still in the ICU after 7 days, or died in the hospital by then",
        ),
        Task("los_7d", "7 days from ICU admission", "still in the ICU after 7 days", parent="death_or_los_7d"),
    ),
    "unit_discharge": (
        Task("readmission_icu", "until hospital discharge", "a later ICU episode in the same hospital stay"),
        _MORTALITY,
    ),
}


@dataclass(frozen=True)
class Cohort:
    """Samples, and which unit stays serve them.

    Args:
        samples: One row a sample in final order; ``sample`` is its row number, `prediction_time` minutes from the
            start of the episode, ``label/*`` the outcomes, and the first unit stay's attributes.
        stays: One row for each unit stay that had begun by the prediction time: `patientunitstayid`, ``sample``, and on
            that stay's own clock (Float64 minutes) ``prediction_time`` and ``window_start``; ``shift`` turns its
            minutes into those of the episode.
    """

    samples: pl.DataFrame
    stays: pl.DataFrame

    def restrict(self, keep: pl.Series) -> Cohort:
        """Keep the samples marked True and number them anew."""
        samples = self.samples.filter(keep).rename({"sample": "old"}).with_row_index("sample")
        samples = samples.with_columns(pl.col("sample").cast(pl.Int64))
        new = samples.select("sample", "old")
        stays = self.stays.rename({"sample": "old"}).join(new, on="old").drop("old").sort("sample", STAY)
        return Cohort(samples.drop("old"), stays)


def _drop(frame: pl.DataFrame, keep: pl.Expr, log: Counts, stage: str, why: str) -> pl.DataFrame:
    """Keep rows and count the others; a null condition excludes."""
    kept = frame.filter(keep)
    log.add(stage, f"excluded: {why}", frame.height - kept.height)
    return kept


def _status(column: str) -> pl.Expr:
    """Died (True), alive (False), or unknown (null): anything but these two words is unknown."""
    word = pl.col(column).str.strip_chars().str.to_lowercase()
    return pl.when(word == "expired").then(True).when(word == "alive").then(False).otherwise(None).alias(column)


def unit_stays(patient: pl.DataFrame, outcomes: pl.DataFrame, log: Counts) -> pl.DataFrame:
    """ICU stays on the clock of their hospital stay (minutes from hospital admission), usable ones only.

    Adds ``start``, ``end``, ``hospital_end``, ``years`` (age, capped at 90, null where unknown) and ``died_unit``,
    ``died_hospital`` (null where unknown).
    """
    stays = patient.join(outcomes, on=STAY, how="left", validate="1:1")
    log.add("patient", "unit stays read", stays.height)
    age = pl.col("age").str.strip_chars()
    stays = stays.with_columns(
        start=-pl.col("hospitaladmitoffset"),
        end=pl.col("unitdischargeoffset") - pl.col("hospitaladmitoffset"),
        hospital_end=pl.col("hospitaldischargeoffset") - pl.col("hospitaladmitoffset"),
        years=pl.when(age.str.contains(r"^>\s*89$"))
        .then(90.0)
        .otherwise(age.cast(pl.Float64, strict=False).clip(upper_bound=90.0)),
        died_unit=_status("unitdischargestatus"),
        died_hospital=_status("hospitaldischargestatus"),
    )
    kind = pl.concat_str("unitstaytype", "unittype", separator=" ", ignore_nulls=True).str.to_lowercase()
    stays = _drop(stays, ~kind.str.contains("step-?down").fill_null(False), log, "patient", "step-down unit, no ICU")
    stays = _drop(
        stays, pl.col("unitdischargeoffset") >= 0, log, "patient", "unit discharge before unit admission or unknown"
    )
    known = pl.col("start").is_not_null() & (pl.col("start").abs() <= LONGEST_STAY_BEFORE)
    stays = _drop(stays, known, log, "patient", "hospital admission over 180 days from unit admission or unknown")
    return _drop(
        stays, pl.col("hospital_end") >= 0, log, "patient", "hospital discharge before hospital admission or unknown"
    )


def number_episodes(stays: pl.DataFrame) -> pl.DataFrame:
    """Add ``episode``, counted from 0 in each hospital stay, and sort by it."""
    stays = stays.sort(HOSPITAL_STAY, "start", "end", STAY)
    latest_end = pl.col("end").cum_max().shift(1).over(HOSPITAL_STAY)
    begins = (pl.col("start") - latest_end > EPISODE_GAP).fill_null(True)
    return stays.with_columns(episode=begins.cast(pl.Int64).cum_sum().over(HOSPITAL_STAY) - 1)


def episodes(stays: pl.DataFrame) -> pl.DataFrame:
    """One row an episode, with the attributes of its first unit stay and the outcomes of its last."""
    last = pl.col("died_unit").sort_by("end", "start", STAY).last()
    earlier_death = pl.col("died_unit").sort_by("end", "start", STAY).slice(0, pl.len() - 1).any()
    described = stays.group_by(HOSPITAL_STAY, "episode", maintain_order=True).agg(
        pl.exclude("start", "end", "died_unit", "died_hospital", "hospital_end").first(),
        start=pl.col("start").first(),
        end=pl.col("end").max(),
        hospital_end=pl.col("hospital_end").max(),
        unit_stays=pl.len().cast(pl.Int64),
        died_unit=last,
        earlier_death=earlier_death,
        # Unit stays of one hospital stay repeat its outcome; where they disagree it is unknown.
        died_hospital=pl.when(pl.col("died_hospital").drop_nulls().n_unique() == 1).then(pl.col("died_hospital").max()),
    )
    # Nobody dies in the unit and leaves the hospital alive, or dies in one unit and goes on to the next.
    contradiction = (pl.col("died_unit") & ~pl.col("died_hospital")).fill_null(False) | pl.col("earlier_death")
    return described.sort(HOSPITAL_STAY, "episode").with_columns(
        contradiction=contradiction,
        later=pl.col("episode") < pl.col("episode").max().over(HOSPITAL_STAY),
        length=pl.col("end") - pl.col("start"),
        alive_until=pl.col("hospital_end") - pl.col("start"),
    )


def landmark(found: pl.DataFrame, hours: float, log: Counts) -> pl.DataFrame:
    """First episodes of adults who are alive and in the unit `hours` after it began, with labels.

    ``mortality_unit`` is positive only where ``mortality_hospital`` is, ``los_7d`` only where ``death_or_los_7d`` is. A
    death before 7 days is negative for ``los_7d``; the composite stands beside it.
    """
    at = round(hours * 60)
    kept = _drop(found, pl.col("episode") == 0, log, "episodes", "not the first of the hospital stay")
    kept = _drop(kept, pl.col("length") > at, log, "episodes", f"left the ICU or died by hour {hours:g}")
    kept = _drop(kept, pl.col("alive_until") > at, log, "episodes", f"left the hospital by hour {hours:g}")
    long = pl.col("length") > LONG_STAY
    # Who is in the hospital after day 7 is alive at day 7, whatever the status says.
    early_death = pl.when(pl.col("alive_until") > LONG_STAY).then(False).otherwise(pl.col("label/mortality_hospital"))
    return kept.with_columns(pl.lit(float(at)).alias("prediction_time"), hospital_mortality()).with_columns(
        pl.when("contradiction").then(None).otherwise(pl.col("died_unit")).alias("label/mortality_unit"),
        (long | early_death).alias("label/death_or_los_7d"),
        long.alias("label/los_7d"),
    )


def hospital_mortality() -> pl.Expr:
    """Label ``mortality_hospital``: a death in the unit is one in the hospital; contradictory records are unknown."""
    died = pl.col("died_hospital") | pl.col("died_unit").fill_null(False)
    # Without a hospital status only a death in the unit is known: unknown must not turn negative.
    known = (
        pl.when(pl.col("died_hospital").is_null() & ~pl.col("died_unit").fill_null(False)).then(None).otherwise(died)
    )
    return pl.when("contradiction").then(None).otherwise(known).alias("label/mortality_hospital")


def unit_discharge(found: pl.DataFrame, log: Counts) -> pl.DataFrame:
    """Episodes of adults that ended alive, not leaving the hospital within 60 minutes, with labels."""
    kept = _drop(found, pl.col("died_unit").is_not_null(), log, "episodes", "unit discharge status unknown")
    kept = _drop(kept, ~pl.col("died_unit"), log, "episodes", "died in the ICU")
    stays_on = pl.col("hospital_end") - pl.col("end") > EPISODE_GAP
    kept = _drop(kept, stays_on | pl.col("later"), log, "episodes", "left the hospital within 60 minutes of the ICU")
    return kept.with_columns(
        pl.col("length").cast(pl.Float64).alias("prediction_time"),
        pl.col("later").alias("label/readmission_icu"),
        hospital_mortality(),
    )


def build_cohort(
    patient: pl.DataFrame, outcomes: pl.DataFrame, cohort: CohortName, hours: float, log: Counts
) -> Cohort:
    """Find the samples of a cohort.

    Args:
        patient: The patient table as `tables.PATIENT` lists it.
        outcomes: The same file as `tables.OUTCOMES` lists it.
        cohort: ``landmark`` or ``unit_discharge``.
        hours: The landmark, in hours from the start of the episode.
        log: Takes the counts.
    """
    stays = number_episodes(unit_stays(patient, outcomes, log))
    found = episodes(stays)
    log.add("episodes", "found", found.height)
    log.add("episodes", "unit stays joined to the one before (at most 60 minutes apart)", stays.height - found.height)
    _cross_check(stays, log)
    adults = _drop(found, pl.col("years").is_not_null(), log, "episodes", "age unknown")
    adults = _drop(adults, pl.col("years") >= 18, log, "episodes", "under 18")
    samples = landmark(adults, hours, log) if cohort == "landmark" else unit_discharge(adults, log)
    samples = (
        samples.sort(HOSPITAL_STAY, "episode").with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int64))
    )
    log.add("samples", "outcome contradicts itself, label unknown", int(samples["contradiction"].sum()))
    return Cohort(samples, stays_of(samples, stays))


def stays_of(samples: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Unit stays that serve each sample: those of its episode that had begun by the prediction time.

    A later unit stay doesn't exist yet, nor do the rows that were filed under it.
    """
    begun = samples.select(HOSPITAL_STAY, "episode", "sample", "prediction_time", episode_start="start")
    joined = stays.select(STAY, HOSPITAL_STAY, "episode", "start").join(begun, on=[HOSPITAL_STAY, "episode"])
    joined = joined.with_columns(shift=(pl.col("start") - pl.col("episode_start")).cast(pl.Float64))
    return (
        joined.filter(pl.col("shift") <= pl.col("prediction_time"))
        .select(
            STAY,
            "sample",
            "shift",
            prediction_time=pl.col("prediction_time") - pl.col("shift"),
            # eICU sometimes puts hospital admission after the ICU's.
            window_start=-pl.max_horizontal(pl.col("start") + BEFORE_HOSPITAL, pl.col("shift")).cast(pl.Float64),
        )
        .sort("sample", STAY)
    )


def _cross_check(stays: pl.DataFrame, log: Counts) -> None:
    """Count how our readmissions agree with eICU's own ``unitstaytype = readmit``, on first stays of episodes."""
    first = stays.unique([HOSPITAL_STAY, "episode"], keep="first", maintain_order=True)
    marked = (pl.col("unitstaytype").str.to_lowercase() == "readmit").fill_null(False)
    later = pl.col("episode") > 0
    for what, expression in (
        ("later episode, marked readmit", later & marked),
        ("later episode, not marked readmit", later & ~marked),
        ("first episode, but marked readmit", ~later & marked),
    ):
        log.add("episodes", f"check: {what}", first.filter(expression).height)
