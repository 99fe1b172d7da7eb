"""The numbers of a test or validation, short enough to read, and a report of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from mmnar_lightning import __version__
from mmnar_lightning.callbacks.availability import overview
from mmnar_lightning.records import RecordDataModule, RecordSchema

SHOWN = ("auroc", "auprc", "brier", "log_loss", "calibration_slope")
VERSIONS = {"raw": "", "recalibrated": "recalibrated/", "rectified": "rectified/"}


class MetricSummary(Callback):
    """Prints the metrics of each task, and writes ``metrics-{stage}.json`` and ``report-{stage}.md``.

    Raw, globally recalibrated and rectified probabilities stand side by side. One process prints and writes. The files
    lie in the run's folder and are whole or not there; they hold counts and shares, none below 10 people.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report `mmnar validate`; the validations inside `fit` are in TensorBoard."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report `mmnar test`."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        found = {
            k.removeprefix(f"{stage}/"): float(v)
            for k, v in trainer.callback_metrics.items()
            if k.startswith(f"{stage}/")
        }
        # `log_dir` is broadcast: every process must ask
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero or not found:
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder / f"metrics-{stage}.json", json.dumps(found, indent=1, sort_keys=True) + "\n")
        schema: Any = pl_module.schema
        assert isinstance(schema, RecordSchema)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, RecordDataModule):
            rectifier: Any = pl_module.rectifier
            reasons = dict(zip(schema.task_names, rectifier.reasons, strict=True))
            _write(folder / f"report-{stage}.md", report(data, schema, found, stage, reasons))
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)
        console.print(_table(schema, found, stage))
        console.print(f"all metrics: {folder / f'metrics-{stage}.json'}   report: {folder / f'report-{stage}.md'}")


def report(
    data: RecordDataModule, schema: RecordSchema, found: Mapping[str, float], stage: str, reasons: Mapping[str, str]
) -> str:
    """Say in Markdown what was run on whom, with which result.

    Args:
        data: The datamodule, set up.
        schema: The model's schema.
        found: Metrics by name, without the stage.
        stage: `val` or `test`.
        reasons: Why the rectifier leaves a task as it is, by task; an empty string where it does not.
    """
    manifest = data.records.manifest
    lines = [f"# {manifest['dataset']}, {manifest['cohort']}: {stage}", ""]
    lines += [f"mmnar-lightning {__version__}; store `{data.records.path.name}` ({manifest['samples']} samples of "]
    lines[-1] += f"{manifest['patients']} people); splits {data.splits}."
    lines += [
        "",
        "A probability here is E[y | what was observed, which modalities were observed]. It says nothing about what",
    ]
    lines += ["would have happened had another modality been recorded. Derived data stay under the source's terms.", ""]
    lines += ["## Who was left out", "", "| table | what | rows |", "|---|---|---|"]
    lines += [f"| {t} | {what} | {_suppressed(n)} |" for t, what, n in manifest.get("counts", []) if "excluded" in what]
    lines += ["", "## Train", "", overview(data, schema), "", "## Results", ""]
    lines += [f"| task | probabilities | {' | '.join(SHOWN)} |", f"|---|---|{'---|' * len(SHOWN)}"]
    for task in schema.task_names:
        for name, prefix in VERSIONS.items():
            cells = [found.get(f"{prefix}{task}/{metric}") for metric in SHOWN]
            lines.append(f"| {task} | {name} | {' | '.join(map(_number, cells))} |")
    left = {task: reason for task, reason in reasons.items() if reason}
    lines += ["", *(f"{task} is neither recalibrated nor rectified: {reason}." for task, reason in left.items())]
    return "\n".join(lines) + "\n"


def _table(schema: RecordSchema, found: Mapping[str, float], stage: str) -> Table:
    table = Table(title=f"{stage}: raw → rectified")
    table.add_column("task", overflow="fold")
    for name in SHOWN:
        table.add_column(name, justify="right")
    for task in [*schema.task_names, ""]:
        prefix = f"{task}/" if task else ""
        pairs = [(found.get(f"{prefix}{n}"), found.get(f"rectified/{prefix}{n}")) for n in SHOWN]
        table.add_row(task or "mean over tasks", *(" → ".join(map(_number, pair)) for pair in pairs))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _suppressed(count: int) -> str:
    return str(count) if count == 0 or count >= 10 else "< 10"


def _write(path: Path, text: str) -> None:
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    parts.write_text(text, encoding="utf-8")
    parts.replace(path)
