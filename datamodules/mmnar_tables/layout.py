"""Which columns of one's own tables are read, and whether they are there with a type that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from mmnar_lightning.extract import Column, ExtractError, TableSpec
from mmnar_tables.description import SAMPLES, Description, ModalityEntry

# names that the store gives to columns of its own
TAKEN = ("sample", "hours_before")
Types = Mapping[str, pl.DataType]


def _number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype == pl.Boolean


def _plain(dtype: pl.DataType) -> bool:
    return not dtype.is_nested() and dtype not in (pl.Object, pl.Null)


def _word(dtype: pl.DataType) -> bool:
    return isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))


def _list_of(inner: Callable[[pl.DataType], bool]) -> Callable[[pl.DataType], bool]:
    def test(dtype: pl.DataType) -> bool:
        return isinstance(dtype, (pl.List, pl.Array)) and inner(dtype.inner)  # type: ignore[arg-type]

    return test


# what a column must be, in words, and the test
ID = ("one plain value a row (text, number, date)", _plain)
PERSON = ("text or a whole number", lambda dtype: _word(dtype) or dtype.is_integer())
LABEL = ("true/false or 0/1", _number)
TIME = ("a number, a date or a time", lambda dtype: dtype.is_numeric() or dtype in (pl.Date, pl.Datetime))
NUMBER = ("a number", lambda dtype: dtype.is_numeric())
TEXT = ("text", _word)
NUMBERS = ("a list of numbers", _list_of(_number))
CODES = ("text or a list of texts", lambda dtype: _word(dtype) or _list_of(_word)(dtype))
Need = tuple[str, Callable[[pl.DataType], bool]]


def parquet_types(root: Path, file: str) -> dict[str, pl.DataType]:
    """Names and types of a table's columns, from its footer.

    Args:
        root: The folder of tables.
        file: The table's path below it, without suffix.

    Raises:
        ExtractError: If there is no such file, or it isn't a readable parquet file.
    """
    path = root / f"{file}.parquet"
    if not path.is_file():
        raise ExtractError(f"{file}.parquet: missing in {root}")
    try:
        return dict(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ExtractError(
            f"{file}.parquet: not a readable parquet file (empty, truncated, or of another format)"
        ) from error


def _column(file: str, types: Types, name: str, need: Need) -> Column:
    words, fits = need
    if name not in types:
        raise ExtractError(f"{file}.parquet: column {name!r} is missing; it must be {words}")
    if not fits(types[name]):
        raise ExtractError(f"{file}.parquet: column {name!r} is of type {types[name]}; it must be {words}")
    return Column(types[name])


def _optional(file: str, types: Types, name: str, need: Need) -> dict[str, Column]:
    return {name: _column(file, types, name, need)} if name in types else {}


def samples_table(root: Path, description: Description) -> TableSpec:
    """The columns of ``samples.parquet`` that are read.

    Raises:
        ExtractError: If the file or a column is missing, or a column has a type that doesn't fit.
    """
    types = parquet_types(root, SAMPLES)
    columns = {
        "sample_id": _column(SAMPLES, types, "sample_id", ID),
        "patient_id": _column(SAMPLES, types, "patient_id", PERSON),
    }
    columns |= _optional(SAMPLES, types, "site", PERSON)
    columns |= _optional(SAMPLES, types, "split", TEXT)
    columns |= _optional(SAMPLES, types, "prediction_time", TIME)
    columns |= {group: _column(SAMPLES, types, group, ID) for group in description.groups}
    columns |= {task.column: _column(SAMPLES, types, task.column, LABEL) for task in description.tasks}
    return TableSpec(SAMPLES, SAMPLES, columns, clock=None, key=("sample_id",), not_null=("sample_id", "patient_id"))


def modality_table(root: Path, entry: ModalityEntry, sample_id: pl.DataType) -> TableSpec:
    """The columns of a modality's table that are read.

    Args:
        root: The folder of tables.
        entry: What ``schema.yaml`` says of the modality.
        sample_id: Type of ``sample_id`` in ``samples.parquet``, which this table's must match.

    Raises:
        ExtractError: If the file or a column is missing, or a column has a type that doesn't fit.
    """
    types = parquet_types(root, entry.file)
    columns = {"sample_id": _column(entry.file, types, "sample_id", ID)}
    own = types["sample_id"]
    same = own == sample_id or (own.is_integer() and sample_id.is_integer()) or (_word(own) and _word(sample_id))
    if not same:
        raise ExtractError(
            f"{entry.file}.parquet: column 'sample_id' is of type {own}, that of {SAMPLES}.parquet of type {sample_id}"
        )
    if entry.kind == "series":
        columns |= {
            "variable": _column(entry.file, types, "variable", TEXT),
            "value": _column(entry.file, types, "value", NUMBER),
        }
        columns |= {"hours_before": _column(entry.file, types, "hours_before", NUMBER)}
    else:
        columns |= _optional(entry.file, types, "hours_before", NUMBER)
    if entry.kind == "vector" and entry.column is None:
        columns |= _features(entry, types)
    elif entry.column is not None:
        _free(entry)
        need = {"vector": NUMBERS, "codes": CODES}.get(entry.kind, TEXT)
        columns[entry.column] = _column(entry.file, types, entry.column, need)
    return TableSpec(entry.name, entry.file, columns, clock=None, not_null=("sample_id",))


def _features(entry: ModalityEntry, types: Types) -> dict[str, Column]:
    """The features of a vector with one column each: those listed, else all the table has."""
    names = entry.items or tuple(name for name in types if name not in ("sample_id", "hours_before"))
    if not names:
        raise ExtractError(f"{entry.file}.parquet: no feature column beside 'sample_id'")
    _free(replace(entry, items=names))
    others = [name for name in names if name in types and not _number(types[name])]
    if others and not entry.items:
        lists = [name for name in others if isinstance(types[name], (pl.List, pl.Array))]
        hint = (
            f"a list is named by `column: {lists[0]}`"
            if lists
            else "list the features under `items` to leave others out"
        )
        raise ExtractError(f"{entry.file}.parquet: column {', '.join(map(repr, others))} is no number; {hint}")
    return {name: _column(entry.file, types, name, ("a number", _number)) for name in names}


def _free(entry: ModalityEntry) -> None:
    taken = [name for name in entry.items if name in TAKEN]
    if taken:
        raise ExtractError(f"{entry.file}.parquet: a feature can't be called {', '.join(map(repr, taken))}; rename it")


def unread(root: Path, spec: TableSpec) -> int:
    """How many columns of a table are on no allow-list; they are never read."""
    return len(set(parquet_types(root, spec.file)) - set(spec.columns))
