"""What is there to learn from, shown before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mmnar_lightning.records import (
    SPLITS,
    RecordDataModule,
    RecordDataset,
    RecordSchema,
    availability_reasons,
    pattern_id,
    pattern_names,
)

# counts of fewer people could point at someone
FEWEST = 10


class AvailabilityOverview(Callback):
    """Logs at the start of `fit` what share of the samples has each modality, the frequent patterns and the labels.

    Scalars `availability/{split}/{modality}` and `availability/unknown_codes/{modality}`, and one table with patterns,
    label rates and reasons of absence. Cells under 10 samples are suppressed. Only shares and counts reach
    TensorBoard, no ids and no values.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log once, on one process; a resumed run has it already."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        logger = trainer.logger
        if not isinstance(data, RecordDataModule) or not isinstance(logger, TensorBoardLogger):
            return
        if not trainer.is_global_zero or trainer.global_step > 0:
            return
        schema: Any = pl_module.schema
        assert isinstance(schema, RecordSchema)
        there = [name for name in schema.names if name in data.records.schema.names]
        samples = data.records.samples.with_columns(pl.Series("split", data.split))
        for k, split in enumerate(SPLITS):
            part = samples.filter(pl.col("split") == k)
            shares = {f"availability/{split}/{n}": share for n in there if (share := told_share(part, n)) is not None}
            logger.log_metrics(shares, step=0)
        unknown = {f"availability/unknown_codes/{name}": share for name, share in unknown_codes(data, schema).items()}
        logger.log_metrics(unknown, step=0)
        logger.experiment.add_text("availability", overview(data, schema), 0)


def told_share(samples: pl.DataFrame, modality: str) -> float | None:
    """Share of samples that have a modality; None where fewer than 10 people have it, or lack it."""
    has = pl.col(f"observed/{modality}")
    people = [samples.filter(side)["patient"].n_unique() for side in (has, ~has)]
    if samples["patient"].n_unique() < FEWEST or any(0 < n < FEWEST for n in people):
        return None
    return samples.filter(has).height / samples.height


def unknown_codes(data: RecordDataModule, schema: RecordSchema) -> dict[str, float]:
    """Share of val's code occurrences that the vocabulary, fitted on train, does not hold, by `codes` modality."""
    dataset = RecordDataset(data.records, schema, data.samples_of("val"))
    batch = dataset.__getitems__(list(range(len(dataset))))
    values = {m.name: batch.elements[m.name].values for m in schema.modalities if m.kind == "codes"}
    return {n: float((v == 0).float().mean()) for n, v in values.items() if isinstance(v, torch.Tensor) and len(v)}


def overview(data: RecordDataModule, schema: RecordSchema) -> str:
    """Availability, patterns, labels and reasons of a datamodule's train split, as Markdown tables."""
    train = data.samples_of("train")
    samples = data.records.samples[train]
    there = [name for name in schema.names if name in data.records.schema.names]
    reasons = availability_reasons(data.records, train).join(samples.select("sample"), on="sample", how="semi")
    lines = [f"Training samples: {len(train)}", "", "| modality | observed | not ordered | not collected | unknown |"]
    lines.append("|---|---|---|---|---|")
    for name in there:
        absent = reasons.filter(pl.col("modality") == name)["reason"]
        counts = [int((absent == r).sum()) for r in ("not_ordered", "not_collected", "unknown")]
        lines.append(f"| {name} | {_cell(int(samples[f'observed/{name}'].sum()))} | {' | '.join(map(_cell, counts))} |")
    lines += ["", "| codes | occurrences in val outside train's vocabulary |", "|---|---|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in unknown_codes(data, schema).items()]
    lines += ["", "| pattern | samples |", "|---|---|"]
    observed = torch.from_numpy(samples.select(f"observed/{n}" for n in there).to_numpy().astype(bool))
    ids, counts_of = np.unique(pattern_id(observed).numpy(), return_counts=True)
    for index in np.lexsort((ids, -counts_of))[:8]:
        names = pattern_names(int(ids[index]), there)
        lines.append(f"| {' + '.join(names) or 'nothing'} | {_cell(int(counts_of[index]))} |")
    lines += ["", "| task | labelled | positive |", "|---|---|---|"]
    for task in schema.task_names:
        label = (
            samples[f"label/{task}"].drop_nulls()
            if f"label/{task}" in samples.columns
            else pl.Series([], dtype=pl.Boolean)
        )
        lines.append(f"| {task} | {_cell(len(label))} | {_cell(int(label.sum() or 0))} |")
    return "\n".join(lines)


def _cell(count: int) -> str:
    return str(count) if count == 0 or count >= FEWEST else f"< {FEWEST}"
