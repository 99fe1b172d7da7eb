"""Notes as text: one document for each note that was saved, with the physical exam of the same minute.

eICU holds no running text. A note is a form, and its rows are what was picked in it, as paths. A document lists these
paths in words; what people typed beside them is not read.
"""

from __future__ import annotations

import polars as pl

from mmnar_eicu import codes

KEY = ("sample", "time", "hours_before", "notetype")
# what was known first comes first
EARLIEST = (False, False, True, False)


def documents(notes: pl.LazyFrame, exams: pl.LazyFrame) -> pl.LazyFrame:
    """Put the rows of each note together, whatever order they come in.

    Rows of a note share the time they are about, the time of entry and the type. An exam belongs to the note of its
    minute that was known first; one without is a document without type.

    Args:
        notes: Rows of note that were known by the prediction time: ``sample``, ``time`` (minutes, what it is about),
            ``hours_before`` (since it was known), ``notetype``, ``notepath``.
        exams: Rows of physicalExam that were: ``sample``, ``time``, ``hours_before``, ``physicalexampath``.

    Returns:
        ``sample``, ``hours_before`` (Float32) and ``text``, by sample, time and when it was known. The text is the
        type, then a line for each section, ``Neurologic, GCS: …; …``, with what was picked in it; both in the order of
        the alphabet.
    """
    moment = ["sample", "time"]
    first = notes.select(KEY).sort(KEY, descending=EARLIEST).unique(moment, keep="first", maintain_order=True)
    examined = exams.join(first, on=moment, how="left", suffix="_note").select(
        *moment,
        pl.coalesce("hours_before_note", "hours_before").alias("hours_before"),
        "notetype",
        path="Physical Exam/" + codes.exam_path(),
    )
    rows = pl.concat([notes.select(*KEY, path=codes.note_path()), examined]).with_columns(parts=_parts(pl.col("path")))
    picked = pl.col("parts").list.last().drop_nulls().unique().sort().str.join("; ")
    section = pl.col("parts").list.head(pl.col("parts").list.len() - 1).list.join(", ")
    sections = rows.group_by(*KEY, section=section).agg(picked=picked)
    line = pl.when(pl.col("section") == "").then("picked").otherwise(pl.col("section") + ": " + pl.col("picked"))
    made = (
        sections.group_by(KEY)
        .agg(line.drop_nulls().sort().str.join("\n").alias("lines"))
        .sort(KEY, descending=EARLIEST)
    )
    text = pl.concat_str("notetype", "lines", separator="\n", ignore_nulls=True).str.strip_chars()
    return made.select("sample", pl.col("hours_before").cast(pl.Float32), text=text).filter(pl.col("text") != "")


def _parts(path: pl.Expr) -> pl.Expr:
    """The parts of a path; one that repeats the part before it is left out."""
    parts = path.str.split("/").list.eval(pl.element().str.strip_chars(" :"))
    new = (pl.element() != "") & pl.element().ne_missing(pl.element().shift())
    return parts.list.eval(pl.element().filter(new))
