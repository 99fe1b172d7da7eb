"""Hospital episodes: the usable admissions of a patient, chained where they are at most a day apart.

Patients are moved between accounts: in the demo all "readmissions" within a day are minutes after discharge. Admissions
whose admittime is at most `hours` after the latest dischtime of those before are one **episode**; overlapping ones too.

Which admissions are joined to those before never depends on a time after their own admittime: an earlier one that goes
on is joined whenever it ends. So a later row moves no start of a window.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mmnar_lightning.extract import Counts
from mmnar_mimic4.labels import unplanned
from mmnar_mimic4.tables import ADMISSION, STAY, SUBJECT

DESCRIBED = (
    "admittime",
    "edregtime",
    "admission_type",
    "admission_location",
    "insurance",
    "language",
    "marital_status",
    "race",
)
OLDEST = 90


def drop(frame: pl.DataFrame, keep: pl.Expr, log: Counts, stage: str, why: str) -> pl.DataFrame:
    """Keep rows and count the others; a null condition excludes."""
    kept = frame.filter(keep)
    log.add(stage, f"excluded: {why}", frame.height - kept.height)
    return kept


def end_of_day(column: str) -> pl.Expr:
    """The end of a date, its next midnight."""
    return pl.col(column).cast(pl.Datetime("us")) + pl.duration(days=1)


def usable_admissions(frames: Mapping[str, pl.DataFrame], log: Counts) -> pl.DataFrame:
    """Admissions of known patients with possible times, in the order of their patient, admittime and hadm_id.

    Adds to the tables' columns those of the patient and

    * ``arrival``, the earlier of edregtime and admittime;
    * ``died`` (Boolean), whether the patient died in it: a deathtime, the flag, or the discharge location says so; null
      where neither does and the flag is absent;
    * ``died_at``, the earliest record of the patient's death: the deathtime of a usable admission (where absent, the
      dischtime of one with ``died``) or the end of the day ``dod``; null where none is known.

    Args:
        frames: ``patients``, ``deaths``, ``admissions``, ``discharges``.
        log: Takes the counts.
    """
    rows = frames["admissions"].join(frames["discharges"], on=ADMISSION, how="left", validate="1:1")
    people = frames["patients"].join(frames["deaths"], on=SUBJECT, how="left", validate="1:1")
    log.add("admissions", "rows", rows.height)
    rows = rows.join(people.with_columns(known=True), on=SUBJECT, how="left", validate="m:1")
    rows = drop(rows, pl.col("known"), log, "admissions", "subject not in patients")
    rows = drop(rows, pl.col("dischtime").is_not_null(), log, "admissions", "discharge time unknown")
    ordered = pl.col("dischtime") >= pl.col("admittime")
    rows = drop(rows, ordered, log, "admissions", "discharge before admission")
    later_death = (pl.col("deathtime") >= pl.col("admittime")).fill_null(True)
    rows = drop(rows, later_death, log, "admissions", "death before admission")
    said = pl.col("deathtime").is_not_null() | (pl.col("hospital_expire_flag") == 1).fill_null(False)
    said = said | (pl.col("discharge_location").str.strip_chars().str.to_uppercase() == "DIED").fill_null(False)
    rows = rows.with_columns(
        arrival=pl.min_horizontal("edregtime", "admittime"),
        died=pl.when(said).then(True).when(pl.col("hospital_expire_flag").is_not_null()).then(False),
    )
    own_death = pl.coalesce("deathtime", pl.when("died").then(pl.col("dischtime")))
    rows = rows.with_columns(died_at=pl.min_horizontal(own_death.min().over(SUBJECT), end_of_day("dod")))
    # Accounts opened after death, for organ donation; nobody is readmitted then.
    alive = (pl.col("admittime") <= pl.col("died_at")).fill_null(True)
    rows = drop(rows, alive, log, "admissions", "admitted after the patient's death")
    return rows.drop("known").sort(SUBJECT, "admittime", ADMISSION)


def number_episodes(admissions: pl.DataFrame, hours: float) -> pl.DataFrame:
    """Add ``episode``, counted from 0 in each patient, to sorted admissions; `hours` apart still are one."""
    latest = pl.col("dischtime").cum_max().shift(1).over(SUBJECT)
    apart = pl.duration(microseconds=round(hours * 3.6e9))
    begins = (pl.col("admittime") - pl.col("latest") > apart).fill_null(True)
    # step by step: a window inside a window is worked out patient by patient
    flagged = admissions.with_columns(latest=latest).with_columns(begins=begins.cast(pl.Int64))
    numbered = flagged.with_columns(episode=pl.col("begins").cum_sum().over(SUBJECT) - 1)
    return numbered.drop("latest", "begins")


def linked_icu_stays(frames: Mapping[str, pl.DataFrame], admissions: pl.DataFrame) -> pl.DataFrame:
    """ICU stays with their ends, ``rank`` (0 = the patient's first), and of their usable admission ``episode``.

    A stay of no usable admission of the same patient has a null ``episode``.
    """
    stays = frames["icustays"].join(frames["icu_ends"], on=STAY, how="left", validate="1:1")
    stays = stays.sort(SUBJECT, "intime", STAY).with_columns(rank=pl.int_range(pl.len()).over(SUBJECT))
    facts = admissions.select(SUBJECT, ADMISSION, "episode", "admittime", "dischtime")
    return stays.join(facts, on=[SUBJECT, ADMISSION], how="left", validate="m:1", maintain_order="left")


def describe_episodes(admissions: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """One row an episode, in order: what its first admission says, how it ends, and what comes later.

    Args:
        admissions: As `number_episodes` leaves them.
        stays: As `linked_icu_stays` leaves them.

    Returns:
        The patient's columns; ``hadm_id``, ``arrival`` and those of `DESCRIBED` from its first admission; ``age`` then
        (whole years, capped at 90); ``dischtime`` (latest), ``last_hadm_id`` and ``discharge_location`` of the
        admission that ends last; ``admissions`` (how many), ``died``, ``died_at``; over all later episodes
        ``next_arrival``, ``next_admission``, ``next_unplanned``, ``next_untyped``, ``next_icu``.
    """
    icu = stays.filter(pl.col("episode").is_not_null()).group_by(ADMISSION).agg(icu=pl.col("intime").min())
    rows = admissions.join(icu, on=ADMISSION, how="left", validate="1:1", maintain_order="left")
    admitted = pl.col("admittime")
    rows = rows.with_columns(
        unplanned_at=pl.when(unplanned()).then(admitted),
        untyped_at=pl.when(unplanned().is_null()).then(admitted),
        icu_at=pl.when(pl.col("icu").is_not_null()).then(pl.max_horizontal("icu", admitted)),
    )
    key = (SUBJECT, "episode")
    found = rows.group_by(key, maintain_order=True).agg(
        pl.first("arrival", "gender", "anchor_age", "anchor_year", "anchor_year_group", "died_at"),
        pl.first(*DESCRIBED, ADMISSION),
        pl.col("dischtime").max(),
        admissions=pl.len().cast(pl.Int64),
        any_died=pl.col("died").any(),
        unknown=pl.col("died").is_null().any(),
        first_arrival=pl.col("arrival").min(),
        first_unplanned=pl.col("unplanned_at").min(),
        first_untyped=pl.col("untyped_at").min(),
        first_icu=pl.col("icu_at").min(),
    )
    ends = rows.sort(SUBJECT, "dischtime", "admittime", ADMISSION).unique(key, keep="last", maintain_order=True)
    ends = ends.select(*key, "discharge_location", last_hadm_id=ADMISSION)
    found = found.join(ends, on=key, how="left", validate="1:1").with_columns(
        # a death in one of them is known; without one, an unknown outcome of any leaves it unknown
        died=pl.when("any_died").then(True).when(~pl.col("unknown")).then(False)
    )
    years = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
    return found.sort(SUBJECT, "episode").with_columns(
        years.clip(upper_bound=OLDEST).cast(pl.Int64).alias("age"),
        *(_later(of).alias(name) for name, of in _NEXT.items()),
    )


_NEXT = {
    "next_arrival": "first_arrival",
    "next_admission": "admittime",
    "next_unplanned": "first_unplanned",
    "next_untyped": "first_untyped",
    "next_icu": "first_icu",
}


def _later(time: str) -> pl.Expr:
    """The earliest such time over a patient's later episodes, in frames sorted by patient and episode."""
    # a running minimum is null where its own row is: the row after it tells
    return pl.col(time).cum_min(reverse=True).backward_fill().shift(-1).over(SUBJECT)
