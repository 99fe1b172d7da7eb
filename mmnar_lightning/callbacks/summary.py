"""The numbers of a test or validation, short enough to read, and a report of the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor

from mmnar_lightning import __version__, _terminal
from mmnar_lightning._evaluated import PREFIXES
from mmnar_lightning.callbacks.availability import overview
from mmnar_lightning.evaluation.assessment import Assessment, assess
from mmnar_lightning.evaluation.findings import findings
from mmnar_lightning.evaluation.groups import GroupRow
from mmnar_lightning.records import RecordDataModule, RecordSchema, pattern_names
from mmnar_lightning.rectifier import Coverage, Rectifier

SHOWN = ("auroc", "auprc", "brier", "log_loss", "calibration_slope")


class MetricSummary(Callback):
    """Prints the metrics of each task, and writes ``metrics-``, ``findings-{stage}.json`` and ``report-{stage}.md``.

    Raw, globally recalibrated and rectified probabilities stand side by side. A test also gets 95 % patient-cluster
    bootstrap intervals, what availability alone predicts (the δ-only model, and its AUROC adjusted for the risk known
    of everyone), the worst pattern as a shrunken estimate, metrics by availability pattern and subgroup, and the
    coverage of the conformal sets, from ``pl_module.evaluated["test"]`` and ``pl_module.conformal``; without the former
    there are point estimates alone. The findings hold what a report is drawn from, see `findings`.

    One process prints, computes and writes. The files lie in the run's folder and are whole or not there; they hold
    counts and shares, none below 10 people.
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
        schema: Any = pl_module.schema
        assert isinstance(schema, RecordSchema)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, RecordDataModule):
            rows, rectifier, conformal = (
                _rows(pl_module, stage),
                _of(pl_module, "rectifier"),
                _of(pl_module, "conformal"),
            )
            assessed = None if rows is None or stage != "test" else assess(rows, data, schema, conformal)
            found |= {} if assessed is None else assessed.numbers()
            _write(folder / f"report-{stage}.md", report(data, schema, found, stage, rectifier, assessed))
            told = findings(stage, data, schema, rectifier, rows, assessed, _run(trainer, pl_module))
            text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
            _write(folder / f"findings-{stage}.json", text + "\n")
        _write(folder / f"metrics-{stage}.json", json.dumps(found, indent=1, sort_keys=True) + "\n")
        # the table at the end of a fit is news, that of a test its result
        say = _terminal.show if getattr(pl_module, "finishing", False) else _terminal.result
        say(_table(schema, found, stage))
        say(f"all metrics: {folder / f'metrics-{stage}.json'}   report: {folder / f'report-{stage}.md'}")


def _of(module: LightningModule, name: str) -> Any:
    return getattr(module, name)


def _rows(module: Any, stage: str) -> dict[str, Tensor] | None:
    """Probabilities and targets of the rows that the module has kept; None where it keeps none."""
    kept = getattr(module, "evaluated", {}).get(stage)
    if kept is None:
        return None
    names = ("targets", "labelled", "pattern", "sample")
    rows: dict[str, Tensor] = module.versions(kept.logits, kept.pattern)
    return rows | {name: getattr(kept, name) for name in names}


def _run(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Facts of the run for the findings: those of training are the checkpoint's."""
    epochs, steps = trainer.current_epoch, trainer.global_step
    if trainer.ckpt_path is not None:
        checkpoint = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True)
        epochs, steps = checkpoint["epoch"] + 1, checkpoint["global_step"]
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    return {
        "seed": int(seed) if seed.isdigit() else None,
        "epochs": epochs,
        "steps": steps,
        "parameters": sum(p.numel() for p in module.parameters()),
        "device": module.device.type,
        "devices": trainer.world_size,
        "model": type(getattr(module, "fusion", module)).__name__,
    }


