"""Vectors of frozen backbones: computed once for every element of a store, and mapped from beside it ever after."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from mmnar_lightning.encoders.base import Encoder
from mmnar_lightning.encoders.decoding import UnreadableError
from mmnar_lightning.encoders.nearest import nearest
from mmnar_lightning.records import (
    Elements,
    IndexReader,
    Reader,
    RecordStore,
    StoreError,
    derive,
    derived_folder,
    find_derived,
)

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
Dtype = Literal["float32", "bfloat16", "float16"]
# part of the key of features: raise it when what is written changes
FORMAT = 1
VECTORS, STOP, FACTS = "vectors.npy", "stop.npy", "features.json"
# as they lie in the file, best first: numpy has no bfloat16
STORED: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "float32": (torch.float32, np.dtype("<f4")),
    "bfloat16": (torch.bfloat16, np.dtype("<i2")),
    "float16": (torch.float16, np.dtype("<f2")),
}


class FeatureTable:
    """Vectors of every element of a modality, mapped from beside the store.

    Args:
        folder: What `FeatureShards.finish` returned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dtype, _ = STORED[json.loads((folder / FACTS).read_text(encoding="utf-8"))["dtype"]]
        self._vectors, self._stop = (_mapped(folder / name) for name in (VECTORS, STOP))

    def __reduce__(self) -> tuple[type[FeatureTable], tuple[Path]]:
        # a loader's worker maps the files itself
        return (FeatureTable, (self.folder,))

    def __len__(self) -> int:
        return len(self._stop)

    @property
    def unreadable(self) -> int:
        """Number of elements without a vector: files that could not be read when features were computed."""
        return int((np.diff(self._stop, prepend=0) == 0).sum())

    def take(self, index: Array) -> tuple[Tensor, Array]:
        """Look up the vectors of elements.

        Args:
            index: int64 [E], rows of the modality's file in the store.

        Returns:
            Vectors [V, H], of the type they are stored in, and int64 [E] how many of them belong to each element.

        Raises:
            StoreError: If there are no such elements: the batch comes from another store.
        """
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise StoreError(f"{self.folder.name}: features of other elements than the batch holds; call prepare()")
        start = np.where(index > 0, self._stop[np.maximum(index - 1, 0)], 0) if len(index) else index
        count = self._stop[index] - start
        first = np.cumsum(count) - count
        place = np.arange(int(count.sum())) + np.repeat(start - first, count)
        return torch.from_numpy(self._vectors[place]).view(self.dtype), count


def _mapped(path: Path) -> Array:
    # an empty file can't be mapped
    rows: Array = np.load(path, mmap_mode="r", allow_pickle=False) if _rows(path) else np.load(path, allow_pickle=False)
    return np.asarray(rows)


