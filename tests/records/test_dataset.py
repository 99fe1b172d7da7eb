from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmnar_lightning.records import (
    UNKNOWN,
    Elements,
    Modality,
    PatientBatch,
    RecordDataset,
    RecordSchema,
    RecordStore,
    StoreError,
    Task,
    fit_schema,
    write_store,
)

Records = Any
MakeRecords = Callable[..., Records]
MakeStore = Callable[..., Path]


def naive(records: Records, schema: RecordSchema, sample: list[int]) -> dict[str, list[tuple[Any, ...]]]:
    """Elements of each modality as (row, hours, value, variable), read one sample at a time from the frames."""
    found: dict[str, list[tuple[Any, ...]]] = {m.name: [] for m in schema.modalities}
    for modality in schema.modalities:
        frame = records.elements.get(modality.name)
        for row, s in enumerate(sample if frame is not None else []):
            for element in frame.filter(pl.col("sample") == s).iter_rows(named=True):
                variable = None
                if modality.kind == "vector":
                    if all(element[i] is None for i in records.schema.modality(modality.name).items):
                        continue
                    value: Any = [element.get(i) for i in modality.items]
                elif modality.kind == "codes":
                    value = modality.items.index(element["code"]) if element["code"] in modality.items else 0
                elif modality.kind == "series":
                    if element["variable"] not in modality.items:
                        continue
                    value, variable = element["value"], modality.items.index(element["variable"])
                else:
                    value = element["text"]
                found[modality.name].append((row, element["hours_before"], value, variable))
    return found


def assert_same(elements: Elements, expected: list[tuple[Any, ...]], modality: Modality) -> None:
    row, hours, value, variable = list(zip(*expected, strict=True)) or ((), (), (), ())
    assert elements.row.dtype == torch.int64
    assert elements.hours_before.dtype == torch.float32
    assert elements.row.tolist() == list(row)
    np.testing.assert_array_equal(elements.hours_before, np.asarray(hours, dtype=np.float32))
    if isinstance(elements.values, tuple):
        assert elements.values == value
        return
    assert elements.values.dtype == (torch.int64 if modality.kind == "codes" else torch.float32)
    shape = (len(row), len(modality.items)) if modality.kind == "vector" else (len(row),)
    np.testing.assert_array_equal(elements.values, np.asarray(value, dtype=np.float32).reshape(shape))
    if modality.kind == "series":
        assert elements.variable is not None
        assert elements.variable.dtype == torch.int64
        assert elements.variable.tolist() == list(variable)
    else:
        assert elements.variable is None


def assert_batch(batch: PatientBatch, records: Records, schema: RecordSchema, sample: list[int]) -> None:
    expected = naive(records, schema, sample)
    assert list(batch.elements) == list(schema.names)
    for modality in schema.modalities:
        assert_same(batch.elements[modality.name], expected[modality.name], modality)
    assert batch.sample.tolist() == sample
    assert batch.sample.dtype == torch.int64
    assert batch.observed.dtype == batch.labelled.dtype == torch.bool
    assert batch.targets.dtype == torch.float32
    for k, task in enumerate(schema.task_names):
        column = f"label/{task}"
        labels = [records.samples[column][s] if column in records.samples.columns else None for s in sample]
        assert batch.labelled[:, k].tolist() == [v is not None for v in labels]
        assert batch.targets[:, k].tolist() == [float(v or 0) for v in labels]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> RecordStore:
    return RecordStore(make_store(tmp_path_factory.mktemp("stores"), n_patients=80))


@pytest.fixture(scope="module")
def records(make_records: MakeRecords) -> Records:
    return make_records(80)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_gather_is_what_one_reads_sample_by_sample(store: RecordStore, records: Records, data: st.DataObject) -> None:
    samples = np.arange(len(store))[::-1]
    rows = data.draw(st.lists(st.integers(0, len(store) - 1), max_size=12))
    fitted = fit_schema(store, store.schema, samples, data.draw(st.sampled_from([1, 25])))
    batch = RecordDataset(store, fitted, samples).__getitems__(rows)
    assert len(batch) == len(rows)
    assert_batch(batch, records, fitted, [int(samples[r]) for r in rows])


def test_what_is_not_observed_has_no_row(store: RecordStore, records: Records) -> None:
    schema = fit_schema(store, store.schema, np.arange(len(store)), 1)
    batch = RecordDataset(store, schema, np.arange(len(store))).__getitems__(range(len(store)))
    assert batch.observed[0].all()
    assert not batch.observed[1].any()
    for m, name in enumerate(schema.names):
        elements, observed = batch.elements[name], batch.observed[:, m]
        assert set(elements.row.tolist()) == set(observed.nonzero()[:, 0].tolist()), name
        assert 0 < int(observed.sum()) < len(batch)
        for field in (elements.row, elements.hours_before, elements.values, elements.variable):
            assert field is None or len(field) == records.elements[name].height
    # nor anything else a value could hide in
    assert set(vars(batch)) == {"elements", "observed", "targets", "labelled", "sample"}


