"""Free text: radiology reports, discharge summaries, and the addenda of both.

Two passes are made over a table of notes: the first, without the texts, says which notes a sample may contain; the
second fetches their texts, so that no more text is ever held than that of the notes that were linked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import polars as pl

from mmnar_lightning.extract import Clock, TableSpec, known_by
from mmnar_mimic4.tables import ADMISSION, DISCHARGE_NOTES, RADIOLOGY_NOTES, SUBJECT
from mmnar_mimic4.windows import Source

Blanks = Literal["keep", "drop"]
NOTE = "note_id"
TEXT = "text"
BLANK = "_{3,}"  # de-identified words; longer runs are rulers and hold nothing, either


def radiology(
    source: Source, admissions: pl.DataFrame, blanks: Blanks = "keep", prospective: bool = True
) -> pl.DataFrame:
    """The ``radiology`` modality: reports of examinations in the window, known by the prediction time.

    Args:
        source: The table ``radiology``, and the samples.
        admissions: `Cohort.admissions`.
        blanks: Whether the de-identification blanks ``___`` stay (``keep``) or not (``drop``).
        prospective: False takes reports by charttime alone, whenever they were written.

    Returns:
        ``sample``, ``hours_before`` (from charttime) and ``text``, sorted by sample and time. A report without text is
        a row whose text is null: no element, but a reason.
    """
    return texts(source, RADIOLOGY_NOTES, radiology_rows(source, admissions, prospective), blanks)


def radiology_rows(source: Source, admissions: pl.DataFrame, prospective: bool = True) -> pl.DataFrame:
    """Which reports `radiology` takes.

    They are linked by patient and time. Most have no hadm_id; one that has that of an admission outside the sample's
    episode is another stay's.

    Returns:
        ``sample``, ``hours_before`` (Float32) and ``note_id``, sorted by sample, time and note.
    """
    spec = _without_text(RADIOLOGY_NOTES, prospective)
    _count_timeless(source, spec)
    known = source.known(spec, source.frames[spec.name].select(*spec.columns))
    linked = known.select("sample", "hours_before", "time", NOTE, ADMISSION).collect(engine="streaming")
    own = pl.concat(
        [admissions.select("sample", ADMISSION), source.samples.select("sample", hadm_id=None)], how="vertical_relaxed"
    )
    mine = linked.join(own, on=["sample", ADMISSION], how="semi", nulls_equal=True)
    source.log.add(spec.name, "of an admission outside the episode, not used", linked.height - mine.height)
    return mine.sort("sample", "time", NOTE).select("sample", pl.col("hours_before").cast(pl.Float32), NOTE)


def discharge(
    source: Source, admissions: pl.DataFrame, blanks: Blanks = "keep", prospective: bool = True
) -> pl.DataFrame:
    """The ``discharge`` modality: discharge summaries of the episode's admissions, known by the prediction time.

    Args:
        source: The table ``discharge``, and the samples.
        admissions: `Cohort.admissions`.
        blanks: Whether the de-identification blanks ``___`` stay (``keep``) or not (``drop``).
        prospective: False takes summaries by charttime alone, whenever they were written.

    Returns:
        ``sample``, ``hours_before`` (from becoming known) and ``text``, sorted by sample and time. A summary without
        text is a row whose text is null: no element, but a reason.
    """
    return texts(source, DISCHARGE_NOTES, discharge_rows(source, admissions, prospective), blanks)


def discharge_rows(source: Source, admissions: pl.DataFrame, prospective: bool = True) -> pl.DataFrame:
    """Which summaries and addenda `discharge` takes.

    Their charttime is only a date, so that they are linked by hadm_id, which each has, and not by the window.

    Returns:
        ``sample``, ``hours_before`` (Float32) and ``note_id``, sorted by sample, time and note.
    """
    spec = _without_text(DISCHARGE_NOTES, prospective)
    _count_timeless(source, spec)
    people = source.samples.select("sample", "prediction_time", owner=SUBJECT).join(admissions, on="sample")
    joined = (
        source.frames[spec.name].select(*spec.columns).join(people.lazy(), on=ADMISSION).collect(engine="streaming")
    )
    mine = joined.filter(pl.col(SUBJECT) == pl.col("owner"))
    known = known_by(mine.lazy(), spec).collect()
    source.log.add(spec.name, "notes of the samples' admissions", mine.height)
    source.log.add(spec.name, "not yet known at the prediction time", mine.height - known.height)
    source.log.add(spec.name, "with another patient than their admission, not used", joined.height - mine.height)
    since = (pl.col("prediction_time") - pl.col("available")).dt.total_microseconds() / 3.6e9
    return known.sort("sample", "available", NOTE).select("sample", since.cast(pl.Float32).alias("hours_before"), NOTE)


def texts(source: Source, spec: TableSpec, rows: pl.DataFrame, blanks: Blanks) -> pl.DataFrame:
    """Fetch the texts of notes; counts those that hold nothing but blanks.

    Args:
        source: The notes.
        spec: Their table.
        rows: ``sample``, ``hours_before`` and ``note_id``.
        blanks: Whether the de-identification blanks stay.

    Returns:
        ``sample``, ``hours_before`` and ``text``, in the order of `rows`.
    """
    whole = pl.col(TEXT)
    dropped = whole.str.replace_all(BLANK, "")
    # with the same notes observed under either option
    said = pl.when(dropped.str.strip_chars() != "").then(whole if blanks == "keep" else dropped)
    # a join would hold the whole table while it looks for its smaller side
    wanted = pl.col(NOTE).is_in(rows[NOTE].unique().implode())
    found = source.frames[spec.name].filter(wanted).select(NOTE, said.alias(TEXT)).collect(engine="streaming")
    joined = rows.join(found, on=NOTE, how="left", validate="m:1", maintain_order="left")
    source.log.add(spec.name, "without text, not used", joined[TEXT].null_count())
    return joined.select("sample", "hours_before", TEXT)


def _without_text(spec: TableSpec, prospective: bool) -> TableSpec:
    assert spec.clock is not None
    columns = {name: column for name, column in spec.columns.items() if name != TEXT}
    return replace(spec, columns=columns, clock=spec.clock if prospective else Clock(spec.clock.event, lag=0.0))


def _count_timeless(source: Source, spec: TableSpec) -> None:
    assert spec.clock is not None
    never = source.frames[spec.name].select(pl.col(spec.clock.event).is_null().sum()).collect(engine="streaming").item()
    source.log.add(spec.name, "rows without a time, not used", never)
