from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmnar_lightning.encoders.decoding import FORMATS, FilmReader
from mmnar_lightning.records import Elements, RecordStore
from mmnar_tables import TablesDataModule, images

Write = Callable[..., Path]


def opened(root: Path, **options: Any) -> RecordStore:
    return RecordStore(TablesDataModule(root, root.parent / "stores", **options).prepare_store())


def rows_of(store: RecordStore, modality: str) -> dict[Any, list[Any]]:
    """Elements of each sample, by original id: (hours, values), read back plainly."""
    file, frame = f"modality/{modality}.arrow", store.samples
    kind = store.schema.modality(modality).kind
    hours = store.column(file, "hours_before").tolist()
    if kind in ("text", "image"):
        values: list[Any] = store.strings(file).to_pylist()
    elif kind == "codes":
        values = [store.codes(modality)[k] for k in store.column(file, "values")]
    elif kind == "series":
        items = store.schema.modality(modality).items
        variables = [items[k] for k in store.column(file, "variable")]
        values = list(zip(variables, store.column(file, "values").tolist(), strict=True))
    else:
        values = store.column(file, "values").tolist()
    spans = zip(frame["id/sample_id"], frame[f"start/{modality}"], frame[f"stop/{modality}"], strict=True)
    return {sample: list(zip(hours[a:b], values[a:b], strict=True)) for sample, a, b in spans}


def same(found: Any, given: Any) -> bool:
    """Equality in which NaN equals NaN, through lists and tuples."""
    if isinstance(found, (list, tuple)):
        return len(found) == len(given) and all(same(f, g) for f, g in zip(found, given, strict=True))
    if isinstance(found, float) and math.isnan(found):
        return isinstance(given, float) and math.isnan(given)
    return bool(found == given)


NAN = float("nan")


def test_samples_come_back_in_the_order_of_their_file(write: Write) -> None:
    frame = opened(write()).samples
    assert frame["id/sample_id"].to_list() == ["s-2", "s-1", "s-3", "s-4"]
    assert frame["patient"].to_list() == ["7", "7", "8", "9"]
    assert frame["site"].to_list() == ["north", "north", None, "south"]
    assert frame["group/sex"].to_list() == ["F", "F", None, "M"]
    assert frame["split"].to_list() == ["train", "train", "test", "train"]
    assert frame["prediction_time"].to_list() == [24.0, 48.0, 24.0, 24.0]
    assert frame["label/readmission_90d"].to_list() == [True, True, None, False]
    assert frame["label/icu_90d"].to_list() == [True, False, None, False]


def test_every_value_comes_back_and_nothing_else(write: Write) -> None:
    root = write()
    store = opened(root)
    # the lone row of s-4 measures nothing and is no element; lactate is missing in two rows of the others
    labs = {
        "s-1": [(2.5, [140.0, 1.0]), (30.0, [138.0, NAN])],
        "s-3": [(0.0, [131.5, NAN])],
        "s-2": [(NAN, [NAN, 4.0])],
    }
    films = {"s-1": [(NAN, str(root / "films" / "a.png"))], "s-4": [(NAN, str(root / "films" / "b.png"))]}
    given: dict[str, dict[str, Any]] = {
        "labs": labs,
        "embedding": {"s-2": [(NAN, [0.25, -1.5, 3.0])], "s-4": [(NAN, [1.0, NAN, 0.5])]},
        "drugs": {"s-4": [(NAN, "B01"), (NAN, "A02"), (NAN, "A02")], "s-1": [(NAN, "A02")]},
        "vitals": {"s-1": [(1.0, ("heart_rate", 88.0)), (1.0, ("spo2", 97.0))]},
        "notes": {"s-2": [(NAN, "second sample"), (NAN, "again")]},
        "films": films,
    }
    for modality, wanted in given.items():
        found = rows_of(store, modality)
        observed = dict(zip(store.samples["id/sample_id"], store.samples[f"observed/{modality}"], strict=True))
        for sample in ("s-1", "s-2", "s-3", "s-4"):
            assert same(found[sample], wanted.get(sample, [])), (modality, sample)
            assert observed[sample] == (sample in wanted), (modality, sample)


