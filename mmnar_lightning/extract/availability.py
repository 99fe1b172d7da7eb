"""The one rule: what a sample may contain was available at its prediction time."""

from __future__ import annotations

import polars as pl

from mmnar_lightning.extract.tables import Clock, TableSpec


def _instant(name: str, dtype: pl.DataType) -> pl.Expr:
    """The time in a column; a date without a time is the end of that day, that is its next midnight."""
    if dtype == pl.Date:
        return pl.col(name).cast(pl.Datetime("us")).dt.offset_by("1d")
    if isinstance(dtype, pl.Datetime):
        return pl.col(name).cast(pl.Datetime("us"))
    if dtype.is_numeric():
        return pl.col(name).cast(pl.Float64)
    raise ValueError(f"column {name!r} of type {dtype} can't be a clock: it must be a number, a date or a time")


def available_at(spec: TableSpec, clock: Clock | None = None) -> pl.Expr:
    """When a row of a table became known, or a column of it on its own clock.

    The later of event and entry; event + lag where the entry is null or there is none; null (never) where the event is
    null.

    Args:
        spec: The table.
        clock: The clock to read; None = that of the row.

    Returns:
        Expression in the table's own time: minutes (Float64) or Datetime.

    Raises:
        ValueError: If neither the call nor the table names a clock, or its column can't be one.
    """
    clock = clock or spec.clock
    if clock is None:
        raise ValueError(f"table {spec.name!r} is static: its rows are known from the start")
    event = _instant(clock.event, spec.schema[clock.event])
    if spec.schema[clock.event].is_numeric():
        lagged = event + clock.lag
    else:
        lagged = event + pl.duration(microseconds=round(clock.lag * 60e6))
    if clock.entry is None:
        return lagged
    entry = _instant(clock.entry, spec.schema[clock.entry])
    return (
        pl.when(event.is_null())
        .then(None)
        .when(entry.is_null())
        .then(lagged)
        .otherwise(pl.max_horizontal(event, entry))
    )


def known_by(frame: pl.LazyFrame, spec: TableSpec, prediction: str = "prediction_time") -> pl.LazyFrame:
    """Cut a table at the prediction time: the rule every source uses.

    Rows available at or before the prediction time stay (the boundary belongs to the past), columns on a later clock of
    their own are nulled. A static table keeps all rows.

    Args:
        frame: Rows of the table, each with the prediction time of the sample it is to serve.
        spec: The table.
        prediction: Column with the prediction time, in the table's own time.

    Returns:
        The rows with a further column ``available``, when each became known (null in a static table).
    """
    moment = pl.col(prediction)
    hidden = [
        pl.when(available_at(spec, clock) <= moment).then(pl.col(name)).otherwise(None).alias(name)
        for name, clock in spec.clocks.items()
    ]
    if spec.clock is None:
        return frame.with_columns(available=pl.lit(None).cast(pl.Float64)).with_columns(hidden)
    known = frame.with_columns(available=available_at(spec)).filter(pl.col("available") <= moment)
    return known.with_columns(hidden)


def window(start: pl.Expr | str, time: str = "available") -> pl.Expr:
    """Rows whose time lies at or after the start of a window; its end is the prediction time, by `known_by`.

    Args:
        start: When the window opens, in the same time as `time`.
        time: Column to compare.
    """
    return pl.col(time) >= (pl.col(start) if isinstance(start, str) else start)
