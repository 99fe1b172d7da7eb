"""Samples a second of the record loader against `index_select` on resident tensors, the fastest a batch can be made.

Run: ``python benchmarks/loading.py [--samples 20000] [--out benchmarks/results/loading.json]``. Each way is timed in
turn, several rounds, and the best round of each is kept, since other work on the machine only ever slows one down.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from measuring import RESULTS, least_seconds, machine, peak_rss_gib, save

from mmnar_lightning.records import (
    EpochBatches,
    Modality,
    RecordDataset,
    RecordLoader,
    RecordSchema,
    RecordStore,
    Task,
    write_store,
)

FLOATS = 2605
BATCH = 256
TARGET = 0.7


def write_samples(folder: Path, n: int) -> Path:
    """Write a store of n samples with one vector of 2,605 floats each."""
    items = tuple(f"x{f}" for f in range(FLOATS))
    schema = RecordSchema((Modality("values", "vector", items),), (Task("outcome"),))
    values = np.random.default_rng(0).normal(size=(n, FLOATS)).astype(np.float32)
    samples = pl.DataFrame(
        {
            "patient": [f"p{k}" for k in range(n)],
            "site": ["s"] * n,
            "prediction_time": np.zeros(n),
            "label/outcome": np.arange(n) % 2 == 0,
        }
    )
    columns = {"sample": np.arange(n), "hours_before": np.zeros(n, dtype=np.float32)}
    frame = pl.DataFrame({**columns, **{item: values[:, f] for f, item in enumerate(items)}})
    return write_store(folder, "loading", "all", f"{n:016d}", schema, samples, {"values": frame}, {})


def rounds(ways: dict[str, Callable[[], Iterator[Any]]], n: int, repeat: int) -> dict[str, float]:
    """Best samples/s of each way of going once over n samples."""

    def exhaust(way: Callable[[], Iterator[Any]]) -> None:
        deque(way(), maxlen=0)

    seconds = least_seconds({name: partial(exhaust, way) for name, way in ways.items()}, repeat)
    return {name: n / taken for name, taken in seconds.items()}


def measure(folder: Path, n: int, repeat: int) -> dict[str, float]:
    store = RecordStore(write_samples(folder, n))
    dataset = RecordDataset(store, store.schema, np.arange(n))
    resident = torch.from_numpy(np.array(store.column("modality/values.arrow", "values")))
    target, labelled = torch.zeros(n, 1), torch.ones(n, 1, dtype=torch.bool)

    def bare(threads: int) -> Iterator[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        order = torch.randperm(n)
        for at in range(0, n, BATCH):
            yield resident.index_select(0, order[at : at + BATCH])
        torch.set_num_threads(before)

    def loader(workers: int) -> RecordLoader:
        return RecordLoader(dataset, EpochBatches(n, BATCH, shuffle=True), workers)

    resident_set = torch.utils.data.TensorDataset(resident, target, labelled)
    collated = torch.utils.data.DataLoader(resident_set, BATCH, shuffle=True)
    mapped, two = loader(0), loader(2)
    slow = rounds({"tensor_dataset_default_collate": lambda: iter(collated)}, n, 1)
    workers = rounds({"record_loader_two_workers": lambda: iter(two)}, n, 1)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "index_select_one_thread": lambda: bare(1),
        "index_select_all_threads": lambda: bare(os.cpu_count() or 1),
        "record_loader": lambda: iter(mapped),
    }
    return {**rounds(ways, n, repeat), **slow, **workers}


def memory_by_size(folder: Path, sizes: list[int]) -> dict[str, float]:
    """Anonymous memory in MiB that an epoch of the loader adds, by number of samples, each in a process of its own."""
    found = {}
    for n in sizes:
        path = write_samples(folder / str(n), n)
        command = [sys.executable, __file__, "--memory-of", str(path)]
        found[str(n)] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def memory_of(path: Path) -> float:
    store = RecordStore(path)
    dataset = RecordDataset(store, store.schema, np.arange(len(store)))
    loader = RecordLoader(dataset, EpochBatches(len(store), BATCH, shuffle=True))
    next(iter(loader))
    before = anonymous()
    peak = max(anonymous() for _batch in loader)
    return (peak - before) / 2**20


def anonymous() -> int:
    """Bytes of anonymous memory; mapped files count in the resident set but can be dropped at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(memory_of(arguments.memory_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        speed = measure(Path(folder), arguments.samples, arguments.repeat)
        grown = memory_by_size(Path(folder), [arguments.samples // 4, arguments.samples // 2, arguments.samples])
    bare = max(speed["index_select_one_thread"], speed["index_select_all_threads"])
    result = {
        "what": f"samples/s at batch {BATCH}, {FLOATS} float32 a sample; best of {arguments.repeat} rounds",
        "samples": arguments.samples,
        "samples_per_second": {name: round(value) for name, value in speed.items()},
        "record_loader_over_the_faster_index_select": round(speed["record_loader"] / bare, 3),
        "target": TARGET,
        "anonymous_mib_added_by_an_epoch": {n: round(value, 1) for n, value in grown.items()},
    }
    save(arguments.out, result, ("torch", "numpy", "pyarrow", "polars"), machine(peak_rss_gib=peak_rss_gib()))


if __name__ == "__main__":
    main()
