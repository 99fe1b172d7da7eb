"""What runs were given and what they came to, side by side in TensorBoard's HPARAMS."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mmnar_lightning.callbacks.board import board_of, holds
from mmnar_lightning.records import RecordDataModule, RecordSchema

Settings = dict[str, str | float]
# TensorBoard shows the first few until one asks for more
FIRST = ("fusion", "width", "lr", "data/batch_size", "trainer/max_epochs")
# what identifies the data or the code rather than being chosen
NOT_SETTINGS = ("schema", "_class_path", "_instantiator")


class RunComparison(Callback):
    """Writes the settings of a run and the metrics of its best checkpoint for TensorBoard's HPARAMS.

    They are written at the end of `mmnar fit`, when the best checkpoint is finished, into the run's own folder:
    ``best/val/…`` are the metrics of that checkpoint with its final rectifier. ``test/…`` stand beside them once
    `mmnar test` has logged them. TensorBoard takes the columns from one of the runs it shows. A run that goes on writes
    new metrics and no second set of settings; one that had come to its end writes nothing.
    """

    def __init__(self) -> None:
        self._board: TensorBoardLogger | None = None
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the run's logger: what follows the fit is hidden from it."""
        self._board, self._trained = board_of(trainer), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that there was something left to train."""
        self._trained = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, when the best checkpoint has been finished."""
        board, schema = self._board, getattr(pl_module, "schema", None)
        if board is None or not getattr(pl_module, "finishing", False) or not isinstance(schema, RecordSchema):
            return
        from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
        from torch.utils.tensorboard.summary import hparams

        there = holds(board, SESSION_START_INFO_TAG)
        if there and not self._trained:
            return
        names = compared_metrics(schema.task_names)
        step, known = trainer.global_step, trainer.callback_metrics
        found = {f"best/val/{name}": float(known[f"val/{name}"]) for name in names if f"val/{name}" in known}
        board.log_metrics(found, step=step)
        if not there:
            columns = [f"{stage}/{name}" for stage in ("best/val", "test") for name in names]
            # SummaryWriter.add_hparams makes a folder of its own, Lightning's way declares no metric that comes later
            for summary in hparams(  # type: ignore[no-untyped-call]
                settings(trainer, pl_module), dict.fromkeys(columns)
            ):
                board.experiment._get_file_writer().add_summary(summary, step)
        board.experiment.close()


def compared_metrics(tasks: Sequence[str]) -> list[str]:
    """Names, without the stage, of the metrics that runs are compared by."""
    means = ["auroc", "auprc", "brier", "log_loss", "rectified/brier", "rectified/log_loss"]
    return [*means, *(name for task in tasks for name in (f"{task}/auroc", f"rectified/{task}/brier"))]


def settings(trainer: Trainer, module: LightningModule) -> Settings:
    """What was chosen for a run, by name, as flat numbers and words; nothing of what was fitted or read from data."""
    chosen = {name: value for name, value in dict(module.hparams).items() if name not in NOT_SETTINGS}
    found = _flat(chosen, "")
    data: Any = getattr(trainer, "datamodule", None)
    if isinstance(data, RecordDataModule):
        manifest = data.records.manifest
        own = {name: getattr(data, name) for name in ("modalities", "tasks", "min_patients", "batch_size")}
        own |= {"dataset": manifest["dataset"], "cohort": manifest["cohort"], "splits": asdict(data.splits)}
        found |= _flat(own, "data/")
    own = {"max_epochs": trainer.max_epochs, "precision": trainer.precision, "devices": trainer.world_size}
    found |= _flat(own | {"seed": os.environ.get("PL_GLOBAL_SEED")}, "trainer/")
    return {name: found[name] for name in FIRST if name in found} | found


def _flat(values: Mapping[str, Any], front: str) -> Settings:
    found: Settings = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if "class_path" in value:
                found[f"{front}{name}"] = str(value["class_path"]).rpartition(".")[2]
                value = value.get("init_args") or {}
            found |= _flat(value, f"{front}{name}/")
        elif isinstance(value, (list, tuple)):
            found[f"{front}{name}"] = ", ".join(map(str, value))
        elif isinstance(value, bool):
            found[f"{front}{name}"] = str(value).lower()
        elif value is not None:
            found[f"{front}{name}"] = value if isinstance(value, (int, float)) else str(value)
    return found
