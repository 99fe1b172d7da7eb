"""The files of a raw extract: where they are, what their headers say, and their hashes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

import polars as pl
from polars.exceptions import PolarsError

from mmnar_lightning.extract.tables import ExtractError, TableSpec

log = logging.getLogger(__name__)

# in order of preference where several exist
SUFFIXES = (".parquet", ".csv.gz", ".csv")


@dataclass(frozen=True)
class RawFile:
    """A file of the extract.

    Args:
        path: Where it is.
        relative: Its path below the root or the table's own folder, with forward slashes.
        header: Column names as they stand in the file.
    """

    path: Path
    relative: str
    header: tuple[str, ...]

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet; else it is CSV, plain or gzipped."""
        return self.path.name.lower().endswith(".parquet")

    @property
    def is_packed(self) -> bool:
        """Whether it is named as gzipped."""
        return self.path.name.lower().endswith(".gz")


def locate(root: Path, specs: Sequence[TableSpec]) -> dict[str, RawFile | None]:
    """Find the file of every table and check that it has the required columns.

    Args:
        root: Folder of the extract.
        specs: The tables; one with a folder of its own is looked for there.

    Returns:
        File by table name; None where an optional table, or the folder of one, is absent.

    Raises:
        ExtractError: With everything that is missing or unreadable, over all tables.
    """
    problems: list[str] = []
    found: dict[str, RawFile | None] = {}
    absent: dict[Path, dict[str, None]] = {}
    _listing(root, "the extract's folder")
    for spec in specs:
        folder = root if spec.folder is None else spec.folder.expanduser()
        try:
            if spec.optional and not folder.exists():
                found[spec.name] = None
                continue
            _listing(folder, f"the folder of table {spec.file}")
            path = _find(folder, spec.file)
            if path is not None:
                found[spec.name] = raw = RawFile(path, path.relative_to(folder).as_posix(), read_header(path))
                _check_header(raw, spec)
            elif spec.optional:
                found[spec.name] = None
            else:
                absent.setdefault(folder, {})[spec.file] = None
        except ExtractError as error:
            problems += error.problems
    missing = [
        f"{folder}: missing {_count(len(files), 'table')} {', '.join(files)} (as {', '.join(SUFFIXES)})"
        for folder, files in absent.items()
    ]
    if missing or problems:
        raise ExtractError(*missing, *problems)
    return found


def _count(n: int, noun: str) -> str:
    return noun if n == 1 else f"{noun}s"


def _listing(folder: Path, what: str) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        raise ExtractError(f"{folder}: {what} does not exist") from None
    except NotADirectoryError:
        raise ExtractError(f"{folder}: {what} is not a folder") from None
    except PermissionError:
        raise ExtractError(f"{folder}: {what} can't be read (permission denied)") from None


def _find(root: Path, file: str) -> Path | None:
    folder = root
    *parents, stem = file.split("/")
    for part in parents:
        inside = [p for p in _listing(folder, "folder of the extract") if p.is_dir() and p.name.lower() == part.lower()]
        if not inside:
            return None
        folder = inside[0]
    files = _listing(folder, "folder of the extract")
    found: list[Path] = []
    for suffix in SUFFIXES:
        matches = [p for p in files if p.name.lower() == f"{stem}{suffix}".lower()]
        if len(matches) > 1:
            raise ExtractError(
                f"{folder}: {' and '.join(p.name for p in matches)} differ only in case; keep one of them"
            )
        found += matches
    if len(found) > 1:
        _warn_once(f"{folder}: {' and '.join(p.name for p in found)} are one table; the first is read")
    return found[0] if found else None


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def column_of(raw: RawFile, name: str) -> int | None:
    """Position of a column in the file, without regard to case; None where there is none."""
    folded = [column.strip().lower() for column in raw.header]
    return folded.index(name.lower()) if name.lower() in folded else None


def _check_header(raw: RawFile, spec: TableSpec) -> None:
    problems = []
    missing = [n for n, c in spec.columns.items() if c.required and column_of(raw, n) is None]
    if missing:
        problems.append(f"{raw.relative}: missing {_count(len(missing), 'column')} {', '.join(missing)}")
    folded = [column.strip().lower() for column in raw.header]
    twice = [n for n in spec.columns if folded.count(n.lower()) > 1]
    if twice:
        problems.append(f"{raw.relative}: {_count(len(twice), 'column')} {', '.join(twice)} stands twice in the header")
    if problems:
        raise ExtractError(*problems)


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a CSV file as text, gzipped or not (by its first bytes, as polars does).

    Raises:
        ExtractError: If it can't be read, is cut off, damaged, or no UTF-8.
    """
    try:
        with path.open("rb") as binary:
            packed = binary.read(2) == b"\x1f\x8b"
            binary.seek(0)
            stream = gzip.GzipFile(fileobj=binary) if packed else binary
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
                yield text
    except PermissionError:
        raise ExtractError(f"{path.name}: can't be read (permission denied)") from None
    except EOFError:
        raise ExtractError(f"{path.name}: the compressed file is truncated; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise ExtractError(f"{path.name}: the compressed file is damaged; copy or download it again") from None
    except UnicodeDecodeError:
        raise ExtractError(f"{path.name}: holds bytes that are not UTF-8 text") from None
    except IsADirectoryError:
        raise ExtractError(f"{path.name}: is a folder, not a file") from None


def read_header(path: Path) -> tuple[str, ...]:
    """Read the column names of a file.

    Raises:
        ExtractError: If the file can't be read or is empty.
    """
    if path.name.lower().endswith(".parquet"):
        try:
            return tuple(pl.read_parquet_schema(path))
        except PermissionError:
            raise ExtractError(f"{path.name}: can't be read (permission denied)") from None
        except (PolarsError, OSError):
            raise ExtractError(f"{path.name}: is no readable Parquet file") from None
    with opened(path) as text:
        header = next(csv.reader(text), None)
    if not header:
        raise ExtractError(f"{path.name}: is empty; a header and rows were expected")
    return tuple(header)


class Ledger:
    """Hashes of raw files, remembered by (path, size, modification time), so that a large extract is hashed once.

    Args:
        path: JSON file it is kept in; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[int | str]] = {}
        if path.is_file():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                # a damaged ledger costs a second hashing, no more
                self._known = {}

    def sha256(self, path: Path) -> str:
        """Hash a file, or remember its hash.

        Raises:
            ExtractError: If the file can't be read.
        """
        facts = path.stat()
        key = str(path.resolve())
        known = self._known.get(key)
        if known is not None and known[:2] == [facts.st_size, facts.st_mtime_ns]:
            return str(known[2])
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except PermissionError:
            raise ExtractError(f"{path.name}: can't be read (permission denied)") from None
        self._known[key] = [facts.st_size, facts.st_mtime_ns, found]
        return found

    def save(self) -> None:
        """Write the ledger, whole or not at all."""
        temporary = self.path.with_name(f".tmp-{os.getpid()}-{self.path.name}")
        temporary.write_text(json.dumps(self._known, indent=0, sort_keys=True), encoding="utf-8")
        temporary.replace(self.path)
