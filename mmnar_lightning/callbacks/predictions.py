"""Predictions as one parquet file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mmnar_lightning.records import SPLITS, RecordDataModule, patient_hashes, patient_key


class PredictionWriter(Callback):
    """Writes ``predictions.parquet`` at the end of `predict`: one row a sample, on one process, whole or not at all.

    Columns: `sample` (row of the store), `patient` (keyed hash), `site`, `split` (calibration B, which the rectifier
    has not seen, is `conformal`), `pattern`, `uncertainty` (mean variance of the posterior, where the fusion has one),
    and for each task `{task}/raw`, `{task}/rectified` (probabilities), `{task}/target` and `{task}/labelled`. The
    file's metadata hold the fingerprints of schema and store. Original ids of patients and stays remain in the store;
    `site` is the source's own.

    Args:
        path: File to write; None writes into the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._rows: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no rows."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        if isinstance(outputs, Mapping):
            self._rows.append({name: value.detach().cpu() for name, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring all rows together and write them."""
        own = {name: torch.cat([row[name] for row in self._rows]) for name in self._rows[0]}
        shards = [own]
        if trainer.world_size > 1:
            shards = [own] * trainer.world_size
            torch.distributed.all_gather_object(shards, own)
        # `log_dir` is broadcast: every process must ask
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, RecordDataModule):
            raise TypeError("PredictionWriter needs a RecordDataModule: it names patients, sites and splits")
        frame = _frame({name: torch.cat([s[name] for s in shards]) for name in own}, pl_module)
        frame = frame.join(_people(data), on="sample", how="left", maintain_order="left")
        front = ["sample", "patient", "site", "split", "pattern"]
        frame = frame.select(*front, *(c for c in frame.columns if c not in front))
        path = Path(self.path) if self.path else folder / "predictions.parquet"
        schema: Any = pl_module.schema
        fingerprint = hashlib.sha256(json.dumps(schema.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
        _write(frame, path, {"schema": fingerprint, "store": data.records.fingerprint})


def _frame(rows: Mapping[str, Tensor], module: Any) -> pl.DataFrame:
    columns = {"sample": rows["sample"].numpy(), "pattern": rows["pattern"].numpy()}
    if "uncertainty" in rows:
        columns["uncertainty"] = rows["uncertainty"].float().numpy()
    for k, task in enumerate(module.schema.task_names):
        columns[f"{task}/raw"] = rows["raw"][:, k].numpy()
        columns[f"{task}/rectified"] = rows["rectified"][:, k].float().numpy()
        columns[f"{task}/target"] = rows["targets"][:, k].numpy()
        columns[f"{task}/labelled"] = rows["labelled"][:, k].numpy()
    frame = pl.DataFrame(columns).sort("sample")
    # an unknown outcome has no target
    targets = [
        pl.when(f"{t}/labelled").then(pl.col(f"{t}/target") > 0.5).otherwise(None).alias(f"{t}/target")
        for t in module.schema.task_names
    ]
    return frame.with_columns(targets)


def _people(data: RecordDataModule) -> pl.DataFrame:
    samples = data.records.samples
    people = samples.select("patient").unique().sort("patient")
    hashed = patient_hashes(people["patient"], patient_key(data.records.path.parent))
    named = samples.select("sample", "patient", "site").join(
        people.with_columns(pl.Series("hash", hashed)), on="patient", how="left", maintain_order="left"
    )
    split = pl.Series("split", data.split).replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.String)
    named = named.select("sample", pl.col("hash").alias("patient"), "site", split)
    # the rectifier has not seen calibration B
    unseen = pl.col("sample").is_in(data.samples_of("conformal"))
    return named.with_columns(split=pl.when(unseen).then(pl.lit("conformal")).otherwise("split"))


def _write(frame: pl.DataFrame, path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(parts, metadata=metadata)
    parts.chmod(0o600)
    parts.replace(path)
