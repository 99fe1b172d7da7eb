"""A batch of samples in one gather from the mapped store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmnar_lightning.records.batch import Elements, IndexReader, PatientBatch, Reader, read
from mmnar_lightning.records.schema import Modality, RecordSchema
from mmnar_lightning.records.store import RecordStore, StoreError

Array = np.ndarray[Any, Any]
# first element and number of elements of each row of a batch, int64 [B] each → the elements
Gather = Callable[[Array, Array], Elements]


class RecordDataset(Dataset[PatientBatch]):
    """Samples of a store, seen through a schema: `dataset.__getitems__(rows)` is one `PatientBatch`.

    The schema's items and codes are found in the store by name: an item the store lacks is NaN, a modality it lacks is
    unobserved, a code the schema lacks is ``<unknown>``, a task it lacks is unlabelled.

    Args:
        store: Where the values are.
        schema: What the model takes.
        samples: int64 [n], the samples of the store that belong to this dataset, in order.
        readers: What opens files, by modality; without one the batch holds their names.
        folders: Where relative file names of an `image` modality lie, by modality.

    Raises:
        StoreError: If a modality is of another kind in the store than in the schema.
    """

    def __init__(
        self,
        store: RecordStore,
        schema: RecordSchema,
        samples: Array,
        readers: Mapping[str, Reader] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self.store, self.schema, self.samples = store, schema, samples
        self.readers, self.folders = dict(readers or {}), dict(folders or {})
        frame = store.samples
        labels = [
            frame[f"label/{t}"].cast(pl.Float32).to_numpy()
            if f"label/{t}" in frame.columns
            else np.full(len(store), np.nan)
            for t in schema.task_names
        ]
        self._labels = np.stack(labels, axis=1).astype(np.float32)
        self._spans = {
            name: (store.column("samples.arrow", f"start/{name}"), store.column("samples.arrow", f"stop/{name}"))
            for name in schema.names
            if name in store.schema.names
        }
        self._gather = [self._reader(m) for m in schema.modalities]

    def check_folders(self) -> None:
        """Look whether the files are there that the readers will open; else each would be counted as unreadable.

        Raises:
            StoreError: If a folder is not there.
        """
        for name, folder in self.folders.items():
            opened = name in self.readers and not isinstance(self.readers[name], IndexReader)
            if opened and not folder.is_dir():
                raise StoreError(f"modality {name!r}: the folder of its files is not there: {folder}")

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[type[RecordDataset], tuple[Any, ...]]:
        # a worker that is spawned rather than forked maps the store itself
        return (RecordDataset, (self.store, self.schema, self.samples, self.readers, self.folders))

    def __getitem__(self, row: int) -> PatientBatch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> PatientBatch:
        """Gather the batch of these rows (possibly none), files opened where there is a reader."""
        sample = self.samples[np.asarray(rows, dtype=np.int64)]
        observed = np.zeros((len(sample), len(self.schema.modalities)), dtype=bool)
        elements = {}
        for m, (modality, gather) in enumerate(zip(self.schema.modalities, self._gather, strict=True)):
            start = count = np.zeros(len(sample), dtype=np.int64)
            if (span := self._spans.get(modality.name)) is not None:
                start = span[0][sample]
                count = span[1][sample] - start
                np.greater(count, 0, out=observed[:, m])
            elements[modality.name] = gather(start, count)
        target = self._labels[sample]
        labelled = ~np.isnan(target)
        batch = PatientBatch(
            elements=elements,
            observed=torch.from_numpy(observed),
            targets=torch.from_numpy(np.where(labelled, target, np.float32(0))),
            labelled=torch.from_numpy(labelled),
            sample=torch.from_numpy(sample),
        )
        return read(batch, self.readers)

    def _reader(self, modality: Modality) -> Gather:
        if modality.name not in self.store.schema.names:
            return _nothing(modality)
        there = self.store.schema.modality(modality.name)
        if there.kind != modality.kind:
            raise StoreError(
                f"modality {modality.name!r} is of kind {there.kind!r} in {self.store.path.name}, "
                f"but the model takes {modality.kind!r}"
            )
        store, file = self.store, f"modality/{modality.name}.arrow"
        hours = store.column(file, "hours_before")
        indexed = modality.kind in ("text", "image")
        if indexed:
            strings = store.strings(file)
            values: Callable[[Array], Tensor | tuple[str, ...]] = lambda e: tuple(strings.take(e).to_pylist())  # noqa: E731
            if modality.kind == "image" and (folder := self.folders.get(modality.name)) is not None:
                # an absolute name stays as it is
                values = lambda e: tuple(str(folder / name) for name in strings.take(e).to_pylist())  # noqa: E731
        elif modality.kind == "vector":
            values = _columns(store.column(file, "values"), there.items, modality.items)
        elif modality.kind == "codes":
            values = _lookup(store.column(file, "values"), store.codes(modality.name), modality.items)
        else:
            return self._series(modality, there)

        def gather(start: Array, count: Array) -> Elements:
            row, element = _elements(start, count)
            index = torch.from_numpy(element) if indexed else None
            # readers come with the model, after this was made
            taken = () if isinstance(self.readers.get(modality.name), IndexReader) else values(element)
            return Elements(torch.from_numpy(row), torch.from_numpy(hours[element]), taken, index=index)

        return gather

    def _series(self, modality: Modality, there: Modality) -> Gather:
        file = f"modality/{modality.name}.arrow"
        hours, value = self.store.column(file, "hours_before"), self.store.column(file, "values")
        variable = self.store.column(file, "variable")
        where = {item: k for k, item in enumerate(modality.items)}
        known = np.asarray([where.get(item, -1) for item in there.items], dtype=np.int64)

        def gather(start: Array, count: Array) -> Elements:
            row, element = _elements(start, count)
            index = known[variable[element]]
            kept = index >= 0
            row, element, index = row[kept], element[kept], index[kept]
            columns = (row, hours[element], value[element], index)
            return Elements(*(torch.from_numpy(c) for c in columns))

        return gather


def _elements(start: Array, count: Array) -> tuple[Array, Array]:
    """Batch rows and elements of the spans [start, start + count): int64 [E] each."""
    row = np.repeat(np.arange(len(start)), count)
    if len(row) == len(start) and bool((count == 1).all()):
        return row, start
    first = np.cumsum(count) - count
    return row, np.arange(len(row)) + np.repeat(start - first, count)


def _columns(values: Array, there: Sequence[str], wanted: Sequence[str]) -> Callable[[Array], Tensor]:
    where = {item: k for k, item in enumerate(there)}
    column = np.asarray([where.get(item, -1) for item in wanted], dtype=np.int64)
    if len(column) == values.shape[1] and bool((column == np.arange(len(column))).all()):
        return lambda element: torch.from_numpy(values[element])
    index, missing = torch.from_numpy(np.maximum(column, 0)), torch.from_numpy(column < 0)
    anything_missing = bool(missing.any())

    def gather(element: Array) -> Tensor:
        taken = torch.from_numpy(values[element]).index_select(1, index)
        return taken.masked_fill(missing, torch.nan) if anything_missing else taken

    return gather


def _lookup(values: Array, there: Sequence[str], vocabulary: Sequence[str]) -> Callable[[Array], Tensor]:
    where = {code: k for k, code in enumerate(vocabulary)}
    index = np.asarray([where.get(code, 0) for code in there], dtype=np.int64)
    return lambda element: torch.from_numpy(index[values[element]])


def _nothing(modality: Modality) -> Gather:
    row, hours = torch.empty(0, dtype=torch.int64), torch.empty(0)
    empty: dict[str, Tensor | tuple[str, ...]] = {
        "vector": torch.empty(0, len(modality.items)),
        "codes": torch.empty(0, dtype=torch.int64),
        "series": torch.empty(0),
    }
    variable = torch.empty(0, dtype=torch.int64) if modality.kind == "series" else None
    return lambda _start, _count: Elements(row, hours, empty.get(modality.kind, ()), variable)
