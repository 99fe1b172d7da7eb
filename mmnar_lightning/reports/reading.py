"""What a run left in its folder, read and checked: findings, metrics, configuration, evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmnar_lightning.reports.suppression import suppress

FORMAT = 1
STAGES = ("test", "val")
PREFIXES = {"raw": "", "recalibrated": "recalibrated/", "rectified": "rectified/", "δ-only": "delta_only/"}
"""Where the metrics of each kind of probabilities stand in metrics-{stage}.json."""

Estimate = tuple[float | None, float | None, float | None]
"""A number with the ends of its interval, None where there are none."""

NUMBER = (int, float, type(None))
COUNT = (int, type(None))
TEXT = (str, type(None))
SHAPE: dict[str, Any] = {
    "stage": str,
    "versions": dict,
    "run": {"seed": COUNT, "epochs": COUNT, "steps": COUNT, "parameters": COUNT, "device": TEXT, "model": TEXT},
    "data": {"dataset": str, "cohort": str, "fingerprint": str, "store": str, "samples": COUNT, "patients": COUNT}
    | {"splits": dict},
    "tasks": [{"name": str, "horizon": TEXT, "description": TEXT, "parent": TEXT}],
    "modalities": [{"name": str, "kind": str, "items": COUNT}],
    "cohort": {
        "flow": [{"table": str, "what": str, "rows": COUNT}],
        "splits": [{"split": str, "samples": COUNT, "patients": COUNT}],
        "labels": [{"split": str, "task": str, "labelled": COUNT, "positive": COUNT}],
        "availability": [{"split": str, "modality": str, "observed": NUMBER}],
        "sites": [{"site": str, "samples": COUNT, "observed": dict}],
        "patterns": [{"modalities": list, "samples": COUNT}],
    },
    "calibration": dict,
    "decision": dict,
    "groups": [
        {"variable": str, "group": str, "task": str, "samples": COUNT, "people": COUNT, "events": COUNT}
        | {"rate": list, "metrics": dict}
    ],
    "rectifier": {
        "fitted": bool,
        "rungs": [{"task": str, "chosen": TEXT, "reason": TEXT}],
        "shifts": [{"task": str, "modalities": list, "shift": NUMBER}],
    },
    "worst": [
        {"task": str, "modalities": list, "raw": NUMBER, "shrunken": NUMBER, "low": NUMBER, "high": NUMBER}
        | {"patterns": COUNT}
    ],
    "coverage": [
        {"task": str, "label": int, "group": str, "calibration": COUNT, "samples": COUNT, "people": COUNT}
        | dict.fromkeys(("coverage", "low", "high", "size", "empty", "single", "both"), NUMBER)
    ],
}
"""Keys of findings-{stage}.json and the types of their values: a list holds any number of what stands in it."""


@dataclass(frozen=True)
class Run:
    """What a run left.

    Args:
        name: Name of its folder.
        stage: `test`, or `val` where nothing was tested.
        findings: findings-{stage}.json, small counts suppressed.
        metrics: metrics-{stage}.json.
        config: config.yaml, without the folders that paths lie in.
        evaluation: evaluation.json of `mmnar evaluate`; None where there is none.
    """

    name: str
    stage: str
    findings: dict[str, Any]
    metrics: dict[str, float | None]
    config: dict[str, Any]
    evaluation: dict[str, Any] | None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order."""
        return [task["name"] for task in self.findings["tasks"]]

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return [modality["name"] for modality in self.findings["modalities"]]

    def estimate(self, version: str, task: str, metric: str) -> Estimate:
        """Find a metric with its interval.

        Args:
            version: A key of `PREFIXES`, or `structured-only`.
            task: Name of the task.
            metric: `auroc`, `log_loss` and so on.
        """
        name = f"{PREFIXES.get(version, 'structured_only/')}{task}/{metric}"
        return self.metrics.get(name), self.metrics.get(f"{name}/low"), self.metrics.get(f"{name}/high")

    def labels(self, task: str) -> tuple[int | None, int | None]:
        """Labelled and positive samples of the split that the metrics are of."""
        for row in self.findings["cohort"]["labels"]:
            if row["split"] == self.stage and row["task"] == task:
                return row["labelled"], row["positive"]
        return None, None


def read_run(folder: Path) -> Run:
    """Read what `mmnar fit`, `test` and `evaluate` left in a folder.

    Raises:
        ValueError: If it holds no run, or a file in it is of another format or lacks something; says which, and what
            to do.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} holds no run: there is no config.yaml in it; fit first, or give another folder")
    stage = next((s for s in STAGES if (folder / f"findings-{s}.json").is_file()), None)
    if stage is None:
        raise ValueError(
            f"{folder}: there is no findings-test.json or findings-val.json in it; run `mmnar test` with this "
            "--run_dir (fit writes those of val at its end)"
        )
    path = folder / f"findings-{stage}.json"
    findings = _read_json(path)
    if findings.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {findings.get('format')!r}, but this release reads {FORMAT}; run `mmnar test` again "
            "with this release, or `mmnar report` of the one that wrote it"
        )
    _check(findings, SHAPE, path, "")
    if findings["stage"] != stage:
        raise ValueError(f"{path}: key 'stage' says {findings['stage']!r}; run `mmnar test` again")
    suppress(findings)
    metrics = folder / f"metrics-{stage}.json"
    if not metrics.is_file():
        raise ValueError(f"{metrics} is absent, but {path.name} is there; run `mmnar test` again")
    evaluation = folder / "evaluation.json"
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise ValueError(f"{folder / 'config.yaml'}: is no YAML that can be read") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.yaml'}: not a configuration")
    return Run(
        folder.resolve().name,
        stage,
        findings,
        _read_json(metrics),
        _without_folders(config),
        _read_evaluation(evaluation) if evaluation.is_file() else None,
    )


def _read_evaluation(path: Path) -> dict[str, Any]:
    found = _read_json(path)
    _check(found, {"availability": dict, "probabilities": str}, path, "")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # NaN is no number to show
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON; run what wrote it again") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path}: not a JSON object; run what wrote it again")
    return read


def _check(value: Any, shape: Any, path: Path, at: str) -> None:
    """Compare with a part of `SHAPE`; the error names file and key."""
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path}: key {at!r} holds {type(value).__name__}, not {_named(kind)}; write it again")
    if isinstance(shape, dict):
        for key, part in shape.items():
            inner = f"{at}.{key}".lstrip(".")
            if key not in value:
                raise ValueError(f"{path}: key {inner!r} is missing; write it again")
            _check(value[key], part, path, inner)
    elif isinstance(shape, list):
        for k, item in enumerate(value):
            _check(item, shape[0], path, f"{at}[{k}]")


def _named(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)


def _without_folders(value: Any) -> Any:
    """Keep of an absolute path its last part: the others name people and machines."""
    if isinstance(value, dict):
        return {k: _without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v) for v in value]
    if isinstance(value, str) and re.match(r"[/~]|[A-Za-z]:[\\/]|file:", value):
        return f"…/{PurePosixPath(value.replace(chr(92), '/')).name}"
    return value
