"""What a folder turns out to be: said by the plugins that read such folders, asked by `mmnar doctor`.

A plugin registers a function ``recognise(root: Path) -> Recognised | None`` in the entry-point group
``mmnar.recognisers``. It looks at names and headers, and reads small tables at most.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmnar_lightning.extract.raw import RawFile, locate, opened
from mmnar_lightning.extract.tables import ExtractError, TableSpec

SMALL = 10
# what `mmnar simulate` leaves in the folder it has written
MARKER = "simulation.json"


@dataclass(frozen=True)
class Part:
    """A module of a data source, or its tables as a whole.

    Args:
        name: As people call it.
        found: How many of its tables are there.
        of: How many of its tables are read.
        folder: Where it was found; None where it was not.
        note: What it brings, or what is absent, in a few words.
    """

    name: str
    found: int
    of: int
    folder: Path | None = None
    note: str = ""


@dataclass(frozen=True)
class Recognised:
    """What a folder is.

    Args:
        dataset: As people call it.
        version: Its release; None where it is none that can be read.
        edition: ``full``, ``demo``, ``simulated``, or another word; empty where there are no editions.
        size: How large it is, in words, no exact count below ten; empty where not counted.
        parts: Its modules.
        problems: Why no store can be made of it, with the remedy; empty where one can.
        command: Words of the command that comes next; empty where there are problems.
    """

    dataset: str
    version: str | None
    edition: str = ""
    size: str = ""
    parts: tuple[Part, ...] = ()
    problems: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


Recogniser = Callable[[Path], Recognised | None]


def present(root: Path, specs: Sequence[TableSpec]) -> dict[str, RawFile | None]:
    """Find the files of tables that may all be absent, whatever columns they have.

    Args:
        root: Folder of the extract.
        specs: The tables.

    Returns:
        File by the table's place (`TableSpec.file`); None where there is none, or none that can be read.
    """
    found: dict[str, RawFile | None] = {}
    for spec in specs:
        try:
            raw = locate(root, [TableSpec(spec.name, spec.file, {}, clock=None, optional=True, folder=spec.folder)])
        except ExtractError:
            found[spec.file] = None
        else:
            found[spec.file] = raw[spec.name]
    return found


def problems_of(root: Path, specs: Sequence[TableSpec]) -> tuple[str, ...]:
    """Say what is missing or unreadable of tables and of their columns; nothing where all is there."""
    try:
        locate(root, specs)
    except ExtractError as error:
        return tuple(error.problems)
    return ()


def count_rows(raw: RawFile) -> int | None:
    """Count the rows of a small table; None where it can't be read."""
    try:
        if raw.is_parquet:
            return int(pl.scan_parquet(raw.path, glob=False).select(pl.len()).collect().item())
        with opened(raw.path) as text:
            return sum(1 for _ in csv.reader(text)) - 1
    except (ExtractError, OSError, csv.Error, pl.exceptions.PolarsError):
        return None


def counted(rows: int | None, noun: str) -> str:
    """Say how many there are, without an exact count below ten."""
    if rows is None:
        return ""
    return f"< {SMALL} {noun}" if 0 < rows < SMALL else f"{rows:,} {noun}"


def simulated(root: Path) -> bool:
    """Whether a folder was written by `mmnar simulate`."""
    try:
        return "simulator" in json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