def _rows(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return int(np.prod(shape))


@dataclass(frozen=True)
class FeatureReader(IndexReader):
    """Puts features in the place of documents or films.

    Args:
        table: Where they are.
        modality: Name in messages.
        most: Elements of a sample that are taken, those nearest to the prediction time; None takes all.
        unreadable: Of elements without a vector, which could not be read when features were computed: ``error``, or
            ``count``: leave them out and count them. None where none are ever counted.
        otherwise: Reads elements that come from no store; None leaves them as they are.
    """

    table: FeatureTable
    modality: str
    most: int | None = None
    unreadable: Literal["error", "count"] | None = None
    otherwise: Reader | None = None

    def __call__(self, elements: Elements) -> Elements:
        """Look up the vectors of elements.

        Raises:
            UnreadableError: If an element has none, and ``unreadable`` is not ``count``.
        """
        if elements.index is None:
            return elements if self.otherwise is None else self.otherwise(elements)
        device = elements.row.device
        index = elements.index.cpu().numpy()
        kept = np.arange(len(index))
        if self.most is not None:
            kept = nearest(elements.row.cpu().numpy(), elements.hours_before.cpu().numpy(), self.most)
        vectors, count = self.table.take(index[kept])
        lost = int((count == 0).sum())
        if lost and self.unreadable != "count":
            raise UnreadableError(
                f"modality {self.modality!r}: {lost} of {len(kept)} elements of a batch could not be read when their "
                f"features were computed; restore the files, remove {self.table.folder} and run `mmnar embed` again, "
                "or leave them out with `unreadable: count`"
            )
        kept, count = kept[count > 0], count[count > 0]
        which = torch.from_numpy(kept).to(device)
        return replace(
            elements,
            row=elements.row[which],
            hours_before=elements.hours_before[which],
            values=vectors.to(device),
            index=elements.index[which],
            unreadable=torch.tensor(lost, device=device) if self.unreadable == "count" else None,
            part_of=torch.from_numpy(np.repeat(np.arange(len(kept)), count)).to(device),
        )


class FeatureEncoder(Encoder):
    """An encoder whose elements go one by one through a backbone first; where that is frozen, `mmnar embed` does it.

    `prepare` then finds what was computed, and `reader` puts it in the place of documents or films.
    """

    name: str
    provenance: dict[str, Any]
    _feature_reader: FeatureReader | None = None
    _digest: tuple[Any, str] | None = None
    _said: str | None = None

    @abstractmethod
    def frozen(self) -> dict[str, Any] | None:
        """Return what a frozen backbone's vectors depend on besides the store and precision, as plain types.

        None where they change in training: because the backbone is trained, or what goes into it is drawn.
        """

    @abstractmethod
    def embed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """Run elements through the backbone alone, without gradient.

        Args:
            elements: E elements, as strings or as `opener` leaves them.

        Returns:
            float32 [V, H], and int64 [V] the element each belongs to, ascending.
        """

    @abstractmethod
    def feature_reader(self, table: FeatureTable) -> FeatureReader:
        """Return how features are read in the place of elements."""

    def opener(self) -> Reader | None:
        """Return what opens elements' files where there are no features, None where they are in the store."""
        return None

    def prepare_backbone(self, store: RecordStore) -> None:
        """Find, or derive once, what the backbone takes from beside the store."""

    def prepare(self, store: RecordStore, precision: str = "32-true") -> None:
        """Find the features of a frozen backbone; without them, find what it takes itself.

        Raises:
            NotDownloadedError: If the pretrained model is not on this machine.
        """
        known = self.name in store.schema.names and store.schema.modality(self.name).kind in self.kinds
        frozen = self.frozen() if known else None
        folder = None if frozen is None else self._found(store, frozen, precision)
        if folder is None:
            self._feature_reader = None
            self.prepare_backbone(store)
        elif self._feature_reader is None or self._feature_reader.table.folder != folder:
            self._feature_reader = self.feature_reader(FeatureTable(folder))
        if frozen is not None:
            how = "computed on the fly; `mmnar embed` would do it once" if folder is None else f"read from {folder}"
            self._say(f"frozen features of {self.name}: {how}")

    def _found(self, store: RecordStore, frozen: dict[str, Any], precision: str) -> Path | None:
        ways = (described(self.name, frozen, precision, dtype) for dtype in STORED)
        found = (find_derived(store, _folder_name(self.name), way) for way in ways)
        return next((folder for folder in found if folder is not None), None)

    def _say(self, what: str) -> None:
        # once: each validation prepares anew
        if self._said != what:
            self._said = what
            log.info("%s", what)

    def reader(self) -> Reader | None:
        """Return what reads features where there are some, else what opens files."""
        return self.opener() if self._feature_reader is None else self._feature_reader

    def weights(self, backbone: nn.Module) -> str:
        """SHA-256 of a backbone's weights as they are held, computed anew only where they have changed."""
        state = {k: v for k, v in sorted(backbone.state_dict().items()) if isinstance(v, Tensor)}
        stamp = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in state.values()]
        if self._digest is None or self._digest[0] != stamp:
            digest = hashlib.sha256()
            for name, tensor in state.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = (stamp, digest.hexdigest())
        return self._digest[1]


def described(modality: str, frozen: dict[str, Any], precision: str, dtype: str) -> dict[str, Any]:
    """Return what features depend on besides the store, see `derived_folder`.

    Args:
        modality: Its name.
        frozen: What `FeatureEncoder.frozen` returned.
        precision: The trainer's, as Lightning names it.
        dtype: Type they are stored in.
    """
    return {"what": "features", "format": FORMAT, "modality": modality, "precision": precision, "dtype": dtype} | frozen


