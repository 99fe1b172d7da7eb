"""CSV lines with a field too few or too many, and quotes that don't close: polars reads on over most of them."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from mmnar_lightning.extract.raw import opened

SHOWN = 10


@dataclass
class Rows:
    """How many rows are wrong, and the numbers of the first of them (data rows, from 1)."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Note one more wrong row."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(row)

    def __str__(self) -> str:
        rows = ", ".join(map(str, self.first))
        noun = "row" if self.count == 1 else "rows"
        return f"{self.count} {noun} ({noun} {rows}{', …' if self.count > len(self.first) else ''})"


def separators(path: Path) -> int:
    """Count the commas of a CSV file that stand outside quotes: rows × (fields − 1) where every row is whole.

    To the reader the file is one column whose rows end at commas, and counting rows parses none, so that this costs
    little more than decompressing. A comma that the file ends in is not counted.

    Args:
        path: The file.
    """
    rows = pl.scan_csv(
        path,
        schema={"field": pl.String},
        has_header=False,
        separator="\x1f",
        eol_char=",",
        glob=False,
        raise_if_empty=False,
    )
    return int(rows.select(pl.len()).collect(engine="streaming").item()) - 1


def ragged_rows(path: Path, fields: int) -> Rows:
    """Find the rows of a CSV file that have another number of fields than its header.

    Lines are counted first, by polars, outside quotes; only where that finds something, or a quoted field runs over
    several lines, the slow reading decides.

    Args:
        path: The file.
        fields: Number of fields in its header.

    Raises:
        ExtractError: If the file can't be read.
    """
    if fields < 2:
        return Rows()
    line = pl.col("line")
    outside = line.str.replace_all('"[^"]*"', "").str.count_matches(",", literal=True)
    counts = pl.scan_lines(path, name="line").select(
        odd=(line.str.count_matches('"', literal=True) % 2 == 1).any(), ragged=(outside != fields - 1).any()
    )
    try:
        odd, ragged = counts.collect(engine="streaming").row(0)
    except (PolarsError, OSError):
        odd, ragged = True, True
    return _slowly(path, fields) if odd or ragged else Rows()


def _slowly(path: Path, fields: int) -> Rows:
    wrong = Rows()
    csv.field_size_limit(sys.maxsize)
    with opened(path) as text:
        reader = csv.reader(text)
        next(reader, None)
        for row, values in enumerate(reader, start=1):
            if len(values) != fields:
                wrong.add(row)
    return wrong


def unclosed_quotes(path: Path) -> Rows:
    """Find the first row of a CSV file whose quotes don't fit.

    Raises:
        ExtractError: If the file can't be read.
    """
    wrong = Rows()
    csv.field_size_limit(sys.maxsize)
    with opened(path) as text:
        reader = csv.reader(text, strict=True)
        row = -1
        try:
            for _ in reader:
                row += 1
        except csv.Error:
            wrong.add(row + 1)
    return wrong
