"""The numbers of a test or validation, short enough to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

SHOWN = ("auroc", "auprc", "brier", "log_loss", "calibration_slope")


class MetricSummary(Callback):
    """Prints a table of the metrics a task, raw and rectified, and writes all of them to ``metrics-{stage}.json``.

    One process prints and writes. The file lies in the run's folder and is whole or not there.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report `mmnar validate`; the validations inside `fit` are in TensorBoard."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report `mmnar test`."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{stage}/")}
        if not trainer.is_global_zero or not found:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        path = folder / f"metrics-{stage}.json"
        parts = path.with_name(f".{path.name}.{os.getpid()}")
        folder.mkdir(parents=True, exist_ok=True)
        parts.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        parts.replace(path)
        schema: Any = pl_module.schema
        table = Table(title=f"{stage}: raw → rectified")
        table.add_column("task")
        for name in SHOWN:
            table.add_column(name, justify="right")
        for task in [*schema.task_names, ""]:
            prefix = f"{task}/" if task else ""
            pairs = [(found.get(f"{stage}/{prefix}{n}"), found.get(f"{stage}/rectified/{prefix}{n}")) for n in SHOWN]
            table.add_row(task or "mean over tasks", *(" → ".join("–" if v is None else f"{v:.3f}" for v in p) for p in pairs))
        console = Console()
        console.print(table)
        console.print(f"all metrics, also by pattern: {path}")