def test_nothing_one_and_a_modality_absent_from_the_batch(store: RecordStore, records: Records) -> None:
    schema = fit_schema(store, store.schema, np.arange(len(store)), 1)
    dataset = RecordDataset(store, schema, np.arange(len(store)))
    no_labs = np.flatnonzero(~store.samples["observed/labs"].to_numpy())[:5].tolist()
    for rows in ([], [1], [0], [1, 1], no_labs):
        assert_batch(dataset.__getitems__(rows), records, schema, rows)
    assert_batch(dataset[3], records, schema, [3])
    assert len(dataset) == len(store)


def test_a_batch_is_the_callers_own(store: RecordStore) -> None:
    schema = fit_schema(store, store.schema, np.arange(len(store)), 1)
    dataset = RecordDataset(store, schema, np.arange(len(store)))
    first = dataset.__getitems__([0, 2])
    for elements in first.elements.values():
        for field in (elements.row, elements.hours_before, elements.values, elements.variable):
            if isinstance(field, torch.Tensor):
                field.zero_()
    first.targets.fill_(9)
    first.sample.fill_(9)
    assert dataset.__getitems__([0, 2]).elements["vitals"].values.nansum() != 0  # type: ignore[union-attr]
    assert dataset.__getitems__([0, 2]).sample.tolist() == [0, 2]
    assert dataset.__getitems__([0, 2]).targets.max() <= 1


def test_a_schema_is_mapped_by_name(store: RecordStore, records: Records) -> None:
    # a checkpoint of another source: other order, missing and further items, codes, variables, modalities and tasks
    schema = RecordSchema(
        (
            Modality("monitor", "series", ("map", "cvp", "heart_rate")),
            Modality("film", "image"),
            Modality("reports", "text"),
            Modality("waves", "series", ("ecg",)),
            Modality("procedures", "codes", (UNKNOWN, "x")),
            Modality("genes", "vector", ("g1", "g2")),
            Modality("vitals", "vector", ("gcs", "etco2", "heart_rate")),
            Modality("diagnoses", "codes", (UNKNOWN, "code_07", "code_99", "code_01")),
        ),
        (Task("readmission"), Task("shock"), Task("death")),
    )
    sample = list(range(30))
    batch = RecordDataset(store, schema, np.arange(len(store))).__getitems__(sample)
    assert_batch(batch, records, schema, sample)
    values = batch.elements["vitals"].values
    assert isinstance(values, torch.Tensor)
    assert values[:, 1].isnan().all()
    assert not values[:, 2].isnan().any()
    for name in ("film", "reports", "waves", "procedures", "genes"):
        assert not batch.observed[:, schema.names.index(name)].any()
    assert batch.elements["genes"].values.shape == (0, 2)  # type: ignore[union-attr]
    assert not batch.labelled[:, 1].any()


def test_another_kind_is_an_error(store: RecordStore) -> None:
    schema = RecordSchema((Modality("labs", "codes", (UNKNOWN,)),), (Task("death"),))
    with pytest.raises(
        StoreError, match=r"'labs' is of kind 'vector' in synthetic-all-.*, but the model takes 'codes'"
    ):
        RecordDataset(store, schema, np.arange(3))


def test_travels_to_a_spawned_worker(store: RecordStore, records: Records) -> None:
    schema = fit_schema(store, store.schema, np.arange(len(store)), 1)
    pickled = pickle.dumps(RecordDataset(store, schema, np.arange(9)))
    assert len(pickled) < 10_000  # the path, not the values
    assert_batch(pickle.loads(pickled).__getitems__([0, 4]), records, schema, [0, 4])


def test_a_store_with_modalities_that_nobody_has(tmp_path: Path, records: Records) -> None:
    empty = {name: frame.clear() for name, frame in records.elements.items()}
    path = write_store(tmp_path, "none", "all", "f" * 16, records.schema, records.samples, empty, {})
    store = RecordStore(path)
    batch = RecordDataset(store, store.schema, np.arange(len(store))).__getitems__([0, 1])
    assert not batch.observed.any()
    assert [len(e.row) for e in batch.elements.values()] == [0] * 5
    assert batch.elements["vitals"].values.shape == (0, 6)  # type: ignore[union-attr]
    assert batch.elements["notes"].values == ()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4), min_size=1, max_size=8)
)
def test_ragged_elements(tmp_path_factory: pytest.TempPathFactory, ragged: list[list[float]]) -> None:
    n = len(ragged)
    samples = pl.DataFrame(
        {
            "patient": [str(k) for k in range(n)],
            "site": ["s"] * n,
            "prediction_time": [0.0] * n,
            "label/death": [True] * n,
        }
    )
    flat = [(k, float(j), v) for k, values in enumerate(ragged) for j, v in enumerate(values)]
    types = {"sample": pl.Int64, "hours_before": pl.Float32, "x": pl.Float32}
    schema = RecordSchema((Modality("m", "vector", ("x",)),), (Task("death"),))
    folder = tmp_path_factory.mktemp("ragged")
    elements = {"m": pl.DataFrame(flat, schema=types, orient="row")}
    store = RecordStore(write_store(folder, "ragged", "all", "f" * 16, schema, samples, elements, {}))
    batch = RecordDataset(store, schema, np.arange(n)).__getitems__(list(range(n)))
    taken = batch.elements["m"]
    assert isinstance(taken.values, torch.Tensor)
    assert [taken.values[taken.row == k, 0].tolist() for k in range(n)] == ragged
    assert batch.observed[:, 0].tolist() == [bool(v) for v in ragged]
