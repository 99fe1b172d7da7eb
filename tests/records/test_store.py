from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import mmnar_lightning.records.store as store_module
from mmnar_lightning.records import Modality, RecordSchema, RecordStore, StoreError, Task, store_name, write_store

Records = Any
MakeRecords = Callable[..., Records]
MakeStore = Callable[..., Path]


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def shuffled_memory(frame: pl.DataFrame) -> pl.DataFrame:
    """The same rows, with other rubbish beneath nulls and behind the ends of bitmaps."""
    longer = pl.concat([frame, frame.reverse(), frame], how="vertical").head(frame.height)
    columns = []
    for column in longer.get_columns():
        if column.dtype in (pl.Boolean, pl.Float64, pl.Float32):
            filled = column.fill_null(True if column.dtype == pl.Boolean else 7)
            kept = pl.DataFrame([filled.alias("x"), column.is_not_null().alias("k")]).select(pl.when("k").then("x"))
            column = kept["x"].alias(column.name)
        columns.append(column)
    return pl.DataFrame(columns)


def test_same_input_same_bytes(tmp_path: Path, make_records: MakeRecords, make_store: MakeStore) -> None:
    first = contents(make_store(tmp_path / "a"))
    assert first == contents(make_store(tmp_path / "b"))
    records = make_records()
    again = replace(
        records,
        samples=shuffled_memory(records.samples),
        elements={name: shuffled_memory(frame) for name, frame in records.elements.items()},
    )
    assert again.samples.equals(records.samples)
    assert first == contents(make_store(tmp_path / "c", records=again))
    assert first != contents(make_store(tmp_path / "d", seed=1))


def test_what_is_written_is_read(tmp_path: Path, make_records: MakeRecords, make_store: MakeStore) -> None:
    records, store = make_records(), RecordStore(make_store(tmp_path))
    assert len(store) == records.samples.height
    assert store.schema == records.schema
    assert store.manifest["patients"] == records.samples["patient"].n_unique() == 200
    assert store.samples.select(records.samples.columns).equals(records.samples)
    assert store.samples["sample"].to_list() == list(range(len(store)))
    store.verify()
    for name in store.schema.names:
        file, frame = f"modality/{name}.arrow", records.elements[name]
        assert store.column(file, "sample").tolist() == frame["sample"].to_list()
        np.testing.assert_array_equal(store.column(file, "hours_before"), frame["hours_before"].to_numpy())
        counts = frame.group_by("sample").len()
        expected = [dict(counts.iter_rows()).get(k, 0) for k in range(len(store))]
        assert (store.samples[f"stop/{name}"] - store.samples[f"start/{name}"]).to_list() == expected
        assert store.samples[f"observed/{name}"].to_list() == [n > 0 for n in expected]
    assert store.strings("modality/notes.arrow").to_pylist() == records.elements["notes"]["text"].to_list()
    codes = store.codes("diagnoses")
    assert codes == sorted(set(records.elements["diagnoses"]["code"]))
    values = store.column("modality/diagnoses.arrow", "values")
    assert [codes[k] for k in values] == records.elements["diagnoses"]["code"].to_list()


def test_columns_are_mapped_not_copied(tmp_path: Path, make_store: MakeStore) -> None:
    store = RecordStore(make_store(tmp_path))
    values = store.column("modality/vitals.arrow", "values")
    assert not values.flags.owndata
    assert not values.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 0


TINY = RecordSchema(
    (
        Modality("labs", "vector", ("x", "y")),
        Modality("codes", "codes"),
        Modality("monitor", "series", ("hr", "map")),
        Modality("notes", "text"),
        Modality("film", "image"),
    ),
    (Task("death"), Task("early", parent="death")),
)


