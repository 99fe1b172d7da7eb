"""Batches in order: exact shards for several processes, and a loader that resumes in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Sampler

from mmnar_lightning.records.batch import PatientBatch
from mmnar_lightning.records.dataset import RecordDataset


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers for one process of several.

    In training every process gets equally many rows of the same permutation (its first ones fill up where the rows do
    not divide evenly). In evaluation the shards are uneven and hold each row exactly once; a process
    without rows yields one empty batch, so that it still meets the others in every collective.

    Args:
        rows: Number of rows in the dataset.
        batch_size: Rows a batch on each process.
        shuffle: Whether to draw a new permutation each epoch (training) or keep the order (evaluation).
        seed: Seed of the permutations; that of epoch e depends on (seed, e) alone.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, rows: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        share = -(-self.rows // self.world_size) if self.shuffle else len(range(self.rank, self.rows, self.world_size))
        return max(1, -(-share // self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Draw the permutation of this epoch next; Lightning calls it before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._rows()
        skip, self.skip = self.skip, 0
        for batch in range(skip, len(self)):
            yield rows[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _rows(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.rank, self.rows, self.world_size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        share = -(-self.rows // self.world_size)
        # round again, also where there are fewer rows than processes: shards must be equal
        return list(islice(cycle(order), self.rank, share * self.world_size, self.world_size))


class RecordLoader:
    """A loader of whole `PatientBatch`es that knows where it is.

    `state_dict` and `load_state_dict` continue at the next batch of the same epoch. Lightning puts the state into the
    checkpoint, but reads it only where an epoch was left unfinished; so the first pass is otherwise the epoch that it
    names (`sampler.set_epoch`), or epoch 0, and each further pass the next. The global random state is never touched.
    It may hold a `DataLoader` and is none itself, so that Lightning puts no sampler of its own in place of `batches`.

    Args:
        dataset: Where batches are gathered.
        batches: Which rows form a batch.
        workers: Worker processes; 0 gathers in the main process, which is fastest for stores on a local disk.
        pin_memory: Whether to copy batches into page-locked memory.
        limit: Number of batches after which an epoch is over (the trainer's `limit_train_batches`); None for all.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        batches: EpochBatches,
        workers: int = 0,
        pin_memory: bool = False,
        limit: int | None = None,
    ) -> None:
        self.dataset, self.batches = dataset, batches
        # as a `DataLoader` names them: Lightning looks there for `set_epoch`
        self.sampler = self.batch_sampler = batches
        self._limit = len(batches) if limit is None else limit
        self._pin_memory = pin_memory
        self._workers: DataLoader[PatientBatch] | None = None
        if workers:
            self._workers = DataLoader(
                dataset,
                batch_sampler=batches,
                num_workers=workers,
                pin_memory=pin_memory,
                collate_fn=_whole,
                # of its own: the seed a loader draws for its workers must not move dropout's random numbers
                generator=torch.Generator(),
            )
        self._epoch, self._given, self._unfinished = -1, 0, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PatientBatch]:
        # runs when the first batch is asked for: Lightning makes the iterator before it names the epoch
        if self._epoch < 0:
            self._epoch = self.batches.epoch
        elif not self._unfinished:
            self._epoch, self._given = self._epoch + 1, 0
        self._unfinished = False
        self.batches.epoch, self.batches.skip = self._epoch, self._given
        for batch in self._gathered() if self._workers is None else _from(self._workers):
            # counted before it is handed out: a checkpoint written while the batch is used must not repeat it
            self._given += 1
            yield batch

    def _gathered(self) -> Iterator[PatientBatch]:
        for rows in self.batches:
            batch = self.dataset.__getitems__(rows)
            yield batch.pin_memory() if self._pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: the epoch and the number of its batches handed out."""
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._epoch, self._given = int(state["epoch"]), int(state["given"])
        self._unfinished = self._given < self._limit


def _from(workers: DataLoader[PatientBatch]) -> Iterator[PatientBatch]:
    try:
        yield from workers
    except Exception as error:
        # torch's frames and the error hold each other, and workers that the garbage collector finds are waited for,
        # five seconds each
        raise error.with_traceback(None) from None


def _whole(batch: list[Any]) -> PatientBatch:
    # `__getitems__` hands over a batch, which torch's types take for a list of samples
    return cast(PatientBatch, batch)
