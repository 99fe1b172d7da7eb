"""Rows that a sample may contain: of its unit stays, known by its prediction time, in its window."""

from __future__ import annotations

import polars as pl

from mmnar_eicu.tables import STAY
from mmnar_lightning.extract import TableSpec, known_by, window


def known(table: pl.LazyFrame, spec: TableSpec, stays: pl.DataFrame, whole_life: bool = False) -> pl.LazyFrame:
    """Rows of a table that were known by the prediction time of the sample they serve.

    Args:
        table: The table.
        spec: Its spec.
        stays: `Cohort.stays`.
        whole_life: Take rows about any time before (a past history), not only those in the sample's window.

    Returns:
        The table's columns, ``sample``, ``available``, ``time`` (minutes on the episode's clock) and ``hours_before``
        (from the event to the prediction time; from becoming known where `whole_life`).
    """
    assert spec.clock is not None
    frame = known_by(table.join(stays.lazy(), on=STAY, how="inner"), spec)
    event = pl.col(spec.clock.event).cast(pl.Float64)
    frame = frame if whole_life else frame.filter(window("window_start", time=spec.clock.event))
    since = pl.col("available") if whole_life else event
    return frame.with_columns(time=event + pl.col("shift"), hours_before=(pl.col("prediction_time") - since) / 60).drop(
        STAY, "prediction_time", "window_start", "shift"
    )


def tally(table: pl.LazyFrame, spec: TableSpec, stays: pl.DataFrame) -> pl.LazyFrame:
    """Count what `known` leaves out: ``stays`` (rows of the cohort's unit stays), ``late``, ``outside``; one row."""
    assert spec.clock is not None
    joined = table.join(stays.lazy(), on=STAY, how="inner")
    kept = known_by(joined, spec)
    inside = window("window_start", time=spec.clock.event)
    return pl.concat(
        [joined.select(stays=pl.len()), kept.select(known=pl.len(), inside=inside.sum())], how="horizontal"
    ).select("stays", late=pl.col("stays") - pl.col("known"), outside=pl.col("known") - pl.col("inside"))
