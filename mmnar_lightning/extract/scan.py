"""Reading raw tables: only allow-listed columns, typed strictly, checked, in bounded memory."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.exceptions import ComputeError, NoDataError, PolarsError

from mmnar_lightning.extract.malformed import SHOWN, Rows, ragged_rows, separators, unclosed_quotes
from mmnar_lightning.extract.raw import Ledger, RawFile, locate
from mmnar_lightning.extract.reading import BAD, LONG, ROW, Pace, Tally, read
from mmnar_lightning.extract.tables import ExtractError, TableSpec, digest

log = logging.getLogger(__name__)

LEDGER = "hashes.json"
# change with every change of what a cached table holds
CACHE_VERSION = 2
# rows a duplicate check groups at once: memory stays flat in the number of rows
BUCKET = 4_000_000
# rows that are written at once where a value may be a whole document
DOCUMENTS = 1024
NULL = "null:"


@dataclass(frozen=True)
class Table:
    """A table that was read and checked.

    Args:
        frame: Its kept rows, as the spec has them.
        rows: Rows in the file.
        kept: Rows of `frame`.
    """

    frame: pl.LazyFrame
    rows: int
    kept: int


def scan(root: Path | str, spec: TableSpec, cache: Path | None = None) -> pl.LazyFrame:
    """Find a table, check all of it, and open its allow-listed columns.

    Everything else in the file is never read. The check runs through polars' streaming engine in bounded memory.

    Args:
        root: Folder of the extract.
        spec: The table.
        cache: Folder in which the typed table is kept, by the hash of the file and the spec, so that it is read from
            there next time; None keeps nothing, and reads the raw file again whenever the frame is collected.

    Returns:
        The columns of the spec, in its order, under its names and types. An absent optional table has no rows.

    Raises:
        ExtractError: If the file or a column is missing, the file is empty, cut off, damaged or malformed, a value does
            not read as its type, a key occurs twice, a null stands where none may, or a unit is unknown; all of a
            table's problems at once. A table that fails leaves nothing in the cache.
    """
    raw = locate(Path(root), [spec])[spec.name]
    if raw is None:
        return empty(spec)
    if cache is None:
        return _checked(raw, spec)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = Ledger(cache / LEDGER)
    table = cached(raw, spec, cache, ledger.sha256(raw.path))
    ledger.save()
    return table.frame


def empty(spec: TableSpec) -> pl.LazyFrame:
    """A table without rows."""
    return pl.LazyFrame(schema=spec.schema)


def cache_path(spec: TableSpec, cache: Path, sha256: str) -> Path:
    """Where the typed table of a raw file is cached."""
    return cache / f"{digest([CACHE_VERSION, sha256, spec.describe()])}.parquet"


def cached(raw: RawFile, spec: TableSpec, cache: Path, sha256: str) -> Table:
    """Open a table from the cache, after checking it and putting it there if need be: whole, or not at all.

    Raises:
        ExtractError: As `scan`.
    """
    final = cache_path(spec, cache, sha256)
    counted = final.with_suffix(".json")
    if not final.exists():
        temporary = final.with_name(f".tmp-{os.getpid()}-{final.name}")
        try:
            rows = _write(raw, spec, temporary)
            written = temporary.with_suffix(".json")
            written.write_text(json.dumps({"rows": rows}), encoding="utf-8")
            # the table is renamed last: where it is, its count is
            written.replace(counted)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    frame = pl.scan_parquet(final).select(list(spec.columns))
    rows = int(json.loads(counted.read_text(encoding="utf-8"))["rows"])
    return Table(frame, rows, frame.select(pl.len()).collect(engine="streaming").item())


def _write(raw: RawFile, spec: TableSpec, path: Path) -> int:
    """Check a table and write it; returns the number of rows in the raw file."""
    with ThreadPoolExecutor(1) as beside:
        commas = beside.submit(_separators, raw, spec)
        for pace in Pace:
            tally = Tally()
            try:
                _sink(read(raw, spec, pace, tally), path, spec)
                sums = _sums(pl.scan_parquet(path), (*spec.key, *spec.not_null))
            except (PolarsError, OSError) as error:
                if pace is Pace.TYPED:
                    continue
                raise _explained(raw, error) from None
            if not _unread(sums):
                break
        rows = _rows_in(raw, spec, sums, tally)
        _raise_for(pl.scan_parquet(path), sums, raw, spec, pace, (rows, commas.result()))
    return rows


def _checked(raw: RawFile, spec: TableSpec) -> pl.LazyFrame:
    for pace in Pace:
        tally = Tally()
        frame = read(raw, spec, pace, tally)
        try:
            # of every column, also where any null will do: what is not asked for is not parsed, a loose quote not seen
            sums = _sums(frame, tuple(spec.columns))
        except (PolarsError, OSError) as error:
            if pace is Pace.TYPED:
                continue
            raise _explained(raw, error) from None
        if not _unread(sums):
            break
    _raise_for(frame, sums, raw, spec, pace, (_rows_in(raw, spec, sums, tally), _separators(raw, spec)))
    return frame.select(list(spec.columns))


def _rows_in(raw: RawFile, spec: TableSpec, sums: Mapping[str, int], tally: Tally) -> int:
    if spec.only is None:
        return sums["rows"]
    if raw.is_parquet:
        return int(pl.scan_parquet(raw.path, glob=False).select(pl.len()).collect().item())
    return tally.rows


def _separators(raw: RawFile, spec: TableSpec) -> int | None:
    """Commas of a CSV file outside quotes; None where they are not counted.

    That is in Parquet, in a file that can't be read (reading it says why), and in a packed one of whose rows only some
    are kept: its checksum vouches for what was written, and counting would take as long as unpacking it.
    """
    if raw.is_parquet or (spec.only is not None and raw.is_packed):
        return None
    try:
        return separators(raw.path)
    except (PolarsError, OSError):
        return None


def _sink(frame: pl.LazyFrame, path: Path, spec: TableSpec) -> None:
    # a group of rows is held until it is written: of documents, 100,000 and more are gigabytes
    group = DOCUMENTS if any(column.documents for column in spec.columns.values()) else None
    frame.sink_parquet(path, compression="lz4", engine="streaming", row_group_size=group)


def _explained(raw: RawFile, error: PolarsError | OSError) -> ExtractError:
    """Say what is wrong with a file in our own words: polars quotes values."""
    if isinstance(error, PermissionError):
        return ExtractError(f"{raw.relative}: can't be read (permission denied)")
    if isinstance(error, NoDataError):
        return ExtractError(f"{raw.relative}: is empty; a header and rows were expected")
    if raw.is_parquet:
        return ExtractError(f"{raw.relative}: is no readable Parquet file; copy or download it again")
    if isinstance(error, ComputeError) and "utf-8" in str(error):
        return ExtractError(f"{raw.relative}: holds bytes that are not UTF-8 text")
    if isinstance(error, OSError) and "end of file" in str(error):
        return ExtractError(f"{raw.relative}: the compressed file is truncated; copy or download it again")
    if isinstance(error, OSError) and "gzip" in str(error):
        return ExtractError(f"{raw.relative}: the compressed file is damaged; copy or download it again")
    if isinstance(error, OSError) and error.errno is not None:
        return ExtractError(f"{raw.relative}: {os.strerror(error.errno)}")
    if not isinstance(error, ComputeError):
        raise error
    try:
        quotes = unclosed_quotes(raw.path)
        if quotes.count == 0 and (ragged := ragged_rows(raw.path, len(raw.header))).count:
            return _ragged(raw, ragged)
    except ExtractError as other:
        return other
    where = f", first seen in row {quotes.first[0]}" if quotes.count else ""
    return ExtractError(f"{raw.relative}: is no well-formed CSV: a quote that is not closed, or text behind one{where}")


def _ragged(raw: RawFile, rows: Rows) -> ExtractError:
    return ExtractError(f"{raw.relative}: {rows} with another number of fields than the header's {len(raw.header)}")


def _sums(frame: pl.LazyFrame, columns: Sequence[str]) -> dict[str, int]:
    """Counts of kept rows, of flags, and of nulls in some columns."""
    names = frame.collect_schema().names()
    flags = [name for name in names if name.startswith(BAD) or name == LONG]
    nulls = [_null(name, names).sum().alias(NULL + name) for name in dict.fromkeys(columns)]
    sums = frame.select(pl.len().alias("rows"), pl.col(flags).sum(), *nulls)
    return sums.collect(engine="streaming").row(0, named=True)


def _null(name: str, names: Sequence[str]) -> pl.Expr:
    # what could not be read is null, too, and is named as such
    null = pl.col(name).is_null()
    return null & ~pl.col(BAD + name) if BAD + name in names else null


def _unread(sums: Mapping[str, int]) -> bool:
    return any(count for name, count in sums.items() if name.startswith(BAD))


def _raise_for(
    frame: pl.LazyFrame,
    sums: Mapping[str, int],
    raw: RawFile,
    spec: TableSpec,
    pace: Pace,
    counts: tuple[int, int | None],
) -> None:
    """Check what was read.

    Args:
        frame: The kept rows, with flags.
        sums: Theirs.
        raw: The file.
        spec: The table.
        pace: How it was read.
        counts: Rows of the file, and what `_separators` counted.

    Raises:
        ExtractError: With all that is wrong with the table.
    """
    file, (rows, commas) = raw.relative, counts
    if rows == 0:
        if spec.optional:
            return
        raise ExtractError(f"{file}: has a header but no rows")
    whole = commas in (None, (rows + 1) * (len(raw.header) - 1))
    if (sums[LONG] or not whole) and (ragged := ragged_rows(raw.path, len(raw.header))).count:
        raise _ragged(raw, ragged)
    # only for messages: to number rows, the file is read again
    numbered = read(raw, spec, pace, Tally(), numbered=True)
    problems = []
    for name, dtype in spec.schema.items():
        if count := sums.get(BAD + name, 0):
            wrong = _rows(numbered, pl.col(BAD + name), count)
            problems.append(f"{file}: column {name}: {wrong} where no {_noun(dtype)} could be read")
    for name in dict.fromkeys((*spec.key, *spec.not_null)):
        if count := sums[NULL + name]:
            wrong = _rows(numbered, _null(name, list(sums)), count)
            problems.append(f"{file}: column {name}: {wrong} without a value")
    if spec.key and not problems:
        problems += _duplicates(frame, numbered, sums["rows"], file, spec)
    if spec.units is not None:
        problems += _units(frame, numbered, file, spec)
    if problems:
        raise ExtractError(*problems)


def _noun(dtype: pl.DataType) -> str:
    if dtype.is_numeric():
        return "whole number" if dtype.is_integer() else "number"
    return {pl.Date: "date", pl.Boolean: "truth value"}.get(type(dtype), "date and time")


def _rows(numbered: pl.LazyFrame, wrong: pl.Expr, count: int) -> Rows:
    numbers = numbered.filter(wrong).select(ROW).head(SHOWN)
    return Rows(count, numbers.collect(engine="streaming")[ROW].sort().to_list())


def _duplicates(frame: pl.LazyFrame, numbered: pl.LazyFrame, rows: int, file: str, spec: TableSpec) -> list[str]:
    buckets = -(-rows // BUCKET)
    bucket = pl.struct(spec.key).hash() % buckets
    count, first = 0, []
    for b in range(buckets):
        keys = frame.select(spec.key) if buckets == 1 else frame.select(spec.key).filter(bucket == b)
        twice = keys.group_by(spec.key).len().filter(pl.col("len") > 1).collect(engine="streaming")
        if twice.height == 0:
            continue
        count += int(twice["len"].sum()) - twice.height
        again = numbered.select(*spec.key, ROW).join(twice.lazy().select(spec.key), on=spec.key, how="semi")
        later = again.collect().sort(ROW).filter(pl.struct(spec.key).is_duplicated() & ~_first_of(spec.key))
        first += later[ROW].head(SHOWN).to_list()
    wrong = Rows(count, sorted(first)[:SHOWN])
    name = f"column {spec.key[0]}" if len(spec.key) == 1 else f"columns {', '.join(spec.key)}"
    return [f"{file}: {name}: {wrong} that repeat a key, which must be unique"] if count else []


def _first_of(key: tuple[str, ...]) -> pl.Expr:
    return pl.struct(key).is_first_distinct()


def _units(frame: pl.LazyFrame, numbered: pl.LazyFrame, file: str, spec: TableSpec) -> list[str]:
    assert spec.units is not None
    catalogue, raw_id, unit = spec.units.catalogue, spec.units.raw_id, spec.units.unit
    pairs = frame.group_by(raw_id, unit).len().collect(engine="streaming")
    wrong = catalogue.unknown_unit(pl.col(raw_id), pl.col(unit))
    count = int(pairs.filter(wrong)["len"].sum())
    if count == 0:
        return []
    rows = _rows(numbered, wrong, count)
    return [f"{file}: column {unit}: {rows} with a unit that {catalogue.source} does not know"]
