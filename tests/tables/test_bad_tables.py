"""Every way a folder of tables can be wrong: one clear error that names file and column, no value, nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import ExtractError
from mmnar_tables import TablesDataModule

Write = Callable[..., Path]
Tables = dict[str, pl.DataFrame]
Case = tuple[Callable[[Tables], dict[str, Any]], str]
# a value no message, row number or count would hold by chance
SECRET = 7313.25
WORD = "unlikely-7313-word"


def altered(table: str, **columns: Any) -> Callable[[Tables], Tables]:
    return lambda sound: {table: sound[table].with_columns(**columns)}


def first_row(column: str, value: Any, row: int = 0) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(pl.col(column))


def twice(sound: Tables) -> Tables:
    return {"samples": pl.concat([sound["samples"], sound["samples"][1:2]])}


def without(table: str, column: str) -> Case:
    return lambda sound: {table: sound[table].drop(column)}, rf"{table}\.parquet: column '{column}' is missing"


def null(table: str, column: str) -> Case:
    return altered(table, **{column: first_row(column, None)}), rf"{table}\.parquet.*{column}.*without a value"


BAD: dict[str, Case] = {
    "missing samples": (lambda sound: {"samples": None}, r"samples\.parquet: missing"),
    "missing modality table": (lambda sound: {"labs": None}, r"labs\.parquet: missing"),
    "empty file": (lambda sound: {"labs": b""}, r"labs\.parquet: not a readable parquet file"),
    "text instead of parquet": (
        lambda sound: {"labs": b"sample_id,sodium\n1,2\n"},
        r"labs\.parquet: not a readable parquet",
    ),
    "missing column patient_id": without("samples", "patient_id"),
    "missing label column": without("samples", "icu_90d"),
    "missing group column": without("samples", "sex"),
    "missing sample_id": without("drugs", "sample_id"),
    "missing value column": without("notes", "text"),
    "missing hours of a series": without("vitals", "hours_before"),
    "text in a number column": (
        altered("vitals", value=pl.lit(WORD)),
        r"vitals\.parquet: column 'value' is of type String; it must be a number",
    ),
    "text as a feature": (
        altered("labs", unit=pl.lit(WORD)),
        r"labs\.parquet: column 'unit' is no number; list the features",
    ),
    "a list nobody named": (
        altered("labs", wave=pl.lit([1.0])),
        r"labs\.parquet: column 'wave' is no number; .*`column: wave`",
    ),
    "codes as numbers": (
        altered("drugs", code=pl.lit(5)),
        r"drugs\.parquet: column 'code' is of type Int32; .*list of texts",
    ),
    "label as text": (
        altered("samples", icu_90d=pl.lit("yes")),
        r"samples\.parquet: column 'icu_90d' is of type String",
    ),
    "patient as float": (
        altered("samples", patient_id=pl.lit(SECRET)),
        r"samples\.parquet: column 'patient_id' is of type Float64",
    ),
    "sample_id of another type": (
        altered("labs", sample_id=pl.lit(7313)),
        r"labs\.parquet: column 'sample_id' is of type Int32, that of samples\.parquet of type String",
    ),
    "sample_id is a list": (
        altered("samples", sample_id=pl.lit([1])),
        r"samples\.parquet: column 'sample_id' is of type List",
    ),
    "feature called sample": (
        altered("labs", sample=pl.lit(1.0)),
        r"labs\.parquet: a feature can't be called 'sample'",
    ),
    "duplicate sample_id": (twice, r"samples\.parquet.*(duplicate|unique|twice|more than once).*"),
    "null patient": null("samples", "patient_id"),
    "null sample_id": null("samples", "sample_id"),
    "null sample_id in a modality": null("notes", "sample_id"),
    "unknown sample": (
        altered("labs", sample_id=first_row("sample_id", pl.lit(WORD), 3)),
        r"labs\.parquet: column 'sample_id' is not in samples\.parquet: 1 row \(row 4\)",
    ),
    "label neither 0 nor 1": (
        altered("samples", readmission_90d=pl.Series([1, 2, None, 7313])),
        r"samples\.parquet: column 'readmission_90d' is neither 0, 1 nor null: 2 rows \(rows 2, 4\)",
    ),
    "label between 0 and 1": (
        altered("samples", readmission_90d=pl.Series([1.0, 0.7313, None, 0.0])),
        r"samples\.parquet: column 'readmission_90d' is neither 0, 1 nor null: 1 row \(row 2\)",
    ),
    "child without its parent": (
        altered("samples", icu_90d=first_row("icu_90d", True, 3)),
        r"samples\.parquet: column 'icu_90d' is positive where its parent 'readmission_90d' is not: 1 row \(row 4\)",
    ),
    "person in two splits": (
        altered("samples", split=first_row("split", pl.lit("test"))),
        r"samples\.parquet: column 'split' puts a person into two splits: 2 rows \(rows 1, 2\)",
    ),
    "unknown split": (
        altered("samples", split=first_row("split", pl.lit(WORD), 2)),
        r"samples\.parquet: column 'split' is none of train, val, calibration, test: 1 row \(row 3\)",
    ),
    "null split": (
        altered("samples", split=first_row("split", None, 2)),
        r"samples\.parquet: column 'split' is none of .*row 3",
    ),
    "after the prediction time": (
        altered("labs", hours_before=first_row("hours_before", -0.7313, 4)),
        r"labs\.parquet: column 'hours_before' is negative, .* after the prediction time: 1 row \(row 5\)",
    ),
    "a note after the prediction time": (
        altered("notes", hours_before=pl.Series([1.0, -SECRET, None])),
        r"notes\.parquet: column 'hours_before' is negative.*row 2\)",
    ),
    "infinite hours": (altered("labs", hours_before=pl.lit(float("inf"))), r"labs\.parquet.*hours_before.*"),
    "infinite feature": (altered("labs", sodium=first_row("sodium", float("-inf"), 1)), r"labs\.parquet.*sodium.*"),
    "too large for float32": (
        altered("labs", sodium=first_row("sodium", 1e300, 1)),
        r"labs\.parquet: column 'sodium' is infinite.*row 2",
    ),
    "widths differ": (
        altered("embedding", values=pl.Series([[1.0, SECRET, 2.0], [1.0, SECRET]])),
        r"embedding\.parquet: column 'values' does not have the 3 values of the others: 1 row \(row 2\)",
    ),
    "infinite in a list": (
        altered("embedding", values=pl.Series([[1.0, 2.0, 3.0], [1.0, float("inf"), 3.0]])),
        r"embedding\.parquet: column 'values' holds an infinite value: 1 row \(row 2\)",
    ),
    "no list at all": (
        altered("embedding", values=pl.lit(None, dtype=pl.List(pl.Float64))),
        r"embedding\.parquet: column 'values' holds no list",
    ),
    "series without a variable": (
        altered("vitals", variable=first_row("variable", None, 1)),
        r"vitals\.parquet: column 'variable' is null where 'value' is not: 1 row \(row 2\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_clear_error(case: str, write: Write, sound: Tables) -> None:
    change, message = BAD[case]
    root = write(**change(sound))
    stores = root.parent / "stores"
    with pytest.raises(ExtractError, match=message) as caught:
        TablesDataModule(root, stores).prepare_store()
    text = str(caught.value)
    assert not any(value in text for value in ("7313", WORD, "\n")), "the message holds a value, or several lines"
    assert not stores.exists(), "something was written"


def test_many_bad_rows_are_counted_and_the_first_are_named(write: Write, sound: Tables) -> None:
    labs = pl.concat([sound["labs"]] * 20).with_columns(hours_before=pl.lit(-1.0))
    with pytest.raises(ExtractError, match=re.escape("100 rows (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)")):
        TablesDataModule(root := write(labs=labs), root.parent / "stores").prepare_store()


def test_unreadable_film_can_be_an_error(write: Write) -> None:
    root = write()
    (root / "films" / "b.png").unlink()
    stores = root.parent / "stores"
    with pytest.raises(ExtractError, match=r"films\.parquet: column 'path' names an unreadable image: 1 row \(row 2\)"):
        TablesDataModule(root, stores, unreadable_images="error").prepare_store()
    assert not stores.exists(), "something was written"


def test_variables_outside_the_items_are_refused(write: Write, schema: dict[str, Any]) -> None:
    schema["modalities"]["vitals"]["items"] = ["heart_rate"]
    with pytest.raises(
        ExtractError, match=r"vitals\.parquet: column 'variable' is none of the items .*: 1 row \(row 2\)"
    ):
        TablesDataModule(root := write(schema), root.parent / "stores").prepare_store()


def test_an_item_that_is_no_column_is_named(write: Write, schema: dict[str, Any]) -> None:
    schema["modalities"]["labs"]["items"] = ["sodium", "ph"]
    with pytest.raises(ExtractError, match=r"labs\.parquet: column 'ph' is missing"):
        TablesDataModule(root := write(schema), root.parent / "stores").prepare_store()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match="no such folder"):
        TablesDataModule(tmp_path / "nowhere", tmp_path / "stores").prepare_store()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExtractError, match=r"schema\.yaml: missing"):
        TablesDataModule(tmp_path / "empty", tmp_path / "stores").prepare_store()
    assert not (tmp_path / "stores").exists()


def test_a_bad_change_leaves_the_stores_that_are_there(write: Write, sound: Tables) -> None:
    root = write()
    stores = root.parent / "stores"
    first = TablesDataModule(root, stores).prepare_store()
    before = sorted(stores.rglob("*"))
    sound["labs"].with_columns(hours_before=pl.lit(-1.0)).write_parquet(root / "labs.parquet")
    with pytest.raises(ExtractError, match="after the prediction time"):
        TablesDataModule(root, stores).prepare_store()
    assert sorted(stores.rglob("*")) == before
    sound["labs"].write_parquet(root / "labs.parquet")
    assert TablesDataModule(root, stores).prepare_store() == first