def tiny() -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    samples = pl.DataFrame(
        {
            "patient": ["a", "b", "c"],
            "site": ["s", None, "s"],
            "prediction_time": [0.0, 1.0, 2.0],
            "label/death": [True, False, None],
            "label/early": [False, None, None],
        }
    )
    elements = {
        "labs": {
            "sample": [0, 1, 2],
            "hours_before": [1.0, 2.0, None],
            "x": [1.0, None, None],
            "y": [None, None, float("nan")],
        },
        "codes": {"sample": [0, 0, 1, 2], "hours_before": [1.0] * 4, "code": ["b", "a", "", None]},
        "monitor": {
            "sample": [0, 1, 2],
            "hours_before": [1.0] * 3,
            "variable": ["map", "hr", "hr"],
            "value": [1.0, float("nan"), None],
        },
        "notes": {"sample": [0, 1, 2], "hours_before": [1.0] * 3, "text": ["t", "", None]},
        "film": {"sample": [0, 1, 2], "hours_before": [1.0] * 3, "path": ["f.png", "", None]},
    }
    return samples, {name: pl.DataFrame(columns, strict=False) for name, columns in elements.items()}


def write(folder: Path, samples: pl.DataFrame, elements: dict[str, pl.DataFrame], **manifest: Any) -> Path:
    return write_store(folder, "tiny", "all", "f" * 64, TINY, samples, elements, manifest)


def test_elements_without_a_value_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, *tiny())
    assert path.name == store_name("tiny", "all", "f" * 64) == "tiny-all-" + "f" * 16
    store = RecordStore(path)
    for name in TINY.names:
        assert store.samples[f"observed/{name}"].to_list() == [True, False, False], name
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_modality_nobody_has(tmp_path: Path) -> None:
    samples, elements = tiny()
    store = RecordStore(write(tmp_path, samples, {name: frame.clear() for name, frame in elements.items()}))
    assert store.column("modality/labs.arrow", "values").shape == (0, 2)
    assert store.column("modality/monitor.arrow", "variable").shape == (0,)
    assert store.codes("codes") == []
    assert not any(store.samples[f"observed/{name}"].any() for name in TINY.names)


def with_column(
    name: str, column: str, values: Any, dtype: Any = None
) -> tuple[str, Callable[[pl.DataFrame], pl.DataFrame]]:
    return name, lambda frame: frame.with_columns(pl.Series(column, values, dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("samples", lambda f: f.drop("site", "label/early")), "samples: missing column site, label/early"),
        (("samples", lambda f: f.clear()), "no sample is left"),
        (with_column("samples", "patient", ["a", None, "c"]), "column 'patient' is null in 1 rows"),
        (with_column("samples", "patient", [1, 2, 3]), "column 'patient' is Int64 where String is needed"),
        (with_column("samples", "label/death", [1, 0, 1]), "column 'label/death' is Int64 where Boolean is needed"),
        (with_column("samples", "label/early", [True, True, None]), "'early' is positive in 1 rows where its parent"),
        (("labs", lambda f: f.drop("y")), "modality 'labs': missing column y"),
        (("notes", lambda f: f.drop("hours_before")), "modality 'notes': missing column hours_before"),
        (with_column("labs", "sample", [0, 1, 3]), "'labs': column 'sample' points outside the 3 samples"),
        (with_column("labs", "sample", [-1, 1, 2]), "'labs': column 'sample' points outside the 3 samples"),
        (with_column("labs", "sample", [0, None, 2]), "'labs': column 'sample' points outside the 3 samples"),
        (with_column("labs", "sample", [1, 0, 2]), "'labs': column 'sample' is not ascending"),
        (with_column("film", "hours_before", [1.0, -0.1, -2.0]), "'film': 2 elements lie after the prediction time"),
        (with_column("labs", "x", [1.0, float("inf"), None]), "'labs': column 'x' is infinite in 1 rows"),
        (with_column("labs", "x", [1.0, 1e300, None]), "'labs': column 'x' is infinite in 1 rows"),
        (with_column("monitor", "value", [float("-inf"), 1, 1]), "'monitor': column 'value' is infinite in 1 rows"),
        (with_column("monitor", "variable", ["map", "sp", "hr"]), "'monitor': 1 variables are not among its items"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_and_nothing_written(tmp_path: Path, change: Any, message: str) -> None:
    samples, elements = tiny()
    name, edit = change
    elements["monitor"] = elements["monitor"].with_columns(value=pl.lit(1.0))
    frames = {"samples": samples, **elements}
    frames[name] = edit(frames[name])
    with pytest.raises(StoreError, match=message):
        write(tmp_path / "stores", frames.pop("samples"), frames)
    assert list((tmp_path / "stores").iterdir()) == []


def test_an_item_cannot_take_the_name_of_a_column(tmp_path: Path) -> None:
    samples, elements = tiny()
    schema = RecordSchema((Modality("labs", "vector", ("sample", "x")),), TINY.tasks)
    with pytest.raises(StoreError, match="no item can be named 'sample'"):
        write_store(tmp_path, "tiny", "all", "f" * 64, schema, samples, elements, {})


def test_item_names_are_names_not_patterns(tmp_path: Path) -> None:
    samples, elements = tiny()
    schema = RecordSchema((Modality("labs", "vector", ("^x$", "*")),), TINY.tasks)
    labs = elements["labs"].rename({"x": "^x$", "y": "*"})
    store = RecordStore(write_store(tmp_path, "tiny", "all", "f" * 64, schema, samples, {"labs": labs}, {}))
    np.testing.assert_array_equal(store.column("modality/labs.arrow", "values"), [[1.0, np.nan]])


def test_the_manifest_keeps_its_own_entries(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="manifest: files cannot be given"):
        write(tmp_path, *tiny(), files=7)
    store = RecordStore(write(tmp_path, *tiny(), counts=[["labs", "rows", 3]]))
    assert store.manifest["counts"] == [["labs", "rows", 3]]


@pytest.mark.parametrize("step", ["_write_arrow", "_sha256", "_rename"])
def test_a_writer_that_dies_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    # a killed process cleans nothing up
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(store_module, step, die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, *tiny())
    monkeypatch.undo()
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".")
    if step != "_rename":
        with pytest.raises(StoreError, match="no record store"):
            RecordStore(half)
    # and whoever comes next is not in its way
    assert RecordStore(write(tmp_path, *tiny())).samples.height == 3


def test_a_store_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, *tiny())
    before, changed = contents(path), (path / "manifest.json").stat().st_mtime_ns
    assert write(tmp_path, *tiny()) == path
    assert contents(path) == before
    assert (path / "manifest.json").stat().st_mtime_ns == changed
    (path / "samples.arrow").unlink()
    with pytest.raises(StoreError, match=r"samples.arrow is missing; remove it"):
        write(tmp_path, *tiny())


