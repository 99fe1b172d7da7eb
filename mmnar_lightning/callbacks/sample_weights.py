"""Outcomes' loss weighted sample by sample, by a file of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from typing_extensions import override

from mmnar_lightning.records import RecordDataModule, RecordStore


class SampleWeights(Callback):
    """Weighs training samples in the outcomes' loss: L_k = Σ_i v_i l_ik / Σ_i v_i over labelled samples of a batch.

    For training under another ordering behaviour: `mmnar evaluate --as-if … --train_weights FILE` writes the file, with
    columns `sample` (row of the store) and `weight`; the result is doubly weighted where metrics are re-weighted too.
    That rests on ignorability of ordering here and there; under MNAR the weights do not correct.

    Auxiliary terms are not weighted. Nor is anything outside training: the metrics of val and test, what chooses the
    checkpoint, the rectifier on calibration. The weights are in no checkpoint, a resume reads the file again.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._sha256 = ""
        self._resumed: str | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the file and hand the weights to the module.

        Raises:
            ValueError: As `read_weights`, or if the run that is resumed had other weights.
            TypeError: If there is no `RecordDataModule`.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(data, RecordDataModule):
            raise TypeError("SampleWeights needs a RecordDataModule: weights are by row of its store")
        weights = read_weights(Path(self.path), data.records, data.samples_of("train"))
        self._sha256 = hashlib.sha256(weights.tobytes()).hexdigest()
        if self._resumed not in (None, self._sha256):
            raise ValueError(f"{self.path}: the run that is resumed had other sample weights")
        module: Any = pl_module
        module.sample_weights = torch.from_numpy(weights).to(pl_module.device, torch.float32)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights from the module: another fit may be on other data."""
        module: Any = pl_module
        module.sample_weights = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return a hash of the weights, by which a resume knows whether it goes on with the same ones."""
        return {"sha256": self._sha256}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the hash of the run that goes on."""
        self._resumed = state_dict["sha256"]


def read_weights(path: Path, store: RecordStore, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Read weights of training samples.

    Args:
        path: Parquet file with columns `sample` and `weight`; its metadata's `store` is the store's fingerprint.
        store: The store that `sample` is a row of.
        train: int64 [n], the samples that need a weight.

    Returns:
        float64 [samples of the store], NaN outside train.

    Raises:
        ValueError: If the file is absent or no Parquet file, lacks a column, is of another store, or says of none; if
            a weight is negative or not finite, a sample stands twice or outside the store, a training sample has no
            weight, or all are 0.
    """
    if not path.is_file():
        raise ValueError(f"no file of weights {path}; mmnar evaluate --as-if … --train_weights writes one")
    try:
        frame, about = pl.read_parquet(path), pl.read_parquet_metadata(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not readable as Parquet") from error
    for name, integer in (("sample", True), ("weight", False)):
        if name not in frame.columns:
            raise ValueError(f"{path}: no column {name!r}; there are: {', '.join(frame.columns)}")
        dtype = frame[name].dtype
        if not (dtype.is_integer() if integer else dtype.is_numeric()):
            raise ValueError(f"{path}: column {name!r} is {dtype}, no {'integer' if integer else 'number'}")
    if about.get("store") != store.fingerprint:
        given = about.get("store", "none")
        raise ValueError(f"{path}: written for the store {given}; this one is {store.fingerprint} (metadata 'store')")
    weight = frame["weight"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    if wrong := int((~np.isfinite(weight) | (weight < 0)).sum()):
        raise ValueError(f"{path}: column 'weight' is negative or not finite in {wrong} rows")
    sample = frame["sample"].cast(pl.Int64).fill_null(-1).to_numpy()
    if outside := int(((sample < 0) | (sample >= len(store))).sum()):
        raise ValueError(f"{path}: column 'sample' is outside the store's {len(store)} samples in {outside} rows")
    if twice := len(sample) - len(np.unique(sample)):
        raise ValueError(f"{path}: {twice} rows of column 'sample' stand there already")
    every = np.full(len(store), np.nan)
    every[sample] = weight
    if without := int(np.isnan(every[train]).sum()):
        raise ValueError(f"{path}: {without} of {len(train)} training samples have no weight")
    if not (every[train] > 0).any():
        raise ValueError(f"{path}: all {len(train)} training samples have weight 0")
    whole = np.full(len(store), np.nan)
    whole[train] = every[train]
    return whole
