"""Tables that are given to the report: results of ablations and benchmarks, from CSV, parquet or JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmnar_lightning.reports.cells import FEW, NONE, Table, number
from mmnar_lightning.reports.suppression import hidden

MOST = 500
COUNTS = ("n", "samples", "patients", "people", "stays", "events", "positive", "labelled", "rows")
"""Columns of these names count people or what belongs to them."""


def read_table(path: Path) -> Table:
    """Read a table of results, to be shown with the name of its file and its columns.

    CSV and parquet are shown as they are. JSON is a list of objects, or an object with such a list under `rows`; a
    list of three numbers in it is an estimate with its interval. Counts below 10 are not shown in columns of the
    names `COUNTS`.

    Raises:
        ValueError: If the file is of another kind or has no rows.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such table")
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path}: the table has no rows")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    words = [c for c in columns if any(isinstance(row.get(c), str) for row in rows)]
    # words first: what names a row
    ordered = words + [c for c in columns if c not in words]
    largest = {c: max((abs(x) for row in rows for x in _floats(row.get(c))), default=0.0) for c in ordered}
    cells = tuple(tuple(_cell(c, row.get(c), largest[c]) for c in ordered) for row in rows[:MOST])
    note = f"The first {MOST} of {len(rows)} rows." if len(rows) > MOST else ""
    return Table(path.name, tuple(ordered), cells, max(1, len(words)), note)


def _rows(path: Path) -> list[dict[str, Any]]:
    import polars as pl

    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return pl.read_csv(path, infer_schema_length=None).to_dicts()
        if kind in (".parquet", ".pq"):
            return pl.read_parquet(path).to_dicts()
        if kind == ".json":
            read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
            rows = read.get("rows") if isinstance(read, dict) else read
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
                return rows
            raise ValueError(f"{path}: neither a list of objects nor an object with such a list under 'rows'")
    except (pl.exceptions.PolarsError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read as {kind}") from error
    raise ValueError(f"{path}: a table is a .csv, .parquet or .json file")


def _floats(value: Any) -> list[float]:
    found = value if isinstance(value, list) else [value]
    return [x for x in found if isinstance(x, float) and math.isfinite(x)]


def _cell(column: str, value: Any, largest: float) -> str:
    """Write a cell; numbers of a column have as many digits as its largest asks for."""
    if value is None:
        return NONE
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return FEW if column.lower() in COUNTS and hidden(value) else str(value)
    if isinstance(value, float):
        return _number(value, largest)
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value):
        estimate, low, high = (_number(v, largest) for v in value)
        return f"{estimate} [{low}, {high}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def _number(value: float, largest: float) -> str:
    if not math.isfinite(value):
        return NONE
    if 0 < largest < 0.001:
        return f"{value:.3g}".replace("-", "−")
    return number(value, 4 if largest < 100 else 1)