def test_schema_names_items_and_tasks_in_the_order_written(write: Write) -> None:
    schema = opened(write()).schema
    assert schema.names == ("labs", "embedding", "drugs", "vitals", "notes", "films")
    assert schema.modality("labs").items == ("sodium", "lactate")
    assert schema.modality("embedding").items == ("values_0", "values_1", "values_2")
    assert schema.modality("vitals").items == ("heart_rate", "spo2")
    assert [(t.name, t.parent) for t in schema.tasks] == [("readmission_90d", None), ("icu_90d", "readmission_90d")]
    assert schema.tasks[1].horizon == "within 90 days"


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([4, 3, 2, 1], dtype=pl.UInt32),
        pl.Series([date(2020, 1, d) for d in (4, 1, 3, 2)]),
        pl.Series([datetime(2020, 1, 1, h) for h in (4, 1, 3, 2)]),
        pl.Series([b"\x00\xff", b"b", b"", b"a"]),
        pl.Series(["b", "a", "d", "c"], dtype=pl.Categorical),
        pl.Series([0.5, 1.5, 2.5, -1.0]),
    ],
    ids=lambda series: str(series.dtype),
)
def test_sample_ids_of_any_type(write: Write, sound: dict[str, pl.DataFrame], ids: pl.Series) -> None:
    names = {name: index for index, name in enumerate(sound["samples"]["sample_id"])}
    renamed = {
        table: frame.with_columns(ids.gather([names[s] for s in frame["sample_id"]]).alias("sample_id"))
        for table, frame in sound.items()
    }
    store = opened(write(**renamed))
    assert store.samples["id/sample_id"].to_list() == ids.to_list()
    assert store.samples["observed/labs"].to_list() == [True, True, True, False]
    assert store.samples["observed/drugs"].to_list() == [False, True, False, True]


