"""The rows of a raw file, typed: how fast, which of them, and how many there were."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import polars as pl

from mmnar_lightning.extract.casting import convert
from mmnar_lightning.extract.raw import RawFile, column_of
from mmnar_lightning.extract.tables import TableSpec

# columns beside those of the table: what could not be read, rows that are too long, the number of a row
BAD, LONG, ROW = "bad:", "row:long", "row:number"


class Pace(Enum):
    """How a table is read: as fast as can be, and again where that left something unread.

    What one reads, the next reads alike. ``TYPED`` lets the CSV reader parse numbers, and fails where one does not
    read; ``STRICT`` flags that; ``LENIENT`` also accepts what `parse` says.
    """

    TYPED = "typed"
    STRICT = "strict"
    LENIENT = "lenient"


class Tally:
    """Counts the rows of a file whose values stream by: of those that are not kept, nothing else remains."""

    def __init__(self) -> None:
        self._lengths: list[int] = []

    def __call__(self, values: pl.Series) -> pl.Series:
        """Count some values, and pass them on."""
        self._lengths.append(len(values))
        return values

    @property
    def rows(self) -> int:
        """How many there were."""
        return sum(self._lengths)


def read(raw: RawFile, spec: TableSpec, pace: Pace, tally: Tally, numbered: bool = False) -> pl.LazyFrame:
    """The allow-listed columns of kept rows, typed, with flag columns: what could not be read, and rows too long.

    Args:
        raw: The file.
        spec: The table.
        pace: How.
        tally: Counts all rows of a CSV file of which only some are kept, while the frame is collected.
        numbered: Whether to add the number of each row in the file, from 1.
    """
    schema, lenient = spec.schema, pace is Pace.LENIENT
    places = {name: column_of(raw, name) for name in spec.columns}
    if raw.is_parquet:
        frame = pl.scan_parquet(raw.path, glob=False)
        given = frame.collect_schema()
        read = {
            name: convert(pl.col(raw.header[place]), given[raw.header[place]], schema[name], lenient)
            for name, place in places.items()
            if place is not None
        }
        long = pl.lit(False)
    else:
        numbers = {f"c{p}": schema[n] for n, p in places.items() if p is not None and schema[n].is_numeric()}
        typed = numbers if pace is Pace.TYPED else {}
        frame = _lines(raw, typed)
        read = {
            name: convert(pl.col(f"c{p}"), typed.get(f"c{p}", pl.String()), schema[name], lenient)
            for name, p in places.items()
            if p is not None
        }
        # a line is parsed up to the last column that is asked for: of a large table, no further
        long = pl.col(f"c{len(raw.header)}").is_not_null() if spec.only is None else pl.lit(False)
    frame = frame.with_row_index(ROW, offset=1) if numbered else frame
    if spec.only is not None:
        dtype = schema[spec.only.column]
        chosen, unread = read[spec.only.column]
        values = pl.Series(spec.only.values, dtype=pl.String).cast(dtype)
        if not raw.is_parquet:
            chosen = chosen.map_batches(tally, return_dtype=dtype, is_elementwise=True)
        # before anything else is read of a row: most rows of a large table are of items that nobody asks for
        frame = frame.filter(chosen.is_in(values.implode()).fill_null(False) | unread.fill_null(False))
    columns = [read[n][0].alias(n) if n in read else pl.lit(None).cast(schema[n]).alias(n) for n in spec.columns]
    flags = [flag.fill_null(False).alias(BAD + n) for n, (_, flag) in read.items() if schema[n] != pl.String]
    return frame.select(*([ROW] if numbered else []), *columns, *flags, long.alias(LONG))


def _lines(raw: RawFile, typed: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """The rows of a CSV file, columns by position, as text but for those `typed`; one more than the header has."""
    names = (f"c{i}" for i in range(len(raw.header) + 1))
    return pl.scan_csv(
        raw.path,
        schema={name: typed.get(name, pl.String()) for name in names},
        has_header=False,
        skip_lines=1,
        glob=False,
        raise_if_empty=False,
        missing_columns="insert",
    )