def report(
    data: RecordDataModule,
    schema: RecordSchema,
    found: Mapping[str, float],
    stage: str,
    rectifier: Rectifier,
    assessed: Assessment | None = None,
) -> str:
    """Say in Markdown what was run on whom, with which result.

    Args:
        data: The datamodule, set up.
        schema: The model's schema.
        found: Metrics by name, without the stage.
        stage: `val` or `test`.
        rectifier: The model's; says how far up its ladder each task went, or why it leaves it as it is.
        assessed: What was found beside the metrics; its numbers are part of `found`.
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
    versions = PREFIXES if assessed is None else PREFIXES | {"δ-only": "delta_only/"}
    for task in schema.task_names:
        for name, prefix in versions.items():
            cells = [_interval(found, f"{prefix}{task}/{metric}") for metric in SHOWN]
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    lines += _ladder(rectifier)
    if assessed is not None:
        lines += [*_how(assessed), *_availability(assessed, schema, found), *_worst(assessed, schema)]
        lines += [*_groups(assessed.groups), *_conformal(assessed.coverage)]
    return "\n".join(lines) + "\n"


def _ladder(rectifier: Rectifier) -> list[str]:
    """Which rung of the rectifier's ladder each task got, and why."""
    named = list(zip(rectifier.tasks, rectifier.reasons, strict=True))
    lines = ["", *(f"{task} is neither recalibrated nor rectified: {why}." for task, why in named if why)]
    if not rectifier.choices:
        return [
            *lines,
            "",
            "The fit has not come to its end: the rectifier is that of an epoch, and there are no conformal sets.",
        ]
    lines += [
        "",
        "## Rectifier",
        "",
        "Fitted once after training, on calibration A. The simplest rung whose held-out log loss is",
    ]
    lines += ["within one standard error of the best, over the paired differences of patients.", ""]
    lines += ["| task | rung | log loss minus the best (standard error), by rung | patients |", "|---|---|---|---|"]
    for task, choice, why in zip(rectifier.tasks, rectifier.choices, rectifier.reasons, strict=True):
        if why:
            continue
        compared = zip(choice.rungs, choice.difference, choice.se, strict=True)
        told = ", ".join(f"{rung} {d:.4f} ({se:.4f})" for rung, d, se in compared) or choice.reason
        lines.append(f"| {task} | {choice.chosen} | {told} | {_suppressed(choice.patients)} |")
    return lines


def _how(assessed: Assessment) -> list[str]:
    """Say what the intervals are."""
    draws = sorted({i.draws for i in assessed.intervals.values() if math.isfinite(i.low)})
    if not draws:
        return []
    counted = str(draws[0]) if len(draws) == 1 else f"{draws[0]} to {draws[-1]}"
    text = (
        f"In brackets: 95 % intervals over {counted} draws of the test patients, each with all of their samples. They"
    )
    return ["", text, "hold no variation of training. Fewer draws are made of more rows, to bound the time."]


def _availability(assessed: Assessment, schema: RecordSchema, found: Mapping[str, float]) -> list[str]:
    """What the pattern of observed modalities predicts by itself, and beyond what is known of everyone."""
    structured, fitted = assessed.structured, assessed.availability
    lines = ["", "## Availability alone", ""]
    lines += [f"δ-only: the risk of each availability pattern, shrunken, from {_suppressed(fitted.samples)} training"]
    lines += ["samples; it reads no value. Availability also measures severity and throughput of care."]
    lines += [f"{t} has no δ-only model: {r}." for t, r in zip(schema.task_names, fitted.reasons, strict=True) if r]
    if structured.reason:
        return [*lines, "", f"Its AUROC adjusted for the structured-only risk is not available: {structured.reason}."]
    lines += ["", "Adjusted: the AUROC among people of the same structured-only risk (Janes and Pepe 2009), 0.5 where"]
    lines += ["availability tells nothing beyond it. That risk is a logistic regression on what (nearly) everyone has,"]
    lines += [
        f"{', '.join(structured.modalities)}, from {_suppressed(structured.samples)} training samples. With fewer than"
    ]
    lines += [
        "50 events there are too few strata of risk to adjust; with few hundred a little of the confounding is left.",
        "",
    ]
    lines += ["| task | structured-only AUROC | δ-only AUROC | adjusted |", "|---|---|---|---|"]
    for task in schema.task_names:
        names = (f"structured_only/{task}/auroc", f"delta_only/{task}/auroc", f"delta_only/{task}/adjusted_auroc")
        lines.append(f"| {task} | {' | '.join(_interval(found, name) for name in names)} |")
    return lines


