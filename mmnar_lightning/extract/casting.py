"""Text to typed columns, strictly: what does not read as its type is flagged, never guessed."""

from __future__ import annotations

import polars as pl

DAY = r"%Y-%m-%d"
MOMENT = r"%Y-%m-%d %H:%M:%S%.f"


def parse(text: pl.Expr, dtype: pl.DataType, lenient: bool = False) -> pl.Expr:
    """Read text as a type; null where it is empty or does not read as one.

    NaN in a float column is a missing value. A Datetime column may hold a date without a time: that is the end of the
    day, its next midnight.

    Args:
        text: String expression.
        dtype: Wanted type.
        lenient: Also accept what strict parsing leaves: ``12.0`` for an integer, a date without a time,
            ``T`` between date and time. Slower, so only used where strict parsing left something; equal where strict
            parsing succeeds.

    Raises:
        ValueError: If the type is none that a raw column can have.
    """
    if dtype == pl.String:
        return pl.when(text != "").then(text)
    if dtype.is_integer():
        return _integer(text, dtype, lenient)
    if dtype == pl.Boolean:
        word = text.str.to_lowercase()
        true, false = word.is_in(["1", "true", "t", "yes", "y"]), word.is_in(["0", "false", "f", "no", "n"])
        return pl.when(true).then(True).when(false).then(False)
    if dtype == pl.Date:
        day = text.str.to_date(DAY, strict=False)
        return (
            pl.coalesce(day, text.str.to_datetime(MOMENT, strict=False, time_unit="us").dt.date()) if lenient else day
        )
    if isinstance(dtype, pl.Datetime):
        moment = text.str.to_datetime(MOMENT, strict=False, time_unit="us")
        if not lenient:
            return moment
        text = text.str.replace("T", " ", literal=True)
        others = [text.str.to_datetime(f, strict=False, time_unit="us") for f in (MOMENT, "%Y-%m-%d %H:%M")]
        return pl.coalesce(
            moment, *others, text.str.to_date(DAY, strict=False).cast(pl.Datetime("us")).dt.offset_by("1d")
        )
    raise ValueError(f"a raw column can't be of type {dtype}: use String, Boolean, integers, floats, Date or Datetime")


def _integer(text: pl.Expr, dtype: pl.DataType, lenient: bool) -> pl.Expr:
    exact = text.cast(dtype, strict=False)
    if not lenient:
        return exact
    number = text.cast(pl.Float64, strict=False)
    # above 2^53 a float no longer holds every integer
    whole = number.is_finite() & (number == number.floor()) & (number.abs() < 2.0**53)
    return pl.coalesce(exact, pl.when(whole).then(number).cast(dtype, strict=False))


def read_text(text: pl.Expr, dtype: pl.DataType, lenient: bool = False) -> tuple[pl.Expr, pl.Expr]:
    """Read text as a type.

    Returns:
        The typed column, and the flag of text that is there but does not read as the type (or is an infinite number).
    """
    if dtype == pl.String:
        return parse(text, dtype), pl.lit(False)
    if lenient:
        text = text.str.strip_chars()
    said = text.is_not_null() & (text != "")
    if dtype.is_float():
        # "NaN" reads as NaN, which is a missing value; what does not read is null
        number = text.cast(dtype, strict=False)
        return pl.when(number.is_finite()).then(number), (said & number.is_null()) | number.is_infinite()
    parsed = parse(text, dtype, lenient)
    return parsed, said & parsed.is_null()


def convert(column: pl.Expr, given: pl.DataType, dtype: pl.DataType, lenient: bool) -> tuple[pl.Expr, pl.Expr]:
    """Bring a column of a typed file (Parquet) to the wanted type.

    Returns:
        The converted column, and the flag of values that could not be converted.
    """
    if given == pl.String:
        return read_text(column, dtype, lenient)
    if given == pl.Date and isinstance(dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.offset_by("1d"), pl.lit(False)
    if given.is_float():
        column = column.fill_nan(None)
    if (
        given.is_numeric() != dtype.is_numeric()
        and dtype != pl.String
        and not (given == pl.Boolean or dtype == pl.Boolean)
    ):
        # a number is no date, and a date no number, whatever a cast would make of it
        return pl.lit(None).cast(dtype), column.is_not_null()
    converted = column.cast(dtype, strict=False)
    flag = column.is_not_null() & converted.is_null()
    if dtype.is_integer() and given.is_float():
        flag = flag | (column != column.floor()).fill_null(False)
    if dtype.is_float():
        flag = flag | converted.is_infinite().fill_null(False)
    return converted, flag
