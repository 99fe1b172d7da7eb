"""Which curves stand together in TensorBoard's custom scalars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mmnar_lightning.callbacks.board import board_of, holds
from mmnar_lightning.metrics.outcomes import PATTERN_METRICS
from mmnar_lightning.module import VALIDATION_METRICS
from mmnar_lightning.records import RecordSchema

TAG = "custom_scalars__config__"
Layout = dict[str, dict[str, list[Any]]]


class ScalarLayout(Callback):
    """Writes once, at the start of `fit`, which curves TensorBoard shows in one chart, see `scalar_layout`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout, on one process; a run that goes on has it already."""
        board, schema = board_of(trainer), getattr(pl_module, "schema", None)
        if board is None or not isinstance(schema, RecordSchema) or holds(board, TAG):
            return
        board.experiment.add_custom_scalars(scalar_layout(schema.task_names))
        board.experiment.flush()


def scalar_layout(tasks: Sequence[str]) -> Layout:
    """Charts by category: losses by term, metrics by task, metrics and shifts by pattern.

    Args:
        tasks: Names of the tasks.

    Returns:
        ``{category: {chart: ["Multiline", [regular expressions]]}}`` as `SummaryWriter.add_custom_scalars` takes it,
        over the names that `MultimodalOutcomeModule` logs.
    """
    losses = {
        "what is minimised": _chart("train/loss"),
        "tasks": _chart("train/loss_.+"),
        "auxiliary terms": _chart("train/(?!loss|spread/|unreadable_|auxiliary_share)[^/]+"),
        "val": _chart("val/loss"),
        "spread of tokens and of the patient vector": _chart("train/spread/[^/]+"),
    }
    each = "|".join(re.escape(task) for task in tasks)
    metrics = {
        f"{metric}, {version}": _chart(f"val/{prefix}({each})/{metric}")
        for metric in VALIDATION_METRICS
        for version, prefix in (("raw", ""), ("rectified", "rectified/"))
    }
    patterns = {
        f"{task}: {metric}": _chart(f"val/{re.escape(task)}/pattern/[^/]+/{metric}")
        for task in tasks
        for metric in PATTERN_METRICS
    }
    patterns |= {f"{task}: shift": _chart(f"rectifier/{re.escape(task)}/pattern/[^/]+") for task in tasks}
    return {"losses by term": losses, "metrics by task": metrics, "by pattern": patterns}


def _chart(expression: str) -> list[Any]:
    # matched from the beginning of a name, not to its end
    return ["Multiline", [f"{expression}$"]]
