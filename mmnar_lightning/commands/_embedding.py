"""Frozen encoders over all elements of a store, by Lightning on all devices, a shard at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmnar_lightning import _terminal
from mmnar_lightning.encoders.features import Dtype, FeatureEncoder, FeatureShards, FeatureTable, described
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, Reader, RecordDataModule, RecordStore

log = logging.getLogger(__name__)
# elements in one step: what a loader's process holds; documents are small, and groups of similar length need many
AT_ONCE = {"text": 256, "image": 64}
# seconds between two lines where there is no terminal
PAUSE = 20.0
# modality, range of the shard, whether it is the shard's last piece, elements (None where a device has nothing to do)
Piece = tuple[str, tuple[int, int], bool, Elements | None]


def embed(
    data: RecordDataModule,
    model: MultimodalOutcomeModule,
    settings: Mapping[str, Any],
    *,
    dtype: Dtype = "float32",
    shard_size: int = 1024,
) -> list[Path]:
    """Compute the features of all frozen backbones of a model that are not beside the store yet.

    Args:
        data: Where the elements come from: all samples of its store, whatever their split.
        model: Whose encoders are meant; built if it isn't.
        settings: Arguments of `Trainer`, of which those that say where and how precisely it runs are taken.
        dtype: Type the features are stored in.
        shard_size: Elements a shard, what one device loses at most when it is killed.

    Returns:
        On the process of rank 0, which puts shards together, the folders of the features; elsewhere nothing.

    Raises:
        ValueError: If no backbone is frozen.
        StoreError: If devices don't write to the same folder.
    """
    model.configure_model()
    encoders = {name: e for name, e in model.encoders.items() if isinstance(e, FeatureEncoder)}
    trainer = _trainer(settings)
    # the weights as they are when the trainer has them
    trainer.precision_plugin.convert_module(nn.ModuleList(encoders.values()))
    frozen = {name: e.frozen() for name, e in encoders.items()}
    if not any(facts is not None for facts in frozen.values()):
        listed = ", ".join(f"{name} ({type(e).__name__})" for name, e in encoders.items()) or "there is none"
        raise ValueError(f"nothing to embed: no encoder has a frozen backbone, which has no augmentation; {listed}")
    store = data.records
    shards = {
        name: FeatureShards(store, name, described(name, facts, str(trainer.precision), dtype), shard_size)
        for name, facts in frozen.items()
        if facts is not None
    }
    shards = {name: s for name, s in shards.items() if s.elements}
    there = {name: s.found() for name, s in shards.items()}
    for name, folder in there.items():
        if folder is not None:
            log.info("features of %s: are there already", name)
            _tell_unreadable(name, folder, shards[name].elements)
            shards[name].tidy()
    waiting = [name for name, folder in there.items() if folder is None]
    if waiting:
        for name in waiting:
            encoders[name].prepare_backbone(store)
        embedder = _Embedder({name: encoders[name] for name in waiting}, data, shards)
        trainer.predict(embedder, return_predictions=False)
        there |= embedder.folders
    return [folder for folder in there.values() if folder is not None and trainer.is_global_zero]


def _tell_unreadable(name: str, folder: Path, elements: int) -> None:
    if lost := FeatureTable(folder).unreadable:
        log.warning(
            "%d of %d files of %s could not be read when they were computed; where these are restored, remove %s and "
            "run this again",
            lost,
            elements,
            name,
            folder,
        )


def _trainer(settings: Mapping[str, Any]) -> Trainer:
    wanted = ("accelerator", "devices", "num_nodes", "precision", "plugins")
    kept = {name: settings[name] for name in wanted if settings.get(name) is not None}
    strategy = settings.get("strategy")
    # nothing is trained, so that there is nothing to shard; of DDP its backend is kept
    if isinstance(strategy, DDPStrategy) or (isinstance(strategy, str) and strategy.startswith("ddp")):
        kept["strategy"] = strategy
    return Trainer(
        **kept,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=_terminal.shows_bars(stderr=False) and settings.get("enable_progress_bar") is not False,
        use_distributed_sampler=False,
    )


class _Pieces(Dataset[Piece]):
    """Elements of a store, some at a time, files opened.

    Args:
        store: Where they are.
        plan: Modality, range of the shard, and range of each piece of it, in order.
        readers: What opens files, by modality.
        folders: Where relative file names lie, by modality.
    """

    def __init__(
        self,
        store: RecordStore,
        plan: list[tuple[str, tuple[int, int], tuple[int, int]]],
        readers: Mapping[str, Reader],
        folders: Mapping[str, Path],
    ) -> None:
        self.store, self.plan, self.readers, self.folders = store, plan, readers, folders

    def __len__(self) -> int:
        return max(1, len(self.plan))

    def __getitem__(self, place: int) -> Piece:
        if not self.plan:
            return "", (0, 0), True, None
        name, shard, (first, stop) = self.plan[place]
        values = self.store.strings(f"modality/{name}.arrow").slice(first, stop - first).to_pylist()
        if (folder := self.folders.get(name)) is not None:
            # an absolute name stays as it is
            values = [str(folder / value) for value in values]
        count = stop - first
        elements = Elements(
            torch.arange(count), torch.full((count,), torch.nan), tuple(values), index=torch.arange(first, stop)
        )
        return name, shard, stop == shard[1], self.readers[name](elements) if name in self.readers else elements


class _InOrder:
    """A loader of whole pieces. It holds a `DataLoader` and is none, so that Lightning doesn't meddle with it.

    Args:
        pieces: What is loaded.
        workers: Processes that open files; 0 opens them in the main process.
    """

    def __init__(self, pieces: _Pieces, workers: int) -> None:
        self.pieces, self.workers = pieces, workers

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Piece]:
        if not self.workers:
            return (self.pieces[k] for k in range(len(self)))
        pinned = torch.cuda.is_available()
        return iter(
            DataLoader(self.pieces, batch_size=None, num_workers=self.workers, collate_fn=_whole, pin_memory=pinned)
        )


def _whole(piece: Any) -> Piece:
    return cast(Piece, piece)


class _Embedder(LightningModule):
    """Runs backbones in `Trainer.predict` and writes a shard as soon as all its elements went through."""

    def __init__(
        self, encoders: Mapping[str, FeatureEncoder], data: RecordDataModule, shards: Mapping[str, FeatureShards]
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.records, self.shards, self.workers = data.records, shards, data.workers
        self.kinds = {name: data.records.schema.modality(name).kind for name in encoders}
        folders = {name: data.image_folder(name) for name, kind in self.kinds.items() if kind == "image"}
        self.image_folders = {name: folder for name, folder in folders.items() if folder is not None}
        self.folders: dict[str, Path] = {}
        self._computed: list[tuple[Tensor, Tensor]] = []
        self._done, self._all, self._told = 0, 0, time.monotonic()

    def _encoder(self, name: str) -> FeatureEncoder:
        return cast(FeatureEncoder, self.encoders[name])

    def predict_dataloader(self) -> _InOrder:
        """Divide the missing shards among all devices."""
        # one of them says which: others see what has been written since
        found = {name: self.shards[name].missing() for name in self.encoders}
        missing: dict[str, list[tuple[int, int]]] = self.trainer.strategy.broadcast(found)
        every = [(name, shard) for name, ranges in missing.items() for shard in ranges]
        mine = every[self.trainer.global_rank :: self.trainer.world_size]
        self._all = len(mine)
        plan = []
        for name, (first, stop) in mine:
            step = AT_ONCE[self.kinds[name]]
            plan += [(name, (first, stop), (at, min(at + step, stop))) for at in range(first, stop, step)]
        readers = {name: self._encoder(name).opener() for name in self.encoders}
        opened = {name: reader for name, reader in readers.items() if reader is not None}
        kept = sum(len(s.ranges) for s in self.shards.values()) - len(every)
        if self.trainer.is_global_zero:
            log.info("embedding %s: %d shards%s", ", ".join(missing), len(every), f", {kept} are there" if kept else "")
        # documents lie in the store: no process opens them faster than this one
        workers = self.workers if opened else 0
        return _InOrder(_Pieces(self.records, plan, opened, self.image_folders), workers)

    def predict_step(self, batch: Piece, batch_idx: int) -> int:
        """Run a piece; with the last one of a shard, write it. Returns the number of vectors."""
        name, (first, stop), last, elements = batch
        if elements is None:
            return 0
        assert elements.index is not None
        vectors, element = self._encoder(name).embed(elements)
        # left on the device: a copy would wait for it in the middle of a shard
        self._computed.append((vectors, elements.index[element] - first))
        if last:
            self._write(name, first, stop)
        return len(vectors)

    def _write(self, name: str, first: int, stop: int) -> None:
        whole, place = (torch.cat(column).cpu() for column in zip(*self._computed, strict=True))
        self._computed.clear()
        self.shards[name].write(first, stop, whole, torch.bincount(place, minlength=stop - first))
        self._done += 1
        if not self.trainer.progress_bar_callback and time.monotonic() - self._told > PAUSE:
            self._told = time.monotonic()
            log.info("embedded %d of %d shards of this process", self._done, self._all)

    def on_predict_end(self) -> None:
        """Once all devices are done, let one of them put the shards together."""
        self.trainer.strategy.barrier("all shards are written")
        if not self.trainer.is_global_zero:
            return
        for name in self.encoders:
            self.folders[name] = folder = self.shards[name].finish(self._encoder(name).provenance)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            log.info("features of %s: %d elements, %.1f MB in %s", name, self.shards[name].elements, size, folder)
            _tell_unreadable(name, folder, self.shards[name].elements)