def test_whole_numbers_of_another_width_are_the_same_id(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    narrow = {"s-2": 2, "s-1": 1, "s-3": 3, "s-4": 4}
    changed = {
        table: frame.with_columns(pl.col("sample_id").replace_strict(narrow, return_dtype=dtype))
        for (table, frame), dtype in zip(sound.items(), [pl.Int32] + [pl.UInt64] * 6, strict=True)
    }
    assert opened(write(**changed)).samples["observed/labs"].to_list() == [True, True, True, False]


@pytest.mark.parametrize(
    "labels",
    [
        pl.Series([1, 1, None, 0], dtype=pl.Int8),
        pl.Series([1.0, 1.0, NAN, 0.0]),
        pl.Series([True, True, None, False]),
    ],
    ids=lambda series: str(series.dtype),
)
def test_labels_may_be_numbers_and_null_stays_unknown(
    write: Write, sound: dict[str, pl.DataFrame], labels: pl.Series
) -> None:
    samples = sound["samples"].with_columns(labels.alias("readmission_90d"))
    assert opened(write(samples=samples)).samples["label/readmission_90d"].to_list() == [True, True, None, False]


def test_codes_may_be_one_a_row(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    found = rows_of(opened(write(drugs=sound["drugs"].explode("code"))), "drugs")
    assert same(found["s-4"], [(NAN, "B01"), (NAN, "A02"), (NAN, "A02")])


def test_a_fixed_size_list_is_a_vector(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    fixed = sound["embedding"].with_columns(pl.col("values").cast(pl.Array(pl.Float32, 3)))
    found = rows_of(opened(write(embedding=fixed)), "embedding")
    assert same(found["s-2"], [(NAN, [0.25, -1.5, 3.0])])


def test_prediction_times_may_be_absent_or_dated(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    store = opened(write(samples=sound["samples"].drop("prediction_time", "site", "split")))
    assert store.samples["prediction_time"].null_count() == 4
    assert store.samples["site"].null_count() == 4
    assert "split" not in store.samples.columns


def test_unreadable_films_are_counted_and_are_no_element(write: Write) -> None:
    root = write()
    whole = (root / "films" / "a.png").read_bytes()
    (root / "films" / "a.png").write_bytes(whole[: len(whole) // 2])
    store = opened(root)
    assert store.samples["observed/films"].to_list() == [False, False, False, True]
    assert ["films", "unreadable images", 1] in store.manifest["counts"]
    (root / "films" / "a.png").write_bytes(whole)
    again = opened(root)
    assert again.path != store.path  # the film that was replaced makes another store
    assert again.samples["observed/films"].to_list() == [False, True, False, True]


def test_what_is_readable_is_what_the_reader_of_films_reads(tmp_path: Path) -> None:
    assert images.FORMATS == FORMATS
    assert inspect.signature(FilmReader).parameters["max_pixels"].default == images.MAX_PIXELS
    large, small = Image.new("L", (10_001, 5_000)), Image.new("L", (10_000, 5_000))
    large.save(tmp_path / "large.png")
    small.save(tmp_path / "small.png")
    large.save(tmp_path / "large.jpg")
    large.save(tmp_path / "progressive.jpg", progressive=True)
    Image.new("L", (16, 16)).save(tmp_path / "icon.ico")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:5000])
    (tmp_path / "cut.png").write_bytes((tmp_path / "small.png").read_bytes()[:500])
    expected = {"large.png": False, "small.png": True, "large.jpg": True, "progressive.jpg": False}
    expected |= {"icon.ico": False, "cut.jpg": False, "cut.png": False}
    paths = [tmp_path / name for name in expected]
    assert dict(zip(expected, images.all_readable(paths), strict=True)) == expected
    reader = FilmReader("films", (1, 64, 64), 0.875, "center", "bilinear", unreadable="count")
    for path in paths:
        found = reader(Elements(torch.zeros(1, dtype=torch.int64), torch.zeros(1), (str(path),)))
        assert len(found.row) == expected[path.name], path.name


def test_what_is_not_read_is_counted(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    store = opened(write(samples=sound["samples"].with_columns(remark=pl.lit("x"))))
    assert ["samples", "columns not read", 1] in store.manifest["counts"]
    assert ["labs", "rows without a value", 1] in store.manifest["counts"]
    assert ["labs", "rows read", 5] in store.manifest["counts"]
    assert not any("remark" in column for column in store.samples.columns)


def test_the_same_folder_is_prepared_once_and_a_change_makes_another_store(
    write: Write, sound: dict[str, pl.DataFrame], schema: dict[str, Any]
) -> None:
    root = write()
    first = opened(root)
    before = {p: p.stat().st_mtime_ns for p in first.path.rglob("*")}
    assert opened(root).path == first.path
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*")} == before
    sound["labs"].with_columns(pl.col("sodium") + 1).write_parquet(root / "labs.parquet")
    second = opened(root)
    assert second.path != first.path
    assert rows_of(second, "labs")["s-3"][0][1][0] == 132.5


def test_given_splits_are_used(write: Write, sound: dict[str, pl.DataFrame]) -> None:
    from mmnar_lightning.records import SPLITS, SplitSettings

    root = write()
    splits = SplitSettings(by="given", val=0.0, calibration=0.0)
    data = TablesDataModule(root, root.parent / "stores", splits=splits, min_patients=1)
    assert [SPLITS[k] for k in data.split] == ["train", "train", "test", "train"]
    assert np.flatnonzero(data.split == 3).tolist() == [2]


row = st.fixed_dictionaries(
    {
        "sample_id": st.integers(0, 5),
        "hours_before": st.none() | st.floats(0, 1e4, width=32),
        "a": st.none() | st.floats(-1e6, 1e6, width=32),
        "b": st.none() | st.integers(-(2**20), 2**20),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), rows=st.lists(row, min_size=1, max_size=12))
def test_any_rows_in_any_order_come_back(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], rows: list[dict[str, Any]]
) -> None:
    root = tmp_path_factory.mktemp("tables") / "t"
    root.mkdir()
    pl.DataFrame({"sample_id": order, "patient_id": order, "y": [k % 2 for k in order]}).write_parquet(
        root / "samples.parquet"
    )
    types = {"sample_id": pl.Int64, "hours_before": pl.Float64, "a": pl.Float64, "b": pl.Int32}
    pl.DataFrame(rows, schema=types).write_parquet(root / "labs.parquet")
    (root / "schema.yaml").write_text(
        "dataset: any\ntasks: {y: }\nmodalities: {labs: {kind: vector}}\n", encoding="utf-8"
    )
    store = opened(root)
    found = rows_of(store, "labs")
    nan = [(r["sample_id"], *(NAN if r[c] is None else float(r[c]) for c in ("hours_before", "a", "b"))) for r in rows]
    for sample in range(6):
        wanted = [(h, [a, b]) for s, h, a, b in nan if s == sample and not (math.isnan(a) and math.isnan(b))]
        assert same(found[sample], wanted)
