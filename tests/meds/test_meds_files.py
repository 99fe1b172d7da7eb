"""Files that aren't as MEDS says are refused before anything is written: by file, column and count, without values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import ExtractError
from mmnar_meds import Labels, MEDSDataModule

TIME = pl.Datetime("us")
Change = Callable[[Path], None]


def edit(root: Path, file: str, *columns: pl.Expr, drop: tuple[str, ...] = ()) -> None:
    path = root / f"{file}.parquet"
    pl.read_parquet(path).with_columns(columns).drop(drop).write_parquet(path)


def refused(root: Path, tmp_path: Path, **options: Any) -> str:
    store = tmp_path / "stores"
    with pytest.raises(ExtractError) as caught:
        MEDSDataModule(root, store, **options).prepare_store()
    assert not store.exists() or not list(store.glob("meds*"))
    return str(caught.value)


BAD: dict[str, tuple[str, tuple[pl.Expr, ...], tuple[str, ...], str]] = {
    "a column is missing": ("data/train/0", (), ("code",), "data/train/0.parquet: missing column code"),
    "an older MEDS": (
        "data/train/0",
        (pl.col("subject_id").alias("patient_id"),),
        ("subject_id",),
        "missing column subject_id (it looks like MEDS before 0.3",
    ),
    "times with a zone": (
        "data/held_out/0",
        (pl.col("time").dt.replace_time_zone("UTC"),),
        (),
        "data/held_out/0.parquet: column time: its times have a time zone",
    ),
    "times in nanoseconds": (
        "data/held_out/0",
        (pl.col("time").cast(pl.Datetime("ns")),),
        (),
        "column time: is of type Datetime(time_unit='ns'",
    ),
    "subjects as text": (
        "data/train/0",
        (pl.col("subject_id").cast(pl.String),),
        (),
        "column subject_id: is of type String; MEDS has Int64",
    ),
    "values as text": (
        "data/train/0",
        (pl.col("numeric_value").cast(pl.String),),
        (),
        "column numeric_value: is of type String; MEDS has Float32",
    ),
    "a code without a value": (
        "data/train/0",
        (pl.when(pl.col("subject_id") == 2).then(None).otherwise(pl.col("code")).alias("code"),),
        (),
        "data/train/0.parquet: column code: 2 rows (rows 16, 17) without a value",
    ),
    "an infinite value": (
        "data/held_out/0",
        (pl.lit(float("inf"), pl.Float32).alias("numeric_value"),),
        (),
        "column numeric_value: 3 rows (rows 1, 2, 3) where no number could be read",
    ),
    "prediction times with a zone": (
        "tasks/death/0",
        (pl.col("prediction_time").dt.replace_time_zone("UTC"),),
        (),
        "death/0.parquet: column prediction_time: its times have a time zone",
    ),
    "labels as text": (
        "tasks/readmission",
        (pl.lit("yes").alias("boolean_value"),),
        (),
        "readmission.parquet: column boolean_value: is of type String; MEDS has Boolean",
    ),
    "labels that are numbers": (
        "tasks/readmission",
        (pl.lit(3.5).alias("float_value"),),
        ("boolean_value",),
        "labels of task readmission: neither boolean_value nor integer_value has a value in its 2 rows",
    ),
    "labels of more than two values": (
        "tasks/readmission",
        (pl.int_range(2, 4).alias("integer_value"),),
        ("boolean_value",),
        "labels of task readmission: column integer_value: 2 rows are neither 0 nor 1",
    ),
    "a subject in two splits": (
        "metadata/subject_splits",
        (pl.lit(1, pl.Int64).alias("subject_id"),),
        (),
        "metadata/subject_splits.parquet: column subject_id: 4 rows",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, write: Any, tmp_path: Path) -> None:
    file, columns, drop, message = BAD[name]
    root = write()
    edit(root, file, *columns, drop=drop)
    assert message in refused(root, tmp_path)


def test_labels_of_one_task_may_not_repeat(write: Any, labels: Any, tmp_path: Path) -> None:
    twice = labels | {"death/0": [*labels["death/0"], labels["death/0"][0]]}
    message = "death/0.parquet: columns subject_id, prediction_time: 1 row (row 4) that repeat a key"
    assert message in refused(write(labels=twice), tmp_path)
    over = labels | {"death/1": [*labels["death/1"], labels["death/0"][0]]}
    message = "labels of task death: columns subject_id, prediction_time: 1 rows repeat a row of another file"
    assert message in refused(write("again", labels=over), tmp_path)


def test_what_is_not_there_is_named(write: Any, tmp_path: Path) -> None:
    root = write()
    assert "the folder of labels does not exist" in refused(root, tmp_path, label_folder=root / "nosuch")
    assert "the folder of events does not exist" in refused(root / "tasks", tmp_path, label_folder=root / "tasks")
    assert "has no file nosuch.parquet" in refused(root, tmp_path, labels={"a": Labels("nosuch")})
    (root / "empty").mkdir()
    assert "holds no .parquet file" in refused(root, tmp_path, label_folder=root / "empty")
    assert "does not exist" in refused(tmp_path / "nowhere", tmp_path)


def test_a_damaged_file_is_named(write: Any, tmp_path: Path) -> None:
    root = write()
    (root / "data/held_out/0.parquet").write_bytes(b"PAR1 and no more")
    assert "data/held_out/0.parquet: is no readable Parquet file" in refused(root, tmp_path)
    root = write("again")
    (root / "metadata/dataset.json").write_text("{", encoding="utf-8")
    assert "metadata/dataset.json: is no readable JSON" in refused(root, tmp_path)


def test_all_bad_shards_are_named_up_to_ten(write: Any, tmp_path: Path) -> None:
    event = [(1, "2150-01-01 00:00", "LAB//1", 1.0, None)]
    root = write(events={f"{k:02d}": event for k in range(13)})
    for k in range(13):
        edit(root, f"data/{k:02d}", drop=("time",))
    message = refused(root, tmp_path)
    assert message.count("missing column time") == 10
    assert "and 3 more such problems" in message


def test_legal_variants_are_read(write: Any, tmp_path: Path) -> None:
    root = write()
    edit(root, "data/train/0", pl.col("code").cast(pl.Categorical), pl.lit("x").alias("an_extra_column"))
    edit(root, "data/held_out/0", drop=("numeric_value", "text_value"))
    # MEDS 0.3 has all value columns, empty where they don't apply, and labels may be numbers
    empty = pl.lit(None, pl.Float64).alias("float_value")
    edit(root, "tasks/readmission", pl.col("boolean_value").cast(pl.Int64).alias("integer_value"), empty)
    edit(root, "tasks/readmission", pl.lit(None, pl.Boolean).alias("boolean_value"))
    pl.read_parquet(root / "data/train/0.parquet").clear().write_parquet(root / "data/without_rows.parquet")
    (root / "metadata/dataset.json").unlink()
    (root / "metadata/codes.parquet").unlink()
    (root / "metadata/subject_splits.parquet").unlink()
    module = MEDSDataModule(root, tmp_path / "stores")
    path = module.prepare_store()
    assert path.name.startswith("meds-tasks-")
    assert module.records.samples["label/readmission"].to_list() == [True, None, False, None]
    assert "split" not in module.records.samples.columns
    counts = json.loads((path / "manifest.json").read_text())["counts"]
    assert [what for table, what, _ in counts if table == "data"].count("rows read") == 1


def test_errors_and_counts_hold_no_value_of_a_record(write: Any, events: Any, tmp_path: Path) -> None:
    events["train/0"].append((1, "2150-01-01 00:00", "SECRET//of one person", 1.0, None))
    path = MEDSDataModule(write(events=events), tmp_path / "stores").prepare_store()
    assert "SECRET" not in (path / "manifest.json").read_text()
