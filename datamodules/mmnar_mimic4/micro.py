"""Cultures taken, and the organisms that were reported by the prediction time."""

from __future__ import annotations

import polars as pl

from mmnar_mimic4.tables import MICRO
from mmnar_mimic4.windows import Source

# What stands in place of an organism where there is none.
NO_ORGANISM = ("CANCELLED",)


def micro(source: Source) -> pl.DataFrame:
    """The ``micro`` modality: codes ``specimen:`` and the kind of specimen, ``organism:`` and its name.

    A specimen exists an hour after it was taken; where only its day is known, it counts as taken at the end of the day.
    An organism exists from ``storetime`` on, and never without one: the time of a report is not to be guessed. How
    it responds to antibiotics is not read.

    Args:
        source: The table ``micro``, and the samples.

    Returns:
        ``sample``, ``hours_before`` (since the last specimen of that code was taken) and ``code``: one row for each
        code of a sample, sorted.
    """
    frame = source.frames[MICRO.name]
    end_of_day = pl.col("chartdate").cast(pl.Datetime("us")).dt.offset_by("1d")
    taken = frame.with_columns(charttime=pl.coalesce("charttime", end_of_day))
    never = taken.select(pl.col("charttime").is_null().sum()).collect(engine="streaming").item()
    source.log.add(MICRO.name, "rows without a time, not used", never)
    rows = source.known(MICRO, taken)
    organism = _word("org_name")
    reported = pl.when(pl.col("storetime").is_not_null() & ~organism.is_in(NO_ORGANISM)).then(organism)
    codes = pl.concat(
        [
            rows.select("sample", "hours_before", code=pl.lit("specimen:") + _word("spec_type_desc")),
            rows.select("sample", "hours_before", code=pl.lit("organism:") + reported),
        ]
    )
    last = codes.filter(pl.col("code").is_not_null()).group_by("sample", "code").agg(pl.col("hours_before").min())
    columns = last.select("sample", pl.col("hours_before").cast(pl.Float32), "code")
    return columns.sort("sample", "code").collect(engine="streaming")


def _word(column: str) -> pl.Expr:
    """Text without blanks around it; blank and deidentified text is null."""
    word = pl.col(column).str.strip_chars()
    return pl.when(~word.is_in(["", "___"])).then(word)
