"""What a prepare that was killed leaves behind, and the next one goes on from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from filelock import FileLock, Timeout

from mmnar_lightning.extract.extraction import Counts
from mmnar_lightning.extract.tables import ExtractError

log = logging.getLogger(__name__)

LOCK = ".lock"
TABLES = ".tables"


class Parts:
    """Finished steps of a store that is being built, each written whole or not at all.

    Args:
        folder: Where they are kept; named by the store, hence by its fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self, name: str, make: Callable[[], pl.DataFrame], counts: Counts) -> pl.DataFrame:
        """Make a frame, or take the one that an earlier run made; what it counts is kept with it.

        Args:
            name: Name of the step.
            make: Makes the frame; may log to `counts`.
            counts: The log.
        """
        frame_file, counts_file = self.folder / f"{name}.arrow", self.folder / f"{name}.json"
        if not frame_file.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = dict(counts.items())
            frame = make()
            added = [[*key, n - before.get(key, 0)] for key, n in counts.items() if n != before.get(key)]
            # the frame is renamed last: where it is, its counts are
            _write_whole(counts_file, lambda path: path.write_text(json.dumps(added), encoding="utf-8"))
            _write_whole(frame_file, lambda path: frame.write_ipc(path))
        else:
            log.info("%s: taken from an interrupted run", name)
            for table, what, n in json.loads(counts_file.read_text(encoding="utf-8")):
                counts.add(table, what, n)
        # also the run that made it reads it back, so that both go on from the same bytes
        return pl.read_ipc(frame_file)

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    write(temporary)
    temporary.replace(path)


@contextmanager
def workplace(store: Path) -> Iterator[Path]:
    """Hold the folder that stores are kept in: one process works in it, others wait.

    Temporary files of killed runs are removed. Where the block ends in a `ValueError` (the input is bad), everything
    that was made in it is removed, the folder too if it was made here.

    Args:
        store: Folder that stores are kept in.

    Yields:
        The folder of cached tables.

    Raises:
        ExtractError: If it can't be made.
    """
    made = [folder for folder in (store, *store.parents) if not folder.exists()]
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ExtractError(f"{store}: can't be made the folder of stores ({error.strerror})") from None
    lock = FileLock(store / LOCK, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that prepares in %s", store)
        lock.acquire()
    try:
        before = _contents(store)
        _sweep(store)
        tables = store / TABLES
        tables.mkdir(mode=0o700, exist_ok=True)
        try:
            yield tables
        except ValueError:
            for path in sorted(_contents(store) - before, reverse=True):
                _remove(path)
            if made:
                (store / LOCK).unlink(missing_ok=True)
            raise
    finally:
        lock.release()
        if made and not any(store.iterdir()):
            for folder in made:
                folder.rmdir()


def _contents(store: Path) -> set[Path]:
    return {*store.iterdir(), *(store / TABLES).glob("*")}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sweep(store: Path) -> None:
    # whoever holds the lock is alone: temporary files are left over from killed runs
    for left in [*(store / TABLES).glob(".tmp-*"), *store.glob(".building-*/.tmp-*"), *store.glob(".*.writing-*")]:
        _remove(left)
