"""Predictions of a model with one modality at a time hidden from it, in one pass over the test samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mmnar_lightning.evaluation.availability_report import Predicted
from mmnar_lightning.evaluation.hiding import hide
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import PatientBatch, Reader, RecordDataModule

WHERE = ("accelerator", "precision")


class _Hiding(LightningModule):
    """Predicts each batch with everything, then once without each modality."""

    def __init__(self, model: MultimodalOutcomeModule, kind: Literal["rectified", "raw"]) -> None:
        super().__init__()
        # the datamodule asks the trainer's module what it takes and how files are opened
        self.model, self.schema, self.kind = model, model.schema, kind

    def readers(self) -> dict[str, Reader]:
        """How files are opened: as the model does."""
        return self.model.readers()

    def predict_step(self, batch: PatientBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return probabilities [B, K] by hidden modality (an empty name hides none), targets and samples."""
        whole = self.model.predict_step(batch, batch_idx)
        found = {name: whole[name] for name in ("sample", "targets", "labelled")} | {"p/": whole[self.kind]}
        for name in self.schema.names:
            found[f"p/{name}"] = self.model.predict_step(hide(batch, name), batch_idx)[self.kind]
        return found


def predict_hidden(
    data: RecordDataModule,
    model: MultimodalOutcomeModule,
    settings: Mapping[str, Any],
    kind: Literal["rectified", "raw"] = "rectified",
) -> Predicted:
    """Predict the samples of `predict_splits` with everything that was recorded, and with each modality hidden.

    Args:
        data: The datamodule.
        model: The trained model.
        settings: Arguments of `Trainer`, of which the kind of device and the precision are taken. One device is used.
        kind: Which probabilities.
    """
    trainer = Trainer(
        **{name: settings[name] for name in WHERE if settings.get(name) is not None},
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    batches: Any = trainer.predict(_Hiding(model, kind), datamodule=data)
    whole = {name: torch.cat([b[name].cpu() for b in batches]) for name in batches[0]}
    order = whole["sample"].argsort()
    columns = {name: values[order].numpy() for name, values in whole.items()}
    hidden = {name[2:]: p.astype("float64") for name, p in columns.items() if name.startswith("p/") and name != "p/"}
    return Predicted(
        columns["sample"],
        columns["p/"].astype("float64"),
        hidden,
        columns["targets"].astype("float64"),
        columns["labelled"].astype(bool),
    )
