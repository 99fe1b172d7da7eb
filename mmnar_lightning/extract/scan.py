"""Reading raw tables: only allow-listed columns, typed strictly, checked, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from polars.exceptions import ComputeError, NoDataError, PolarsError

from mmnar_lightning.extract.casting import convert, read_text
from mmnar_lightning.extract.malformed import SHOWN, Rows, ragged_rows, unclosed_quotes
from mmnar_lightning.extract.raw import Ledger, RawFile, column_of, locate
from mmnar_lightning.extract.tables import ExtractError, TableSpec, digest

log = logging.getLogger(__name__)

LEDGER = "hashes.json"
# change with every change of what a cached table holds
CACHE_VERSION = 1
# rows a duplicate check groups at once: memory stays flat in the number of rows
BUCKET = 4_000_000
BAD, LONG, SHORT = "bad:", "long", "short"


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
    frame = cached(raw, spec, cache, ledger.sha256(raw.path))
    ledger.save()
    return frame


def empty(spec: TableSpec) -> pl.LazyFrame:
    """A table without rows."""
    return pl.LazyFrame(schema=spec.schema)


def cache_path(spec: TableSpec, cache: Path, sha256: str) -> Path:
    """Where the typed table of a raw file is cached."""
    return cache / f"{digest([CACHE_VERSION, sha256, spec.describe()])}.parquet"


def cached(raw: RawFile, spec: TableSpec, cache: Path, sha256: str) -> pl.LazyFrame:
    """Open a table from the cache, after checking it and putting it there if need be: whole, or not at all.

    Raises:
        ExtractError: As `scan`.
    """
    final = cache_path(spec, cache, sha256)
    if not final.exists():
        temporary = cache / f".tmp-{os.getpid()}-{final.name}"
        try:
            for lenient in (False, True):
                _sink(_read(raw, spec, lenient), temporary, raw)
                frame = pl.scan_parquet(temporary)
                sums = _sums(frame, raw)
                if not _unread(sums):
                    break
            _raise_for(frame, sums, raw, spec)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    return pl.scan_parquet(final).select(list(spec.columns))


def _checked(raw: RawFile, spec: TableSpec) -> pl.LazyFrame:
    for lenient in (False, True):
        frame = _read(raw, spec, lenient)
        sums = _sums(frame, raw)
        if not _unread(sums):
            break
    _raise_for(frame, sums, raw, spec)
    return frame.select(list(spec.columns))


def _read(raw: RawFile, spec: TableSpec, lenient: bool) -> pl.LazyFrame:
    """The allow-listed columns, typed, with a flag column for each that could not be read and for ragged rows."""
    schema = spec.schema
    places = {name: column_of(raw, name) for name in spec.columns}
    if raw.is_parquet:
        frame = pl.scan_parquet(raw.path, glob=False)
        given = frame.collect_schema()
        read = {
            name: convert(pl.col(raw.header[place]), given[raw.header[place]], schema[name], lenient)
            for name, place in places.items()
            if place is not None
        }
        shape = {LONG: pl.lit(False), SHORT: pl.lit(False)}
    else:
        # columns by position; one more than the header has, to catch rows with a field too many
        columns = {f"c{i}": pl.String for i in range(len(raw.header) + 1)}
        frame = pl.scan_csv(
            raw.path,
            schema=columns,
            has_header=False,
            skip_lines=1,
            glob=False,
            raise_if_empty=False,
            missing_columns="insert",
        )
        read = {name: read_text(pl.col(f"c{p}"), schema[name], lenient) for name, p in places.items() if p is not None}
        # a null in the last column may be a field too few: only then lines are counted
        shape = {LONG: pl.col(f"c{len(raw.header)}").is_not_null(), SHORT: pl.col(f"c{len(raw.header) - 1}").is_null()}
    typed = [read[n][0].alias(n) if n in read else pl.lit(None).cast(schema[n]).alias(n) for n in spec.columns]
    flags = [flag.fill_null(False).alias(BAD + n) for n, (_, flag) in read.items() if schema[n] != pl.String]
    return frame.select(*typed, *flags, **shape)


def _sink(frame: pl.LazyFrame, path: Path, raw: RawFile) -> None:
    try:
        frame.sink_parquet(path, compression="lz4", engine="streaming")
    except (PolarsError, OSError) as error:
        raise _explained(raw, error) from None


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


def _sums(frame: pl.LazyFrame, raw: RawFile) -> dict[str, int]:
    flags = [name for name in frame.collect_schema().names() if name.startswith(BAD) or name in (LONG, SHORT)]
    try:
        return frame.select(pl.len().alias("rows"), pl.col(flags).sum()).collect(engine="streaming").row(0, named=True)
    except (PolarsError, OSError) as error:
        raise _explained(raw, error) from None


def _unread(sums: Mapping[str, int]) -> bool:
    return any(count for name, count in sums.items() if name.startswith(BAD))


def _raise_for(frame: pl.LazyFrame, sums: Mapping[str, int], raw: RawFile, spec: TableSpec) -> None:
    """Check what was read.

    Raises:
        ExtractError: With all that is wrong with the table.
    """
    file = raw.relative
    if sums["rows"] == 0:
        if spec.optional:
            return
        raise ExtractError(f"{file}: has a header but no rows")
    if (sums[LONG] or sums[SHORT]) and (ragged := ragged_rows(raw.path, len(raw.header))).count:
        raise _ragged(raw, ragged)
    problems = []
    for name, dtype in spec.schema.items():
        if count := sums.get(BAD + name, 0):
            rows = _rows(frame, pl.col(BAD + name), count)
            problems.append(f"{file}: column {name}: {rows} where no {_noun(dtype)} could be read")
    for name in dict.fromkeys((*spec.key, *spec.not_null)):
        # what could not be read is null, too, and was named already
        null = pl.col(name).is_null()
        if BAD + name in sums:
            null = null & ~pl.col(BAD + name)
        if count := frame.select(null.sum()).collect(engine="streaming").item():
            problems.append(f"{file}: column {name}: {_rows(frame, null, count)} without a value")
    if spec.key and not problems:
        problems += _duplicates(frame, sums["rows"], file, spec)
    if spec.units is not None:
        problems += _units(frame, file, spec)
    if problems:
        raise ExtractError(*problems)


def _noun(dtype: pl.DataType) -> str:
    if dtype.is_numeric():
        return "whole number" if dtype.is_integer() else "number"
    return {pl.Date: "date", pl.Boolean: "truth value"}.get(type(dtype), "date and time")


def _rows(frame: pl.LazyFrame, wrong: pl.Expr, count: int) -> Rows:
    numbers = frame.with_row_index("row:number", offset=1).filter(wrong).select("row:number").head(SHOWN)
    return Rows(count, numbers.collect(engine="streaming")["row:number"].sort().to_list())


def _duplicates(frame: pl.LazyFrame, rows: int, file: str, spec: TableSpec) -> list[str]:
    buckets = -(-rows // BUCKET)
    bucket = pl.struct(spec.key).hash() % buckets
    count, first = 0, []
    for b in range(buckets):
        keys = frame.select(spec.key) if buckets == 1 else frame.select(spec.key).filter(bucket == b)
        twice = keys.group_by(spec.key).len().filter(pl.col("len") > 1).collect(engine="streaming")
        if twice.height == 0:
            continue
        count += int(twice["len"].sum()) - twice.height
        again = frame.select(spec.key).with_row_index("row:number", offset=1)
        again = again.join(twice.lazy().select(spec.key), on=spec.key, how="semi")
        later = again.select(pl.col("row:number").filter(pl.struct(spec.key).is_duplicated() & ~_first_of(spec.key)))
        first += later.collect()["row:number"].sort().head(SHOWN).to_list()
    wrong = Rows(count, sorted(first)[:SHOWN])
    name = f"column {spec.key[0]}" if len(spec.key) == 1 else f"columns {', '.join(spec.key)}"
    return [f"{file}: {name}: {wrong} that repeat a key, which must be unique"] if count else []


def _first_of(key: tuple[str, ...]) -> pl.Expr:
    return pl.struct(key).is_first_distinct()


def _units(frame: pl.LazyFrame, file: str, spec: TableSpec) -> list[str]:
    assert spec.units is not None
    catalogue, raw_id, unit = spec.units.catalogue, spec.units.raw_id, spec.units.unit
    pairs = frame.select(raw_id, unit).unique().collect(engine="streaming")
    strange = pairs.filter(catalogue.unknown_unit(pl.col(raw_id), pl.col(unit)))
    if strange.height == 0:
        return []
    wrong = catalogue.unknown_unit(pl.col(raw_id), pl.col(unit))
    count = frame.select(wrong.sum()).collect(engine="streaming").item()
    return [f"{file}: column {unit}: {_rows(frame, wrong, count)} with a unit that {catalogue.source} does not know"]
