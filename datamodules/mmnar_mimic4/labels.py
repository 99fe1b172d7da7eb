"""Which outcomes are asked for, and when they count.

Every window opens at the prediction time t and is (t, t + N days]: what happens at t has happened, what happens N · 24
hours later to the second still counts. An admission happens at its admittime, an ICU stay at its intime, a death at its
deathtime; a death of which only the date is known (``dod``) at the end of that day, its next midnight, as everywhere. A
death in the hospital without a deathtime is taken to be at its dischtime.

* Readmission is to the same hospital: MIMIC-IV sees no other. Only later *episodes* are readmissions.
* Who dies first, without readmission, is negative for readmission; the composite stands beside it.
* ``unplanned`` leaves out elective, same-day surgical and observation admissions; a later episode counts from its first
  unplanned admission on.
* An ICU stay counts no earlier than its admission, so that ``icu_90d`` implies ``readmission_90d``.
* Follow-up: where the real year of the prediction time may be the extract's last one, what reaches past the hospital
  stay is unknown, for those with the outcome as for those without: known positives alone would be a selection on it.
"""

from __future__ import annotations

import polars as pl

from mmnar_lightning.extract import Counts
from mmnar_lightning.records import Task
from mmnar_mimic4.years import may_reach

_MORTALITY_30D = Task("mortality_30d", "30 days from the prediction time", "died, in the hospital or after it")
TASKS: dict[str, tuple[Task, ...]] = {
    "post_discharge": (
        Task("readmission_30d_any", "30 days from the prediction time", "admitted to the same hospital again"),
        Task(
            "readmission_30d_unplanned",
            "30 days from the prediction time",
            "admitted to the same hospital again: not elective, not for same-day surgery or observation",
        ),
        Task("readmission_90d", "90 days from the prediction time", "admitted to the same hospital again"),
        Task(
            "icu_90d",
            "90 days from the prediction time",
            "in an ICU of the same hospital after a new admission",
            parent="readmission_90d",
        ),
        _MORTALITY_30D,
        Task("mortality_180d", "180 days from the prediction time", "died, in the hospital or after it"),
        Task(
            "death_or_readmission_30d",
            "30 days from the prediction time",
            "died, or was admitted to the same hospital again",
        ),
    ),
    "icu_landmark": (
        Task("mortality_hospital", "until the end of the hospital episode", "died in the hospital"),
        _MORTALITY_30D,
    ),
}

# All values of admissions.admission_type in MIMIC-IV 2.2 and 3.1; of another one it is unknown whether it was planned.
UNPLANNED = ("DIRECT EMER.", "EW EMER.", "URGENT")
PLANNED = (
    "AMBULATORY OBSERVATION",
    "DIRECT OBSERVATION",
    "ELECTIVE",
    "EU OBSERVATION",
    "OBSERVATION ADMIT",
    "SURGICAL SAME DAY ADMISSION",
)


def unplanned() -> pl.Expr:
    """Whether an admission counts as unplanned (Boolean; null where its type is none that MIMIC-IV has)."""
    kind = pl.col("admission_type").str.strip_chars().str.to_uppercase()
    return pl.when(kind.is_in(UNPLANNED)).then(True).when(kind.is_in(PLANNED)).then(False)


def within(event: str, days: int) -> pl.Expr:
    """Whether a time lies in (prediction time, prediction time + days]; False where there is none."""
    opened = pl.col("prediction_time")
    time = pl.col(event)
    return ((time > opened) & (time <= opened + pl.duration(days=days))).fill_null(False)


def post_discharge_labels(samples: pl.DataFrame, last_year: int, log: Counts) -> pl.DataFrame:
    """Add the labels of ``post_discharge``.

    Args:
        samples: ``prediction_time``, ``died_at``, ``year_high``, and of the patient's later episodes the first time of
            any admission (``next_admission``), of an unplanned one (``next_unplanned``), of one of unknown type
            (``next_untyped``) and of an ICU stay (``next_icu``).
        last_year: Last real year of the extract.
        log: Takes the counts.
    """
    untyped = ~within("next_unplanned", 30) & within("next_untyped", 30)
    labelled = {
        "readmission_30d_any": within("next_admission", 30),
        "readmission_30d_unplanned": pl.when(~untyped).then(within("next_unplanned", 30)),
        "readmission_90d": within("next_admission", 90),
        "icu_90d": within("next_icu", 90),
        "mortality_30d": within("died_at", 30),
        "mortality_180d": within("died_at", 180),
        "death_or_readmission_30d": within("next_admission", 30) | within("died_at", 30),
    }
    followed = ~may_reach(last_year)
    unknown = samples.select(ends=~followed, untyped=followed & untyped).sum().row(0)
    log.add("samples", "labels after discharge unknown: follow-up may end", unknown[0])
    log.add("samples", "label readmission_30d_unplanned unknown: admission of another type", unknown[1])
    return samples.with_columns(pl.when(followed).then(e).alias(f"label/{task}") for task, e in labelled.items())


def landmark_labels(samples: pl.DataFrame, last_year: int, log: Counts) -> pl.DataFrame:
    """Add the labels of ``icu_landmark``; ``mortality_hospital`` ends with the hospital stay and needs no follow-up.

    Args:
        samples: ``prediction_time``, ``died_at``, ``year_high``, and ``died``, the outcome of the hospital episode.
        last_year: Last real year of the extract.
        log: Takes the counts.
    """
    followed = ~may_reach(last_year)
    ends, unknown = samples.select(ends=~followed, unknown=pl.col("died").is_null()).sum().row(0)
    log.add("samples", "label mortality_30d unknown: follow-up may end", ends)
    log.add("samples", "label mortality_hospital unknown: hospital outcome unknown", unknown)
    return samples.with_columns(
        pl.col("died").alias("label/mortality_hospital"),
        pl.when(followed).then(within("died_at", 30)).alias("label/mortality_30d"),
    )