def _folder_name(modality: str) -> str:
    return f"features-{modality}"


class FeatureShards:
    """Features in the making: a file for each range of elements, which is complete or not there.

    Several processes write shards of their own, and a run that was killed goes on with those that are missing.

    Args:
        store: Where the elements are.
        modality: Name of the modality.
        depends: What `described` returned.
        size: Elements a shard.
    """

    def __init__(self, store: RecordStore, modality: str, depends: dict[str, Any], size: int) -> None:
        if size < 1:
            raise ValueError(f"a shard holds at least 1 element, not {size}")
        self.store, self.modality, self.depends = store, modality, depends
        self.elements = len(store.strings(f"modality/{modality}.arrow"))
        self.ranges = [(first, min(first + size, self.elements)) for first in range(0, self.elements, size)]
        final = derived_folder(store, _folder_name(modality), depends)
        self.folder = final.parent / f".{final.name}.shards"

    def found(self) -> Path | None:
        """Return the folder of the finished features, None where they aren't."""
        return find_derived(self.store, _folder_name(self.modality), self.depends)

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges [first, stop) of elements that no one has written."""
        return [] if self.found() else [r for r in self.ranges if not self._path(*r).is_file()]

    def _path(self, first: int, stop: int) -> Path:
        return self.folder / f"{first}-{stop}.npz"

    def write(self, first: int, stop: int, vectors: Tensor, count: Tensor) -> None:
        """Write a shard.

        Args:
            first: Its first element.
            stop: One past its last.
            vectors: [V, H], in the order of the elements.
            count: int64 [stop − first], how many of them belong to each.

        Raises:
            ValueError: If a vector is not finite, or too large for the type it is stored in.
        """
        dtype, as_numpy = STORED[self.depends["dtype"]]
        kept = vectors.to(dtype).cpu()
        broken = int((~kept.isfinite()).any(1).sum())
        if broken:
            raise ValueError(
                f"modality {self.modality!r}: {broken} of {len(kept)} vectors of a shard are not finite"
                f"{' in ' + self.depends['dtype'] if vectors.isfinite().all() else ''}"
            )
        values = kept.view(torch.int16).numpy() if dtype is torch.bfloat16 else kept.numpy()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, parts = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, vectors=values.astype(as_numpy, copy=False), count=count.cpu().numpy())
            file.flush()
            os.fsync(file.fileno())
        Path(parts).replace(self._path(first, stop))

    def finish(self, origin: dict[str, Any]) -> Path:
        """Put all shards together, and remove them.

        Args:
            origin: Where the backbone comes from, kept beside the features.

        Returns:
            The folder of the features.

        Raises:
            StoreError: If a shard is missing, or can't be read.
        """
        lacking = self.missing()
        if lacking:
            raise StoreError(
                f"{self.folder.name}: {len(lacking)} of {len(self.ranges)} shards are not there; all processes must "
                "write to the same folder"
            )

        def write(folder: Path) -> None:
            stop = np.cumsum(np.concatenate(list(self._arrays("count"))), dtype=np.int64)
            first = next(self._arrays("vectors"))
            shape = (int(stop[-1]), first.shape[1])
            np.save(folder / STOP, stop, allow_pickle=False)
            with (folder / VECTORS).open("wb") as file:
                header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for vectors in self._arrays("vectors"):
                    vectors.tofile(file)
            facts = {"dtype": self.depends["dtype"], "elements": self.elements, "vectors": shape, "origin": origin}
            (folder / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        path = derive(self.store, _folder_name(self.modality), self.depends, write)
        self.tidy()
        return path

    def tidy(self) -> None:
        """Remove the shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _arrays(self, name: str) -> Iterator[Array]:
        for first, stop in self.ranges:
            path = self._path(first, stop)
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as shard:
                    array = shard[name]
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                raise StoreError(f"{self.folder.name}: {path.name} can't be read; remove it and run again") from error
            yield array
