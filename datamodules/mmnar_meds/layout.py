"""The files of a MEDS dataset: which there are, and whether their columns are as the standard says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmnar_lightning.extract import Clock, Column, ExtractError, TableSpec
from mmnar_meds.selection import Labels, task_name

DATA, SPLITS, CODES, DATASET = "data", "metadata/subject_splits", "metadata/codes", "metadata/dataset.json"
SHOWN = 10
TIME = pl.Datetime("us")
Types = Mapping[str, pl.DataType]


def parquet_files(folder: Path, what: str) -> list[str]:
    """Paths of the parquet files in a folder and below it, without suffix, sorted.

    Raises:
        ExtractError: If there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ExtractError(f"{folder}: {what} does not exist")
    paths = (path.relative_to(folder) for path in folder.rglob("*.parquet"))
    found = sorted(p.with_suffix("").as_posix() for p in paths if not any(part[0] == "." for part in p.parts))
    if not found:
        raise ExtractError(f"{folder}: {what} holds no .parquet file")
    return found


def dataset_name(root: Path) -> str:
    """Name of the dataset for the store, from ``metadata/dataset.json``; ``meds`` where it gives none.

    Raises:
        ExtractError: If the file can't be read.
    """
    path = root / DATASET
    if not path.is_file():
        return "meds"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("dataset_name")
    except (ValueError, OSError, AttributeError):
        raise ExtractError(f"{DATASET}: is no readable JSON object") from None
    word = re.sub(r"[^a-z0-9]+", "_", str(name or "").lower()).strip("_")
    return f"meds_{word}" if word else "meds"


def data_tables(root: Path, texts: bool) -> list[TableSpec]:
    """The shards of events.

    Args:
        root: Folder of the dataset.
        texts: Whether ``text_value`` is read; else it is on no allow-list.

    Raises:
        ExtractError: If there is none, or a column is missing or of another type.
    """
    columns = {
        "subject_id": Column(pl.Int64),
        "time": Column(TIME),
        "code": Column(pl.String),
        "numeric_value": Column(pl.Float32, required=False),
    }
    if texts:
        columns["text_value"] = Column(pl.String, required=False, documents=True)
    shards = parquet_files(root / DATA, "the folder of events")
    return _checked(
        root,
        [
            TableSpec(
                f"{DATA}/{shard}",
                f"{DATA}/{shard}",
                columns,
                clock=Clock("time", lag=0.0),
                optional=True,  # the file is there; a shard without rows is legal
                not_null=("subject_id", "code"),
                counted_as=DATA,
            )
            for shard in shards
        ],
    )


@dataclass(frozen=True)
class TaskFiles:
    """One task with the tables that its labels stand in.

    Args:
        name: Of the task.
        labels: What is said of it.
        tables: Its files.
    """

    name: str
    labels: Labels
    tables: tuple[TableSpec, ...]


def label_tables(folder: Path, tasks: Mapping[str, Labels] | None) -> list[TaskFiles]:
    """The label files of each task.

    Args:
        folder: Folder of labels.
        tasks: Which there are; None takes every file and every folder in `folder` as a task of that name.

    Raises:
        ExtractError: If there is none, a file is missing, two tasks get one name, or a column is missing or of another
            type.
    """
    columns = {
        "subject_id": Column(pl.Int64),
        "prediction_time": Column(TIME),
        "boolean_value": Column(pl.Boolean, required=False),
        "integer_value": Column(pl.Int64, required=False),
    }
    files = parquet_files(folder, "the folder of labels")
    if tasks is None:
        paths = sorted({file.split("/")[0] for file in files})
        names = [task_name(path) for path in paths]
        if len(set(names)) < len(names):
            raise ExtractError(f"{folder}: two tasks would get one name; name them in the option labels")
        tasks = {name: Labels(path) for name, path in zip(names, paths, strict=True)}
    made = []
    for name, labels in tasks.items():
        path = (labels.path or name).removesuffix(".parquet").rstrip("/")
        own = [file for file in files if file == path or file.startswith(f"{path}/")]
        if not own:
            raise ExtractError(f"{folder}: task {name!r} has no file {path}.parquet and no folder {path} with one")
        key = ("subject_id", "prediction_time")
        specs = [
            TableSpec(
                f"labels/{name}/{file}",
                file,
                columns,
                clock=None,
                key=key,
                optional=True,
                not_null=key,
                folder=folder,
                counted_as=f"labels/{name}",
            )
            for file in own
        ]
        made.append(TaskFiles(name, labels, tuple(_checked(folder, specs))))
    return made


def metadata_tables(root: Path) -> list[TableSpec]:
    """Splits of subjects and the list of codes, where the dataset has them.

    Raises:
        ExtractError: If a column is missing or of another type.
    """
    splits = {"subject_id": Column(pl.Int64), "split": Column(pl.String)}
    codes = {"code": Column(pl.String)}
    specs = [
        TableSpec(SPLITS, SPLITS, splits, clock=None, key=("subject_id",), optional=True, not_null=("split",)),
        TableSpec(CODES, CODES, codes, clock=None, optional=True, not_null=("code",)),
    ]
    _checked(root, [spec for spec in specs if (root / f"{spec.file}.parquet").is_file()])
    return specs


def _checked(folder: Path, specs: list[TableSpec]) -> list[TableSpec]:
    problems = [problem for spec in specs for problem in _problems(folder, spec)]
    if problems:
        more = len(problems) - SHOWN
        raise ExtractError(*problems[:SHOWN], *([f"and {more} more such problems"] if more > 0 else []))
    return specs


def _problems(folder: Path, spec: TableSpec) -> Iterable[str]:
    file = f"{spec.file}.parquet"
    try:
        types: Types = pl.read_parquet_schema(folder / file)
    except PermissionError:
        yield f"{file}: can't be read (permission denied)"
        return
    except (pl.exceptions.PolarsError, OSError):
        yield f"{file}: is no readable Parquet file; copy or download it again"
        return
    for name, column in spec.columns.items():
        if name in types:
            yield from _mistyped(file, name, types[name], spec.schema[name], column.required)
        elif column.required:
            hint = " (it looks like MEDS before 0.3; convert it)" if "patient_id" in types else ""
            yield f"{file}: missing column {name}{hint}"


def _mistyped(file: str, name: str, given: pl.DataType, wanted: pl.DataType, required: bool) -> Iterable[str]:
    if given == pl.Null and not required:
        return
    if isinstance(given, pl.Datetime) and given.time_zone is not None:
        yield f"{file}: column {name}: its times have a time zone; MEDS has local times without one"
        return
    fits = {
        pl.Int64: given.is_integer(),
        pl.Float32: given.is_numeric(),
        pl.String: isinstance(given, (pl.String, pl.Categorical, pl.Enum)),
        pl.Boolean: given == pl.Boolean,
        # nanoseconds would be cut off: an event would come to lie before the prediction time that it followed
        pl.Datetime: given == TIME,
    }
    if not fits[type(wanted)]:
        yield f"{file}: column {name}: is of type {given}; MEDS has {wanted}"
