"""What is fitted on training patients before a model exists: items, vocabularies, means, prevalences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from mmnar_lightning.records.schema import UNKNOWN, Modality, RecordSchema, Task, pattern_id
from mmnar_lightning.records.store import RecordStore

# values read at once (128 MiB as float64), so that memory does not grow with the store
CHUNK = 1 << 24
FREQUENT = 8


def fit_schema(
    store: RecordStore, schema: RecordSchema, train: np.ndarray[Any, Any], min_patients: int
) -> RecordSchema:
    """Fit items, vocabularies and statistics on training samples.

    An item or code is kept if at least `min_patients` training patients have it: rare strings identify people, and
    nothing can be learned from them.

    Args:
        store: The record store.
        schema: Its schema, or a part of it.
        train: int64 [n], the training samples.
        min_patients: Least number of training patients.

    Returns:
        The schema with `items`, `mean` and `std` of each modality, `prevalence` of each task and `patterns` filled in.
        Means and standard deviations are over training samples in which the value was measured (`vector`, `series`)
        or the modality was observed (`codes`: the share of samples with the code).

    Raises:
        ValueError: If no training sample is left.
    """
    if len(train) == 0:
        raise ValueError("no sample is left to train on; check the split settings")
    inside = np.zeros(len(store), dtype=bool)
    inside[train] = True
    patient = store.samples["patient"].rank("dense").to_numpy().astype(np.int64) - 1
    fit = {"vector": _fit_vector, "series": _fit_series, "codes": _fit_codes}
    fitted = [fit[m.kind](store, m, inside, patient, min_patients) if m.kind in fit else m for m in schema.modalities]
    tasks = tuple(_fit_task(store, t, train) for t in schema.tasks)
    return RecordSchema(tuple(fitted), tasks, _frequent_patterns(store, schema, train), len(train))


def _frequent_patterns(store: RecordStore, schema: RecordSchema, train: np.ndarray[Any, Any]) -> tuple[int, ...]:
    observed = store.samples[train].select(pl.col(f"observed/{name}") for name in schema.names).to_numpy()
    ids, counts = np.unique(pattern_id(torch.from_numpy(observed.astype(bool))).numpy(), return_counts=True)
    # ties go to the smaller id, so that the same train gives the same patterns
    return tuple(int(p) for p in ids[np.lexsort((ids, -counts))][:FREQUENT])


def _fit_task(store: RecordStore, task: Task, train: np.ndarray[Any, Any]) -> Task:
    label = store.samples[f"label/{task.name}"].gather(train).drop_nulls()
    return replace(task, prevalence=float(label.cast(pl.Float64).mean()) if len(label) else None)  # type: ignore[arg-type]


def _spread(total: np.ndarray[Any, Any], square: np.ndarray[Any, Any], n: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    mean = total / np.maximum(n, 1)
    std = np.sqrt(np.maximum(square / np.maximum(n, 1), 0.0))
    return mean, np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)


def _fit_vector(
    store: RecordStore, modality: Modality, inside: np.ndarray[Any, Any], patient: np.ndarray[Any, Any], least: int
) -> Modality:
    file = f"modality/{modality.name}.arrow"
    values, sample = store.column(file, "values"), store.column(file, "sample")
    rows = np.flatnonzero(inside[sample])
    # a patient counts once however many samples they have: mark the first row of each (patient, item)
    rows = rows[np.argsort(patient[sample[rows]], kind="stable")]
    width = values.shape[1]
    chunk = max(1, CHUNK // max(width, 1))
    n, people, total = np.zeros(width, np.int64), np.zeros(width, np.int64), np.zeros(width)
    last = np.full(width, -1)
    for at in range(0, len(rows), chunk):
        part = values[rows[at : at + chunk]].astype(np.float64)
        known = ~np.isnan(part)
        who = np.where(known, patient[sample[rows[at : at + chunk]]][:, None], -1)
        before = np.maximum.accumulate(np.vstack([last, who]), axis=0)
        people += (who > before[:-1]).sum(0)
        last = before[-1]
        n += known.sum(0)
        total += np.where(known, part, 0.0).sum(0)
    mean = total / np.maximum(n, 1)
    square = np.zeros(width)
    for at in range(0, len(rows), chunk):
        part = values[rows[at : at + chunk]].astype(np.float64)
        square += np.where(np.isnan(part), 0.0, part - mean).__pow__(2).sum(0)
    mean, std = _spread(total, square, n)
    keep = np.flatnonzero(people >= least)
    return replace(
        modality,
        items=tuple(modality.items[f] for f in keep),
        mean=tuple(float(mean[f]) for f in keep),
        std=tuple(float(std[f]) for f in keep),
    )


def _fit_series(
    store: RecordStore, modality: Modality, inside: np.ndarray[Any, Any], patient: np.ndarray[Any, Any], least: int
) -> Modality:
    file = f"modality/{modality.name}.arrow"
    sample, variable = store.column(file, "sample"), store.column(file, "variable")
    rows = np.flatnonzero(inside[sample])
    width = len(modality.items)
    index, value = variable[rows].astype(np.int64), store.column(file, "values")[rows].astype(np.float64)
    people = _people(index, patient[sample[rows]], width)
    n = np.bincount(index, minlength=width)
    total = np.bincount(index, value, width)
    square = np.bincount(index, (value - (total / np.maximum(n, 1))[index]) ** 2, width)
    mean, std = _spread(total, square, n)
    keep = np.flatnonzero(people >= least)
    return replace(
        modality,
        items=tuple(modality.items[f] for f in keep),
        mean=tuple(float(mean[f]) for f in keep),
        std=tuple(float(std[f]) for f in keep),
    )


def _fit_codes(
    store: RecordStore, modality: Modality, inside: np.ndarray[Any, Any], patient: np.ndarray[Any, Any], least: int
) -> Modality:
    file = f"modality/{modality.name}.arrow"
    sample, code = store.column(file, "sample"), store.column(file, "values")
    rows = np.flatnonzero(inside[sample])
    names = store.codes(modality.name)
    index = code[rows].astype(np.int64)
    people = _people(index, patient[sample[rows]], len(names))
    having = _people(index, sample[rows], len(names))
    n = len(np.unique(sample[rows]))
    keep = np.flatnonzero(people >= least)
    rare = np.setdiff1d(np.arange(len(names)), keep)
    unknown = len(np.unique(sample[rows][np.isin(index, rare)]))
    share = np.asarray([unknown, *having[keep]], dtype=np.float64) / max(n, 1)
    std = np.sqrt(share * (1 - share))
    return replace(
        modality,
        items=(UNKNOWN, *(names[k] for k in keep)),
        mean=tuple(float(p) for p in share),
        std=tuple(float(s) if s > 1e-6 else 1.0 for s in std),
    )


def _people(index: np.ndarray[Any, Any], who: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Number of distinct `who` for each index: int64 [width]."""
    many = int(who.max(initial=0)) + 1
    pairs = np.unique(index.astype(np.int64) * many + who.astype(np.int64))
    counted: np.ndarray[Any, Any] = np.bincount(pairs // many, minlength=width)
    return counted
