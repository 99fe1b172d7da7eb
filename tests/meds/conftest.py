"""A small MEDS dataset, written through the schemas of the `meds` package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds.schema import (
    CodeMetadataSchema,
    DataSchema,
    LabelSchema,
    SubjectSplitSchema,
    birth_code,
    code_metadata_filepath,
    data_subdirectory,
    dataset_metadata_filepath,
    death_code,
    held_out_split,
    subject_splits_filepath,
    train_split,
    tuning_split,
)

Row = tuple[int, str | None, str, float | None, str | None]
LabelRow = tuple[int, str, bool | None]

# subject 1: two prediction times; 2: nothing but a static row and one event; 3: all after its time; 4: no row of data
EVENTS: dict[str, list[Row]] = {
    "train/0": [
        (1, None, "GENDER//F", None, None),
        (1, None, "RACE//OTHER", None, None),
        (1, "2100-01-01 00:00", birth_code, None, None),
        (1, "2149-03-01 08:00", "DIAGNOSIS//ICD//10//I10", None, None),
        (1, "2150-01-01 06:00", "LAB//50912//mg/dL", 1.5, None),
        (1, "2150-01-01 06:00", "LAB//50912//mg/dL", 2.5, None),
        (1, "2150-01-01 10:00", "LAB//50912//mg/dL", 1.0, None),
        (1, "2150-01-01 10:00", "LAB//50971//mEq/L", None, "hemolysed"),
        (1, "2150-01-01 11:00", "VITAL//HEART_RATE", 80.0, None),
        (1, "2150-01-01 12:00", "VITAL//HEART_RATE", 90.0, None),
        (1, "2150-01-01 12:00", "NOTE//PROGRESS", None, "Better today."),
        (1, "2150-01-01 12:00", "NOTE//PROGRESS", None, "  "),
        (1, "2150-01-02 12:00", "LAB//50971//mEq/L", 4.5, None),
        (1, "2150-01-02 12:00", "MEDICATION//START//heparin", None, None),
        (1, "2150-01-09 12:00", death_code, None, None),
        (2, None, "GENDER//M", None, None),
        (2, "2150-05-01 00:00", "HOSPITAL_ADMISSION//EMERGENCY", None, None),
    ],
    "held_out/0": [
        (3, "2150-06-02 00:00", "LAB//50912//mg/dL", 9.0, None),
        (3, "2150-06-02 00:00", "DIAGNOSIS//ICD//10//A419", None, None),
        (9, "2150-06-02 00:00", "LAB//50912//mg/dL", 7.0, None),
    ],
}
LABELS: dict[str, list[LabelRow]] = {
    "death/0": [(1, "2150-01-01 12:00", False), (1, "2150-01-03 00:00", True), (2, "2150-05-02 00:00", False)],
    "death/1": [(3, "2150-06-01 00:00", False), (4, "2150-06-01 00:00", False)],
    "readmission": [(1, "2150-01-01 12:00", True), (2, "2150-05-02 00:00", False)],
}
SPLITS = {1: train_split, 2: tuning_split, 3: held_out_split, 4: train_split, 9: held_out_split}


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def event_table(rows: Sequence[Row]) -> pa.Table:
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 5
    columns[1] = tuple(moment(text) for text in columns[1])
    names = ("subject_id", "time", "code", "numeric_value", "text_value")
    schema = DataSchema.schema()
    return pa.table(
        {name: pa.array(values, schema.field(name).type) for name, values in zip(names, columns, strict=True)}
    )


def label_table(rows: Sequence[LabelRow]) -> pa.Table:
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 3
    columns[1] = tuple(moment(text) for text in columns[1])
    names = ("subject_id", "prediction_time", "boolean_value")
    schema = LabelSchema.schema()
    return pa.table(
        {name: pa.array(values, schema.field(name).type) for name, values in zip(names, columns, strict=True)}
    )


def write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_dataset(
    root: Path,
    events: Mapping[str, Sequence[Row]] = EVENTS,
    labels: Mapping[str, Sequence[LabelRow]] = LABELS,
    splits: Mapping[int, str] | None = SPLITS,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a dataset; what the `meds` package finds wrong with it is an error here."""
    for shard, rows in events.items():
        table = event_table(rows)
        DataSchema.validate(table)
        write_parquet(root / data_subdirectory / f"{shard}.parquet", table)
    for shard, labelled in labels.items():
        write_parquet(root / "tasks" / f"{shard}.parquet", label_table(labelled))
    if splits is not None:
        table = pa.table({"subject_id": pa.array(splits, pa.int64()), "split": pa.array(splits.values(), pa.string())})
        SubjectSplitSchema.validate(table)
        write_parquet(root / subject_splits_filepath, table)
    codes = sorted({row[2] for rows in events.values() for row in rows})
    listed = pa.table({"code": codes, "description": pa.nulls(len(codes), pa.string())})
    write_parquet(root / code_metadata_filepath, CodeMetadataSchema.align(listed))
    described = {"dataset_name": "Small set", "meds_version": "0.4.1"} if metadata is None else dict(metadata)
    (root / dataset_metadata_filepath).write_text(json.dumps(described), encoding="utf-8")
    return root


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(events=…, labels=…, splits=…, metadata=…, name="meds")` writes a dataset and returns its folder."""

    def make(name: str = "meds", **changed: Any) -> Path:
        return write_dataset(tmp_path / name, **changed)

    return make


@pytest.fixture
def events() -> dict[str, list[Row]]:
    """A copy of the small dataset's events, to change."""
    return {shard: list(rows) for shard, rows in EVENTS.items()}


@pytest.fixture
def labels() -> dict[str, list[LabelRow]]:
    """A copy of the small dataset's labels, to change."""
    return {shard: list(rows) for shard, rows in LABELS.items()}