def test_writers_that_start_together_leave_one_store(tmp_path: Path) -> None:
    samples, elements = tiny()
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: write(tmp_path, samples, elements), range(16)))
    (path,) = paths
    RecordStore(path).verify()
    assert list(tmp_path.iterdir()) == [path]


def break_file(path: Path, file: str, how: str, other: Path) -> None:
    target = path / file
    if how == "missing":
        target.unlink()
    elif how == "truncated":
        target.write_bytes(target.read_bytes()[:-8])
    elif how == "empty":
        target.write_bytes(b"")
    elif how == "rubbish":
        target.write_bytes(bytes(target.stat().st_size))
    else:
        shutil.copy(other / file, target)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "rubbish", "mixed"])
@pytest.mark.parametrize(
    "file",
    ["manifest.json", "samples.arrow", "modality/labs.arrow", "modality/codes.items.arrow", "modality/notes.arrow"],
)
def test_a_broken_store_does_not_open(tmp_path: Path, file: str, how: str) -> None:
    path = write(tmp_path, *tiny())
    other = write_store(tmp_path, "tiny", "all", "e" * 64, TINY, *tiny(), {})
    break_file(path, file, how, other)
    with pytest.raises(StoreError, match="tiny-all-f") as caught:
        RecordStore(path)
    assert how != "mixed" or "another store" in str(caught.value)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no record store"):
        RecordStore(tmp_path / "nowhere")
    path = write(tmp_path, *tiny())
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(StoreError, match="store format 99 where 1 is needed"):
        RecordStore(path)


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    path = write(tmp_path, *tiny())
    file = path / "modality" / "labs.arrow"
    data = bytearray(file.read_bytes())
    at = data.index(np.float32(1.0).tobytes(), len(data) // 3)
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"labs.arrow was changed"):
        RecordStore(path).verify()


def test_one_batch_of_arrow_a_file(tmp_path: Path, make_store: MakeStore) -> None:
    # a gather is one take from one array only if nothing splits the columns
    path = make_store(tmp_path)
    for file in path.rglob("*.arrow"):
        with pa.memory_map(str(file)) as mapped:
            assert pa.ipc.open_file(mapped).num_record_batches == 1, file.name
