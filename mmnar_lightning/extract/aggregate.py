"""Bit-stable aggregates: the same rows in any order give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

# sums are exact integers of value · 2^32 (streaming float sums differ from run to run): a value is held to 2.3e-10, and
# Int128 holds 1e10 values of 2^62
SCALE = 2.0**32
LARGEST = 2.0**62

STATS = ("last", "first", "min", "max", "mean", "count", "delta")


def aggregate(
    frame: pl.LazyFrame,
    by: Sequence[str] = ("sample", "variable"),
    value: str = "value",
    time: str = "available",
    tie: Sequence[str] = (),
    stats: Sequence[str] = ("last", "min", "max", "mean", "count"),
) -> pl.LazyFrame:
    """Aggregate values by group, in any order of the rows to the same bytes, streamed.

    ``last`` and ``first`` are the values at the latest and earliest time; rows of the same time are ordered by `tie`,
    then by the value itself, so that the order is total. ``delta`` is last − first. ``mean`` is an exact sum of values
    rounded to 2^-32, divided once. Rows without value, time or group don't count, nor do values that are not finite.

    Args:
        frame: One row a value.
        by: Columns of the group.
        value: Column with the value.
        time: Column with its time.
        tie: Columns that order rows of the same time, as a row id.
        stats: Which of `STATS` to make, in order.

    Returns:
        One row a group, in no order: the columns of `by`, then one column per statistic, Float64 (``count`` Int64).

    Raises:
        ValueError: If a statistic is unknown; lists those there are.
    """
    strange = [name for name in stats if name not in STATS]
    if strange:
        raise ValueError(f"no statistic {', '.join(strange)}; there are: {', '.join(STATS)}")
    number = pl.col(value).cast(pl.Float64)
    # -0.0 becomes 0.0: the two compare equal, so that which one wins would depend on the order (polars drops `+ 0.0`)
    number = pl.when(number == 0.0).then(0.0).otherwise(number)
    # casts stand before the grouping: inside its expressions they cost twice the time
    rows = frame.select(*by, *tie, _time=pl.col(time), _value=number).filter(
        pl.col("_value").is_finite(), pl.col("_time").is_not_null(), *(pl.col(name).is_not_null() for name in by)
    )
    key = pl.struct("_time", *tie, "_value")
    number = pl.col("_value")
    last, first = number.max_by(key), number.min_by(key)
    # beyond ±2^62 the mean saturates rather than overflows
    fixed = (number.clip(-LARGEST, LARGEST) * SCALE).round().cast(pl.Int128)
    made = {
        "last": last,
        "first": first,
        "min": number.min(),
        "max": number.max(),
        "mean": fixed.sum().cast(pl.Float64) / SCALE / pl.len(),
        "count": pl.len().cast(pl.Int64),
        "delta": last - first,
    }
    return rows.group_by(by).agg(**{name: made[name] for name in stats})


def items(variables: Sequence[str], stats: Sequence[str]) -> tuple[str, ...]:
    """Name the columns that `pivot` makes, in order: ``{variable}_{stat}``, as `Modality.items` holds them."""
    return tuple(f"{variable}_{stat}" for variable in variables for stat in stats)


def pivot(
    long: pl.LazyFrame,
    variables: Sequence[str],
    stats: Sequence[str],
    index: Sequence[str] = ("sample",),
    variable: str = "variable",
) -> pl.DataFrame:
    """Spread aggregates to one row a sample and one column an item; a variable that nobody has is a column of nulls.

    Args:
        long: One row per sample and variable with a column per statistic, as `aggregate` makes it.
        variables: All variables, in the order of the catalogue.
        stats: Columns to spread.
        index: Columns that name a row of the result.
        variable: Column with the variable.

    Returns:
        `index`, then `items(variables, stats)` as Float32 (null = not measured), sorted by `index`.

    Raises:
        ValueError: If a variable stands twice for a row, or is none of `variables`.
    """
    frame = long.select(*index, variable, *stats).collect(engine="streaming")
    strange = frame.filter(~pl.col(variable).is_in(list(variables)))
    if strange.height:
        raise ValueError(f"{strange.height} rows of variables that are not among the {len(variables)} to spread")
    twice = frame.height - frame.select(*index, variable).unique().height
    if twice:
        raise ValueError(f"{twice} rows repeat a variable of their sample")
    wide = frame.select(index).unique().sort(index)
    shape = wide.height, len(variables)
    place = {name: i for i, name in enumerate(variables)}
    at = frame.join(wide.with_row_index("row:number"), on=index, how="left", nulls_equal=True, maintain_order="left")
    row, column = at["row:number"].to_numpy(), frame[variable].replace_strict(place, return_dtype=pl.Int64).to_numpy()
    spread: dict[str, pl.Series] = {}
    for stat in stats:
        # by position, in one go: a join a variable costs a pass over the samples each
        values = np.full(shape, np.nan, dtype=np.float32, order="F")
        values[row, column] = frame[stat].cast(pl.Float32).to_numpy()
        spread |= {f"{name}_{stat}": pl.Series(values[:, i], nan_to_null=True) for name, i in place.items()}
    return wide.with_columns(**{name: spread[name] for name in items(variables, stats)})
