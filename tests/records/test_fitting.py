from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mmnar_lightning.records.fitting as fitting
from mmnar_lightning.records import UNKNOWN, Modality, RecordSchema, RecordStore, Task, fit_schema, write_store

Records = Any
MakeRecords = Callable[..., Records]
MakeStore = Callable[..., Path]
LEAST = 30


def reference(records: Records, train: list[int], least: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of each kept item, by modality, in plain Python."""
    inside, patient = set(train), records.samples["patient"].to_list()
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for modality in records.schema.modalities:
        rows = [r for r in records.elements[modality.name].iter_rows(named=True) if r["sample"] in inside]
        values: dict[str, list[float]] = defaultdict(list)
        people: dict[str, set[str]] = defaultdict(set)
        having: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            if modality.kind == "vector":
                measured = {i: row[i] for i in modality.items if row[i] is not None}
            elif modality.kind == "series":
                measured = {row["variable"]: row["value"]}
            else:
                measured = {row.get("code"): 1.0}
            for item, value in measured.items():
                values[item].append(value)
                people[item].add(patient[row["sample"]])
                having[item].add(row["sample"])
        kept = {item for item in people if item is not None and len(people[item]) >= least}
        if modality.kind == "codes":
            n = len({r["sample"] for r in rows})
            rare = set().union(*(having[i] for i in having if i not in kept))
            shares = {UNKNOWN: len(rare) / n, **{i: len(having[i]) / n for i in sorted(kept)}}
            found[modality.name] = {i: (p, (p * (1 - p)) ** 0.5 or 1.0) for i, p in shares.items()}
        elif modality.kind in ("vector", "series"):
            found[modality.name] = {
                i: (statistics.fmean(values[i]), statistics.pstdev(values[i]) or 1.0)
                for i in modality.items
                if i in kept
            }
        else:
            found[modality.name] = {}
    return found


@pytest.mark.parametrize("chunk", [1, 37, 1 << 24])
def test_statistics_agree_with_plain_python(
    tmp_path: Path, make_records: MakeRecords, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(fitting, "CHUNK", chunk)
    records, store = make_records(), RecordStore(make_store(tmp_path))
    train = [k for k in range(len(store)) if k % 3]
    fitted = fit_schema(store, store.schema, np.asarray(train), LEAST)
    expected = reference(records, train, LEAST)
    kept = {}
    for modality in fitted.modalities:
        facts = expected[modality.name]
        assert modality.items == tuple(facts), modality.name
        np.testing.assert_allclose(modality.mean, [m for m, _ in facts.values()], rtol=1e-9)
        np.testing.assert_allclose(modality.std, [s for _, s in facts.values()], rtol=1e-9)
        kept[modality.name] = len(modality.items)
    # or else the threshold would have been put to no test
    assert 1 < kept["diagnoses"] < 1 + len(store.codes("diagnoses"))
    for task in fitted.tasks:
        labels = [v for v in (records.samples[f"label/{task.name}"][k] for k in train) if v is not None]
        assert task.prevalence == pytest.approx(sum(labels) / len(labels))
    observed = store.samples.select(f"observed/{name}" for name in fitted.names)
    counts = Counter(sum(o << m for m, o in enumerate(observed.row(k))) for k in train)
    assert fitted.patterns == tuple(sorted(counts, key=lambda p: (-counts[p], p))[:8])


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.integers(0, 5), st.none() | st.integers(-2, 2), st.none() | st.integers(-2, 2)), min_size=1
    ),
    chunk=st.integers(1, 9),
    least=st.integers(1, 4),
)
# one person in two chunks is one person
@example(values=[(0, 1, None), (0, 1, None)], chunk=2, least=2)
def test_a_patient_counts_once(
    tmp_path_factory: Any, values: list[tuple[int, Any, Any]], chunk: int, least: int
) -> None:
    # patients in any order, several samples each: the count of people must not see how their rows are cut into chunks
    schema = RecordSchema((Modality("labs", "vector", ("x", "y")),), (Task("death"),))
    n = len(values)
    samples = pl.DataFrame(
        {
            "patient": [f"p{p}" for p, _, _ in values],
            "site": ["s"] * n,
            "prediction_time": [0.0] * n,
            "label/death": [True] * n,
        }
    )
    frame = pl.DataFrame(
        [(k, 1.0, x, y) for k, (_, x, y) in enumerate(values)],
        schema={"sample": pl.Int64, "hours_before": pl.Float32, "x": pl.Float32, "y": pl.Float32},
        orient="row",
    )
    folder = tmp_path_factory.mktemp("fit")
    store = RecordStore(write_store(folder, "tiny", "all", "f" * 16, schema, samples, {"labs": frame}, {}))
    before, fitting.CHUNK = fitting.CHUNK, chunk
    try:
        fitted = fit_schema(store, schema, np.arange(n), least)
    finally:
        fitting.CHUNK = before
    people = [len({v[0] for v in values if v[1 + k] is not None}) for k in range(2)]
    assert fitted.modality("labs").items == tuple(i for i, p in zip("xy", people, strict=True) if p >= least)


def test_other_rows_move_nothing(tmp_path: Path, make_records: MakeRecords, make_store: MakeStore) -> None:
    records = make_records()
    n = records.samples.height
    train = [k for k in range(n) if k % 3]
    others = ~pl.col("sample").is_in(train)
    changed = {
        "vitals": records.elements["vitals"].with_columns(
            pl.when(others).then(pl.col("heart_rate") * 1000).otherwise("heart_rate").alias("heart_rate")
        ),
        # codes that nobody in train has, some of which sort before all others
        "diagnoses": records.elements["diagnoses"].with_columns(
            pl.when(others).then(pl.lit("a_") + pl.col("code")).otherwise("code").alias("code")
        ),
        "monitor": records.elements["monitor"].with_columns(
            pl.when(others).then(-99).otherwise("value").cast(pl.Float32).alias("value")
        ),
        "labs": records.elements["labs"].filter(~others),
        "notes": records.elements["notes"].filter(~others),
    }
    samples = records.samples.with_columns(
        pl.when(pl.int_range(n).is_in(train))
        .then("patient")
        .otherwise(pl.lit("a") + pl.col("patient"))
        .alias("patient"),
        pl.when(pl.int_range(n).is_in(train)).then("label/readmission").alias("label/readmission"),
    )
    changed_records = replace(records, samples=samples, elements=changed)
    first = RecordStore(make_store(tmp_path / "a", records=records))
    second = RecordStore(make_store(tmp_path / "b", records=changed_records))
    assert fit_schema(first, first.schema, np.asarray(train), 10) == fit_schema(
        second, second.schema, np.asarray(train), 10
    )
    # the test would pass on anything if the change did not reach the statistics
    assert fit_schema(first, first.schema, np.arange(n), 10) != fit_schema(second, second.schema, np.arange(n), 10)


def test_constant_values_and_nothing_measured(tmp_path: Path) -> None:
    schema = RecordSchema(
        (
            Modality("labs", "vector", ("same", "never")),
            Modality("codes", "codes"),
            Modality("monitor", "series", ("hr",)),
        ),
        (Task("death"),),
    )
    samples = pl.DataFrame(
        {
            "patient": ["a", "b"],
            "site": ["s"] * 2,
            "prediction_time": [0.0] * 2,
            "label/death": pl.Series([None, None], dtype=pl.Boolean),
        }
    )
    elements = {
        "labs": pl.DataFrame({"sample": [0, 1], "hours_before": [1.0] * 2, "same": [1e6] * 2, "never": [None] * 2}),
        "codes": pl.DataFrame({"sample": [0, 1], "hours_before": [1.0] * 2, "code": ["x"] * 2}),
        "monitor": pl.DataFrame({"sample": [], "hours_before": [], "variable": [], "value": []}),
    }
    elements["monitor"] = elements["monitor"].cast({"sample": pl.Int64, "variable": pl.String})
    store = RecordStore(write_store(tmp_path, "tiny", "all", "f" * 16, schema, samples, elements, {}))
    fitted = fit_schema(store, schema, np.arange(2), 1)
    assert fitted.modality("labs").items == ("same",)
    assert fitted.modality("labs").std == (1.0,)
    assert fitted.modality("codes") == Modality("codes", "codes", (UNKNOWN, "x"), (0.0, 1.0), (1.0, 1.0))
    assert fitted.modality("monitor") == Modality("monitor", "series")
    assert fitted.tasks[0].prevalence is None
    with pytest.raises(ValueError, match="no sample is left to train on"):
        fit_schema(store, schema, np.arange(0), 1)
