"""A simulated raw extract on disk: locked while it is written, complete or not there, same rows, same bytes."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmnar_lightning import _terminal

log = logging.getLogger(__name__)

MARKER = "simulation.json"
TRUTH = "truth"
_COMPRESSION = 4  # zlib's level 6 takes twice as long for a twentieth less
_TIME = "%Y-%m-%d %H:%M:%S"


class ExtractWriter:
    """Takes the tables of an extract frame by frame, and writes each as gzipped CSV under its header.

    Args:
        folder: Where the extract is written.
        tables: Columns of each raw table. A name may hold a folder: ``hosp/patients``.
        patients: How many will be written.
        progress: Whether to show a progress bar.

    Attributes:
        folder: As given; a simulator may put further files there.
        rows: Rows written so far, by table.
    """

    def __init__(self, folder: Path, tables: Mapping[str, Sequence[str]], patients: int, progress: bool) -> None:
        self.folder = folder
        self.rows = dict.fromkeys(tables, 0)
        self._tables = tables
        self._bar = Progress(
            TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("patients"), TimeRemainingColumn(),
            console=_terminal.console(stderr=True), disable=not progress,
        )  # fmt: skip
        self._task = self._bar.add_task("simulating", total=patients)

    def __enter__(self) -> Self:
        """Open every table and write its header."""
        (self.folder / TRUTH).mkdir(parents=True)
        with ExitStack() as opened:
            self._files = {name: opened.enter_context(self._new_file(name)) for name in self._tables}
            opened.enter_context(self._bar)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all."""
        self._opened.close()

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Write rows of a raw table.

        Args:
            table: Its name.
            frame: The rows, columns in the order of its header.
        """
        text = frame.write_csv(include_header=False, datetime_format=_TIME)
        self._files[table].write(text.encode())
        self.rows[table] += frame.height

    def append_truth(self, name: str, frame: pl.DataFrame) -> None:
        """Write what no real extract tells, as ``truth/<name>.parquet``."""
        frame.write_parquet(self.folder / TRUTH / f"{name}.parquet")

    def advance(self, patients: int) -> None:
        """Say how many patients are written so far."""
        self._bar.update(self._task, completed=patients)

    def _new_file(self, table: str) -> _Gzip:
        path = self.folder / f"{table}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _Gzip(path)
        file.write((",".join(self._tables[table]) + "\n").encode())
        return file


class _Gzip(gzip.GzipFile):
    """A gzip file with neither time nor name in its header, that closes the file under it, too."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        super().__init__(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=self._raw, mtime=0)

    def close(self) -> None:
        super().close()
        self._raw.close()


def write_extract(
    folder: Path,
    settings: Mapping[str, Any],
    about: str,
    tables: Mapping[str, Sequence[str]],
    write: Callable[[ExtractWriter], None],
    progress: bool = True,
) -> None:
    """Write a simulated extract beside its folder and put it in its place when it is complete.

    Where the folder holds the extract of these settings already, nothing is done. Others that write the same folder
    wait; what a killed run left is removed.

    Args:
        folder: Where to write it: a folder that doesn't exist yet, or an empty one.
        settings: What decides about every byte, as JSON types: the simulator's name, its version, its arguments;
            ``patients`` among them.
        about: What people should know of such an extract; stands in its marker file with settings and row counts.
        tables: See `ExtractWriter`.
        write: Writes all rows.
        progress: Whether to show a progress bar.

    Raises:
        FileExistsError: If the folder holds anything but this very extract.
    """
    folder = folder.absolute()
    if _complete(folder, settings):
        log.info("%s already holds this extract", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with FileLock(lock):
        try:
            if not _complete(folder, settings):  # another process may have written it while this one waited
                _write_beside(folder, settings, about, tables, write, progress)
        finally:
            # Where the extract is, whoever waits for this file or makes it anew writes nothing, so that two may well
            # hold a lock. Where it is not (a failure), they may not: the file stays.
            if (folder / MARKER).is_file():
                with suppress(OSError):  # Windows removes no open file
                    lock.unlink()


def _write_beside(
    folder: Path,
    settings: Mapping[str, Any],
    about: str,
    tables: Mapping[str, Sequence[str]],
    write: Callable[[ExtractWriter], None],
    progress: bool,
) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        with ExtractWriter(partial, tables, settings["patients"], progress) as writer:
            write(writer)
        marker = {**settings, "about": about, "rows": writer.rows}
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _complete(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds the extract of these settings already.

    Raises:
        FileExistsError: If it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    if not marker.is_file():
        raise FileExistsError(f"{folder} exists, isn't empty and holds no simulated extract; choose another folder")
    found = json.loads(marker.read_text(encoding="utf-8"))
    other = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in settings.items() if found.get(key) != value]
    if other:
        raise FileExistsError(f"{folder} holds another simulated extract ({'; '.join(other)}); choose another folder")
    return True
