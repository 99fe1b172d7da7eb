from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.records import EpochBatches, PatientBatch, RecordDataset, RecordLoader, RecordStore


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., Path]) -> RecordDataset:
    store = RecordStore(make_store(tmp_path_factory.mktemp("stores"), n_patients=60))
    return RecordDataset(store, store.schema, np.arange(len(store)))


def loader(
    dataset: RecordDataset, seed: int = 3, batch_size: int = 7, shuffle: bool = True, workers: int = 0
) -> RecordLoader:
    return RecordLoader(dataset, EpochBatches(len(dataset), batch_size, shuffle=shuffle, seed=seed), workers)


def samples(batches: Any) -> list[list[int]]:
    return [batch.sample.tolist() for batch in batches]


shapes = st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 6))


@given(shapes, st.integers(0, 2**32), st.integers(0, 50))
def test_training_shards_are_equal_and_cover(shape: tuple[int, int, int], seed: int, epoch: int) -> None:
    rows, size, world = shape
    shards = []
    for rank in range(world):
        batches = EpochBatches(rows, size, shuffle=True, seed=seed, rank=rank, world_size=world)
        batches.epoch = epoch
        listed = list(batches)
        assert len(listed) == len(batches)
        assert all(len(b) == size for b in listed[:-1])
        shards.append([row for b in listed for row in b])
    assert len({len(s) for s in shards}) == 1
    counts = Counter(row for s in shards for row in s)
    assert set(counts) == set(range(rows))
    # nobody is seen twice more often than filling up needs
    assert sum(counts.values()) == -(-rows // world) * world
    assert rows == 0 or max(counts.values()) - min(counts.values()) <= 1


@given(shapes)
def test_evaluation_holds_each_row_once(shape: tuple[int, int, int]) -> None:
    rows, size, world = shape
    seen: list[int] = []
    for rank in range(world):
        batches = EpochBatches(rows, size, shuffle=False, rank=rank, world_size=world)
        listed = list(batches)
        # a process without rows must still meet the others: one batch, an empty one
        assert len(listed) == len(batches) >= 1
        assert listed == list(batches)
        assert all(listed) or listed == [[]]
        seen += [row for b in listed for row in b]
    assert sorted(seen) == list(range(rows))


def test_order_depends_on_seed_and_epoch_alone(dataset: RecordDataset) -> None:
    first, second = loader(dataset), loader(dataset)
    epochs = [samples(first) for _ in range(3)]
    torch.manual_seed(1)
    assert [samples(second) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2]
    assert samples(loader(dataset, seed=4)) != epochs[0]
    for epoch in epochs:
        assert sorted(s for b in epoch for s in b) == list(range(len(dataset)))
    still = loader(dataset, shuffle=False)
    assert samples(still) == samples(still) == [list(range(len(dataset)))[k : k + 7] for k in range(0, len(dataset), 7)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given_before", [0, 1, 4, "all"])
def test_resume_gives_the_same_remaining_batches(dataset: RecordDataset, workers: int, given_before: int | str) -> None:
    whole = loader(dataset)
    epochs = [samples(whole) for _ in range(3)]
    n = len(whole) if given_before == "all" else int(given_before)
    stopped = loader(dataset, workers=workers)
    list(stopped)
    iterator = iter(stopped)
    for _ in range(n):
        next(iterator)
    state = stopped.state_dict()
    resumed = loader(dataset, workers=workers)
    resumed.load_state_dict(state)
    if n == 0:
        # nothing of the second epoch was handed out yet: it is the next one
        assert samples(resumed) == epochs[1]
    else:
        assert samples(resumed) == (epochs[1][n:] or epochs[2])
    assert samples(resumed) == epochs[2 if n < len(whole) else 0] or n == len(whole)


def test_a_loader_without_state_starts_at_the_epoch_it_is_told(dataset: RecordDataset) -> None:
    epochs = [samples(whole) for whole in [loader(dataset)] for _ in range(4)]
    told = loader(dataset)
    iterator = iter(told)
    told.sampler.set_epoch(2)
    assert samples(iterator) == epochs[2]
    told.sampler.set_epoch(2)
    assert samples(told) == epochs[3]


def test_an_epoch_cut_short_is_over_at_its_limit(dataset: RecordDataset) -> None:
    batches = EpochBatches(len(dataset), 7, shuffle=True, seed=3)
    epochs = [samples(whole) for whole in [loader(dataset)] for _ in range(2)]
    cut = RecordLoader(dataset, batches, limit=2)
    cut.load_state_dict({"epoch": 0, "given": 1})
    assert samples(cut) == epochs[0][1:]
    cut.load_state_dict({"epoch": 0, "given": 2})
    assert samples(cut) == epochs[1]


def test_two_interruptions_of_one_epoch(dataset: RecordDataset) -> None:
    whole = samples(loader(dataset))
    part = loader(dataset)
    got: list[list[int]] = []
    for stop in (2, 3):
        iterator = iter(part)
        got += [next(iterator).sample.tolist() for _ in range(stop)]
        state = part.state_dict()
        part = loader(dataset)
        part.load_state_dict(state)
    assert got + samples(part) == whole


def test_a_pass_that_was_left_is_over(dataset: RecordDataset) -> None:
    whole, left = loader(dataset), loader(dataset)
    epochs = [samples(whole) for _ in range(2)]
    next(iter(left))
    assert samples(left) == epochs[1]


def flat(batch: PatientBatch) -> list[Any]:
    values = [(e.row, e.hours_before, e.values, e.variable) for e in batch.elements.values()]
    return [batch.observed, batch.targets, batch.labelled, batch.sample, *(v for four in values for v in four)]


def test_workers_change_nothing(dataset: RecordDataset) -> None:
    none, two = loader(dataset), loader(dataset, workers=2)
    for _ in range(2):
        for here, there in zip(none, two, strict=True):
            for a, b in zip(flat(here), flat(there), strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
                else:
                    assert a == b


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_random_state_alone(dataset: RecordDataset, workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    list(loader(dataset, workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_shard_is_one_empty_batch(dataset: RecordDataset, workers: int) -> None:
    batches = EpochBatches(2, 4, shuffle=False, rank=2, world_size=3)
    (batch,) = RecordLoader(dataset, batches, workers)
    assert len(batch) == 0
    assert batch.observed.shape == (0, 5)
    assert batch.targets.shape == (0, 3)
    assert batch.elements["vitals"].values.shape == (0, 6)  # type: ignore[union-attr]
    assert batch.elements["notes"].values == ()


def test_batch_size_is_positive() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        EpochBatches(3, 0, shuffle=False)