def _worst(assessed: Assessment, schema: RecordSchema) -> list[str]:
    """The lowest AUROC inside a pattern, shrunken and as it is."""
    lines = ["", "## Worst pattern", ""]
    lines += ["Of the patterns that ≥ 10 people have with the outcome and ≥ 10 without. The raw minimum reads low; the"]
    lines += ["interval of the shrunken estimate covers on average over patterns.", ""]
    lines += ["| task | patterns | raw minimum | lowest shrunken AUROC | pattern |", "|---|---|---|---|---|"]
    for task, patterns in assessed.patterns.items():
        cells = ["–"] * 3
        if patterns:
            w, raw = patterns[0], min(row.raw for row in patterns)
            name = "+".join(pattern_names(w.pattern, schema.names)) or "none"
            cells = [f"{raw:.3f}", f"{w.shrunken:.3f} [{w.low:.3f}, {w.high:.3f}]", name]
        lines.append(f"| {task} | {len(patterns)} | {' | '.join(cells)} |")
    return lines


def _groups(rows: list[GroupRow]) -> list[str]:
    """Event rate and rectified metrics by availability pattern and by subgroup."""
    lines: list[str] = []
    by_pattern = [row for row in rows if row.variable in ("pattern", "modality_count")]
    others = [row for row in rows if row.variable not in ("pattern", "modality_count")]
    for title, part in (("By availability pattern", by_pattern), ("Subgroups", others)):
        lines += ["", f"## {title}", ""]
        told = [row for row in part if row.events is not None]
        if told:
            lines += [
                "Rectified probabilities, with 95 % intervals over the same draws of the test patients; the findings"
            ]
            lines += ["hold raw and recalibrated ones, AUPRC and log loss, too.", ""]
            lines += ["| task | by | group | samples | event rate | auroc | brier |", "|---|---|---|---|---|---|---|"]
        for row in told:
            ends = [row.rate, *(row.metrics.get("rectified", {}).get(name) for name in ("auroc", "brier"))]
            name = row.group.replace("|", "\\|")
            lines.append(
                f"| {row.task} | {row.variable} | {name} | {row.samples} | {' | '.join(_ends(end) for end in ends)} |"
            )
        if few := len(part) - len(told):
            lines += ["", f"Groups with too few people with the outcome or without to be shown: {few}."]
        elif not told:
            lines.append("There are none.")
    return lines


def _ends(found: tuple[float | None, float | None, float | None] | None) -> str:
    if found is None or found[0] is None:
        return "–"
    ends = "" if found[1] is None or found[2] is None else f" [{found[1]:.3f}, {found[2]:.3f}]"
    return f"{found[0]:.3f}{ends}"


def _conformal(coverage: list[Coverage]) -> list[str]:
    """Coverage of the conformal sets by class and pattern group."""
    lines = ["", "## Conformal sets", ""]
    if not coverage:
        return [
            *lines,
            "There are none: the fit has not come to its end, or every group has fewer than 10 people.",
        ]
    lines += [
        "How often a set holds the true label, by class and pattern group; groups of fewer than 10 people are left"
    ]
    lines += ["out. Expected: the range of 95 % of such coverages for as many rows, were they exchangeable; several"]
    lines += ["samples of a patient widen it. Where there is none, and inside a group, nothing is promised.", ""]
    lines += ["| task | label | group | calibration | test | coverage | expected | mean size | empty | single | both |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in coverage:
        expected = "–" if math.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        cells = [row.task, row.label, row.group, _suppressed(row.calibration), row.samples, f"{row.coverage:.3f}"]
        shares = [f"{share:.3f}" for share in (row.size, row.empty, row.single, row.both)]
        lines.append(f"| {' | '.join(map(str, [*cells, expected, *shares]))} |")
    return lines


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


def _interval(found: Mapping[str, float], name: str) -> str:
    low, high = found.get(f"{name}/low"), found.get(f"{name}/high")
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{_number(found.get(name))}{ends}"


def _suppressed(count: int) -> str:
    return str(count) if count == 0 or count >= 10 else "< 10"


def _write(path: Path, text: str) -> None:
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    parts.write_text(text, encoding="utf-8")
    parts.replace(path)
