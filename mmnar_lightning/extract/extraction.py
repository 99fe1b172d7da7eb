"""What a data source provides: its tables, and a pure function from them to samples and elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from mmnar_lightning.extract.tables import TableSpec

if TYPE_CHECKING:
    # records brings torch, which nobody needs to read a table
    from mmnar_lightning.records import RecordSchema

Elements = pl.DataFrame | Callable[[], pl.DataFrame]


@dataclass
class Counts:
    """Ordered log of what was counted: table or stage, what, how many. It ends in the manifest and the closing table.

    Counts only, never a value of a patient.
    """

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, table: str, what: str, count: int) -> None:
        """Log a count; counts of the same table and what add up."""
        self._counts[table, what] = self._counts.get((table, what), 0) + int(count)

    def items(self) -> list[tuple[tuple[str, str], int]]:
        """All counts by (table, what), in the order they were first logged."""
        return list(self._counts.items())

    def to_list(self) -> list[list[Any]]:
        """Return plain JSON types: ``[table, what, count]`` each."""
        return [[table, what, count] for (table, what), count in self._counts.items()]


@dataclass
class Extraction:
    """What an extractor makes of its tables.

    Args:
        schema: Modalities with all catalogue items, and tasks; nothing fitted.
        samples: One row a sample, totally ordered, with the columns `records.write_store` asks for.
        elements: Elements by modality; where a function makes them, each is one resumable step.
    """

    schema: RecordSchema
    samples: pl.DataFrame
    elements: dict[str, Elements]


class Extractor(Protocol):
    """A data source with one cohort. May carry `data_use`, the terms its manifest repeats."""

    @property
    def dataset(self) -> str:
        """Name of the source, first part of the store's name."""
        ...

    @property
    def cohort(self) -> str:
        """Name of the cohort, second part of the store's name."""
        ...

    @property
    def version(self) -> str:
        """Version of the extractor: change it with every change of what it makes."""
        ...

    def options(self) -> dict[str, Any]:
        """Everything that changes what is made, as JSON types; part of the fingerprint."""
        ...

    def tables(self) -> Sequence[TableSpec]:
        """The tables it reads."""
        ...

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Turn tables into samples and elements: same frames, same result."""
        ...
