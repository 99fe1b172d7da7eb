"""What of a raw table may be read, and when each row and column of it became known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl
from polars.datatypes import DataTypeClass

if TYPE_CHECKING:
    from mmnar_lightning.extract.catalogue import ItemCatalogue

DType = pl.DataType | DataTypeClass


class ExtractError(ValueError):
    """A raw extract can't be used. Names file, column, count and row numbers of what is wrong, never a value.

    Args:
        problems: One sentence each.
    """

    def __init__(self, *problems: str) -> None:
        # two specs over one file find the same
        self.problems = tuple(dict.fromkeys(problems))
        several = len(self.problems) > 1
        lines = [f"- {problem}" if several else problem for problem in self.problems]
        head = [f"{len(self.problems)} problems with the extract:"] if several else []
        super().__init__("\n".join(head + lines))


@dataclass(frozen=True)
class Clock:
    """When something became known: the later of `event` and `entry`; where `entry` is null, `event` plus `lag`.

    A null `event` means never. A date without a time counts as the end of that day (its next midnight).

    Args:
        event: Column with the time at which it happened.
        entry: Column with the time at which it was recorded, or None where the table has none.
        lag: Minutes from event to availability, used where there is no entry time (default one hour).
    """

    event: str
    entry: str | None = None
    lag: float = 60.0

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise ValueError(
                f"clock on {self.event!r}: a lag of {self.lag} minutes would make a row known before it happened"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns this clock reads."""
        return (self.event,) if self.entry is None else (self.event, self.entry)


@dataclass(frozen=True)
class Column:
    """One column that may be read.

    Args:
        dtype: Type it is cast to, strictly: String, Boolean, an integer, a float, Date or Datetime.
        clock: When its values became known, where that is later than the row (a result, an end time); None = with it.
        required: Whether its absence is an error; an absent column that is not required is read as null.
        documents: Whether its values are documents of kilobytes: such a table is written in small groups of rows, so
            that memory doesn't grow with it. It changes no value.
    """

    dtype: DType
    clock: Clock | None = None
    required: bool = True
    documents: bool = False


@dataclass(frozen=True)
class Units:
    """Checks a table's units against a catalogue while it is scanned, so that nothing is written for an unknown one.

    Args:
        catalogue: Where raw ids and their units are listed.
        raw_id: Column with the raw id.
        unit: Column with the unit.
    """

    catalogue: ItemCatalogue
    raw_id: str
    unit: str


@dataclass(frozen=True)
class Only:
    """Which rows of a table are kept when it is read: the others are counted, and nothing else of them is looked at.

    A row without a value in the column is one of the others; a value that does not read as the column's type is an
    error in any row.

    Args:
        column: Column that decides.
        values: Values of rows that are kept, as text.
        others: What the others are called where they are counted.
    """

    column: str
    values: tuple[str, ...]
    others: str = "rows of no use, not kept"

    @classmethod
    def catalogued(cls, catalogue: ItemCatalogue, raw_id: str) -> Self:
        """Keep the rows whose item is in a catalogue."""
        return cls(raw_id, catalogue.raw_ids, "rows of items not in the catalogue")


@dataclass(frozen=True)
class TableSpec:
    """A raw table: the allow-list of its columns, and its clocks. What is not listed is never read.

    Args:
        name: Key under which the extractor receives it.
        file: Path relative to the extract's root without suffix (``lab``, ``hosp/labevents``), found without regard to
            case as ``.parquet``, ``.csv.gz`` or ``.csv``.
        columns: The allow-list.
        clock: When a row became known; None for a static table, known from the start.
        key: Columns that together identify a row; duplicates are an error.
        optional: Whether the file may be absent (it is then an empty table).
        not_null: Columns in which a null is an error.
        units: Check of the units, or None.
        only: Which rows are kept, or None for all. Only these are checked; in a gzipped file, that a row has as many
            fields as the header is then left to the types of its columns.
        folder: Where the table lies if not in the extract's root (notes and images that are downloaded apart); `file`
            is relative to it. It changes no fingerprint: what is read counts, not where it lies.
        counted_as: What its rows are counted under, where a table comes in many files; None for `name`.
    """

    name: str
    file: str
    columns: Mapping[str, Column]
    clock: Clock | None
    key: tuple[str, ...] = ()
    optional: bool = False
    not_null: tuple[str, ...] = ()
    units: Units | None = None
    only: Only | None = None
    folder: Path | None = None
    counted_as: str | None = None

    def __post_init__(self) -> None:
        used = [*self.key, *self.not_null]
        used += [name for clock in self.clocks.values() for name in clock.columns]
        used += [] if self.clock is None else self.clock.columns
        used += [] if self.units is None else [self.units.raw_id, self.units.unit]
        used += [] if self.only is None else [self.only.column]
        if self.only is not None and self.only.column in self.columns and not self.columns[self.only.column].required:
            raise ValueError(f"table {self.name!r}: {self.only.column} chooses its rows, so that it must be required")
        strange = sorted({name for name in used if name not in self.columns})
        if strange:
            raise ValueError(
                f"table {self.name!r}: {', '.join(strange)} used as key, clock, unit or choice of rows but not on its "
                "allow-list"
            )

    @property
    def clocks(self) -> dict[str, Clock]:
        """The clock of each column that has its own.

        A column that only serves such a clock is on it, too: the time of a result is as unknown as the result.
        """
        own = {name: column.clock for name, column in self.columns.items() if column.clock is not None}
        of_row = () if self.clock is None else self.clock.columns
        serving = {name: clock for clock in own.values() for name in clock.columns if name not in of_row}
        return serving | own

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Name and type of each column, in order."""
        return {
            name: column.dtype() if isinstance(column.dtype, type) else column.dtype
            for name, column in self.columns.items()
        }

    def describe(self) -> dict[str, Any]:
        """Return the spec as plain JSON types, without its folder: part of the fingerprint and of the cache key."""

        def clock(value: Clock | None) -> list[Any] | None:
            return None if value is None else [value.event, value.entry, value.lag]

        units = None if self.units is None else [self.units.raw_id, self.units.unit, self.units.catalogue.sha256]
        only = None if self.only is None else [self.only.column, list(self.only.values), self.only.others]
        return {
            "name": self.name,
            "file": self.file,
            "columns": [[n, str(self.schema[n]), clock(c.clock), c.required] for n, c in self.columns.items()],
            "clock": clock(self.clock),
            "key": list(self.key),
            "optional": self.optional,
            "not_null": list(self.not_null),
            "units": units,
            **({} if only is None else {"only": only}),
        }


def digest(value: Any) -> str:
    """Hash plain JSON types: sha256 of their canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
