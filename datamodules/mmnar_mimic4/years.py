"""In which real years a sample may lie, and what was collected then.

MIMIC-IV shifts the dates of each patient into the future. What it tells of the real calendar is the
``anchor_year_group``, the three years (such as ``2014 - 2016``) among which the patient's ``anchor_year`` really was.
So a shifted year Y was between the group's first year + Y − anchor_year and its last year + Y − anchor_year; no real
year is known better than that.

Sources: PhysioNet's pages of MIMIC-IV 2.2 and 3.1 (2008 to 2019, or to 2022), MIMIC-IV-Note 2.2 and MIMIC-CXR-JPG 2.1.0
(films of patients seen in the emergency department between 2011 and 2016).
"""

from __future__ import annotations

from typing import Literal

import polars as pl

FIRST_YEAR = 2008
FILM_YEARS = (2011, 2016)
NOTE_YEARS = (FIRST_YEAR, 2019)

Collected = Literal["cxr", "radiology", "discharge"]


def possible_years(first: str, last: str, last_year: int) -> tuple[pl.Expr, pl.Expr]:
    """The earliest and the latest real year in which a span of shifted time may lie.

    Args:
        first: Column with the start of the span (Datetime); the frame also has ``anchor_year`` and
            ``anchor_year_group``.
        last: Column with its end.
        last_year: Last real year of the extract; a year outside it and `FIRST_YEAR` is not possible.

    Returns:
        ``year_low`` and ``year_high``, Int64; null where the group is none.
    """
    group = pl.col("anchor_year_group").str.strip_chars()
    years = [group.str.extract(r"^(\d{4})\s*-\s*(\d{4})$", n).cast(pl.Int64) for n in (1, 2)]
    low = years[0] + pl.col(first).dt.year().cast(pl.Int64) - pl.col("anchor_year")
    high = years[1] + pl.col(last).dt.year().cast(pl.Int64) - pl.col("anchor_year")
    return tuple(  # type: ignore[return-value]
        year.clip(FIRST_YEAR, last_year).alias(name) for year, name in ((low, "year_low"), (high, "year_high"))
    )


def may_reach(year: int) -> pl.Expr:
    """Whether a sample's possible real years include `year` or a later one; True where nothing is known of them."""
    return (pl.col("year_high") >= year).fill_null(True)


def collection(modality: Collected) -> pl.Expr:
    """Why a sample without films or notes has none, as far as the collection tells.

    ``not_collected`` where it lies wholly outside the collected years; ``unknown`` where its possible years straddle
    their border; inside them ``not_ordered``, but films are ``not_collected`` without an entry to the emergency
    department by then.

    Args:
        modality: ``cxr``, ``radiology`` or ``discharge``.

    Returns:
        Expression over `Cohort.samples` (``year_low``, ``year_high``, ``ed_by_then``), String, never null.
    """
    first, last = FILM_YEARS if modality == "cxr" else NOTE_YEARS
    low, high = pl.col("year_low"), pl.col("year_high")
    within = pl.lit("not_ordered")
    if modality == "cxr":
        within = pl.when("ed_by_then").then(within).otherwise(pl.lit("not_collected"))
    return (
        pl.when((high < first) | (low > last))
        .then(pl.lit("not_collected"))
        .when((low >= first) & (high <= last))
        .then(within)
        .otherwise(pl.lit("unknown"))
    )
