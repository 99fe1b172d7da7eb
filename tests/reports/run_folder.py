"""A run folder as `mmnar test` leaves it, made up: no training, and names that try to break out of a page."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

HOSTILE = "<script>alert(1)</script>\"'&|"
MODALITIES = ("structured", "labs", "notes", HOSTILE)
TASKS = ("mortality", f"readmission {HOSTILE}")
VERSIONS = ("raw", "recalibrated", "rectified")
PATTERNS: tuple[tuple[str, ...], ...] = (MODALITIES, MODALITIES[:3], ("structured", "labs"), ("structured",))


def findings(stage: str = "test") -> dict[str, Any]:
    """Findings by the contract."""
    return {
        "format": 1,
        "stage": stage,
        "versions": {"mmnar-lightning": "0.1.0", "python": "3.11.7", "torch": "2.6.0", "lightning": "2.6.4"},
        "run": {"seed": 0, "epochs": 15, "steps": 285, "parameters": 123456, "device": "cpu", "devices": 1}
        | {"model": "MMNARFusion"},
        "data": {
            "dataset": "eicu",
            "cohort": "landmark",
            "fingerprint": "5b1c3db67123b363",
            "store": "eicu-landmark-5b1c3db67123b363",
            "samples": 1951,
            "patients": 1754,
            "splits": {"by": "patient", "split_seed": 0, "folds": 5, "test_fold": 0, "test_values": [], "val": 0.125},
        },
        "tasks": [
            {"name": TASKS[0], "horizon": "in hospital", "description": "died before discharge", "parent": None},
            {"name": TASKS[1], "horizon": "within 30 days", "description": "came back", "parent": None},
        ],
        "modalities": [{"name": name, "kind": "vector", "items": 12} for name in MODALITIES],
        "cohort": _cohort(),
        "calibration": {task: {v: _curve(k) for k, v in enumerate(VERSIONS)} for task in TASKS},
        "decision": {task: _decision() for task in TASKS},
        "groups": [row for task in TASKS for row in _groups(task)],
        "rectifier": {
            "fitted": True,
            "rungs": [
                {"task": TASKS[0], "chosen": "intercepts", "reason": ""},
                {"task": TASKS[1], "chosen": None, "reason": "fewer than 10 positive labels"},
            ],
            "shifts": [
                {"task": TASKS[0], "modalities": list(p), "shift": 0.4 - 0.25 * k} for k, p in enumerate(PATTERNS)
            ],
        },
        "worst": [
            {"task": TASKS[0], "modalities": ["structured"], "raw": 0.6, "shrunken": 0.66, "low": 0.47, "high": 0.81}
            | {"patterns": 4}
        ],
        "coverage": [_coverage(label, group) for label in (0, 1) for group in ("all", "structured+labs", "other_of_2")],
    }


def _cohort() -> dict[str, Any]:
    flow = [("patient", "rows read", 3032), ("patient", "unit stays read", 3032)]
    flow += [("patient", "excluded: step-down unit, no ICU", 283), ("patient", "excluded: unknown discharge", 3)]
    flow += [("episodes", "found", 2404), ("episodes", f"excluded: {HOSTILE}", 163), ("samples", "kept", 1951)]
    splits = (("train", 1199, 1080), ("val", 183, 160), ("calibration", 170, 155), ("test", 399, 359))
    return {
        "flow": [{"table": t, "what": w, "rows": n} for t, w, n in flow],
        "splits": [{"split": s, "samples": n, "patients": p} for s, n, p in splits],
        "labels": [
            {"split": s, "task": t, "labelled": n, "positive": None if s == "val" else n // 9}
            for s, n, _ in splits
            for t in TASKS
        ],
        "availability": [
            {"split": s, "modality": m, "observed": 0.61, "not_ordered": 0.3, "not_collected": 0.06, "unknown": None}
            for s in ("train", "test")
            for m in MODALITIES
        ],
        "sites": [
            {"site": site, "samples": n, "observed": dict.fromkeys(MODALITIES, 0.5)}
            for site, n in (("73", 321), (HOSTILE, 45), ("tiny hospital", 4))
        ],
        "patterns": [{"modalities": list(p), "samples": 400 - 120 * k} for k, p in enumerate(PATTERNS)],
    }


def _curve(k: int) -> dict[str, Any]:
    predicted = [0.02, 0.06, 0.1, 0.18, 0.31, 0.52]
    observed = [p * (1.4 - 0.2 * k) for p in predicted]
    return {
        "predicted": predicted,
        "observed": observed,
        "low": [p * 0.6 for p in observed],
        "high": [min(1.0, p * 1.5 + 0.02) for p in observed],
        "samples": [67] * 6,
    }


def _decision() -> dict[str, Any]:
    threshold = [k / 50 for k in range(1, 25)]
    treat_all = [0.11 - 0.89 * t / (1 - t) for t in threshold]
    return {
        "threshold": threshold,
        "treat_all": treat_all,
        "net_benefit": {v: [max(0.0, 0.11 - 0.3 * t + 0.003 * k) for t in threshold] for k, v in enumerate(VERSIONS)},
    }


def _groups(task: str) -> list[dict[str, Any]]:
    named = [("pattern", "+".join(p)) for p in PATTERNS] + [("modality_count", str(k)) for k in range(1, 5)]
    named += [("sex", s) for s in ("female", "male")] + [("age", a) for a in ("18-44", "45-64", "65-79", "80+")]
    rows = []
    for k, (variable, group) in enumerate(named):
        few = k % 4 == 3
        auroc = [None, None, None] if few else [0.84 - 0.03 * (k % 4), 0.75 - 0.03 * (k % 4), 0.91]
        metrics = {"auroc": auroc, "brier": [0.08, 0.06, 0.1]}
        rows.append(
            {"variable": variable, "group": group, "task": task, "samples": 120 - k, "people": 100 - k}
            | {"events": None if few else 14, "rate": [0.12, 0.07, 0.19], "metrics": dict.fromkeys(VERSIONS, metrics)}
        )
    tiny = {"variable": "sex", "group": "tiny group", "task": task, "samples": 5, "people": 4, "events": None}
    return [*rows, tiny | {"rate": [0.2, None, None], "metrics": {}}]


def _coverage(label: int, group: str) -> dict[str, Any]:
    expected = {"low": None, "high": None} if group == "all" else {"low": 0.84, "high": 0.95}
    return {
        "task": TASKS[0],
        "label": label,
        "group": group,
        "calibration": 60,
        "samples": 44,
        "people": 40,
        "coverage": 0.8 if label else 0.91,
        "size": 1.2,
        "empty": 0.0,
        "single": 0.8,
        "both": 0.2,
    } | expected


def metrics() -> dict[str, float]:
    """Metrics with intervals, as metrics-test.json holds them."""
    found: dict[str, float] = {}
    prefixes = {"": 0.0, "recalibrated/": 0.0, "rectified/": 0.004}
    for task in TASKS:
        for prefix, gain in prefixes.items():
            loss = {"": 0.287, "recalibrated/": 0.26, "rectified/": 0.256}[prefix]
            values = {"auroc": 0.803 + gain, "auprc": 0.31, "brier": 0.08, "log_loss": loss}
            for name, value in values.items():
                key = f"{prefix}{task}/{name}"
                found |= {key: value, f"{key}/low": value * 0.93, f"{key}/high": value * 1.06}
            found |= {f"{prefix}{task}/calibration_intercept": -0.12, f"{prefix}{task}/calibration_slope": 1.1}
            found[f"{prefix}{task}/excess_ece"] = -0.0004
        for key, value in (("delta_only/{}/auroc", 0.62), ("delta_only/{}/adjusted_auroc", 0.56)):
            name = key.format(task)
            found |= {name: value, f"{name}/low": value - 0.06, f"{name}/high": value + 0.06}
        found[f"structured_only/{task}/auroc"] = 0.71
    return found


def evaluation() -> dict[str, Any]:
    """What `mmnar evaluate` found, as evaluation.json holds it."""
    overlap = {"modality": "labs", "eligible": 350, "observed": 0.7, "ess": 120.0, "clipped_share": 0.01}
    ends = {"estimate": 0.004, "low": 0.001, "high": 0.007}
    value = {"modality": "labs", "task": TASKS[0], "loss": "brier", "refused": None, "tipping_gamma": 1.4} | ends
    sweep = [{"gamma": g, "interval_low": 0.0, "interval_high": 0.01} for g in (1.0, 1.5)]
    metric = dict.fromkeys(("as_is", "as_if", "difference"), ends)
    shift = {"as_if": f"site={HOSTILE}", "refused": None, "metrics": {TASKS[0]: {"auroc": metric}}, "ess": 80.0}
    return {
        "version": "0.1.0",
        "checkpoint": "best.ckpt",
        "dataset": "eicu",
        "cohort": "landmark",
        "probabilities": "rectified",
        "groups": [],
        "availability": {
            "known_before": {"modalities": ["structured"], "columns": 4},
            "samples": 399,
            "patients": 359,
            "left_out_as_incomplete": 0,
            "assumption": "under ignorability of ordering given w",
            "overlap": [overlap | {"lowest": 0.1, "highest": 0.96, "auroc": 0.66, "refused": None}],
            "value": [value | {"sweep": sweep, "among_recorded": ends}],
            "auroc_gain": [{"modality": "labs", "task": TASKS[0], "refused": None} | ends],
        },
        "as_if": shift
        | {"weights_estimated_in_each_draw": True, "samples": 300, "mean_weight": 1.01}
        | {"assumption": "under ignorability here and there"},
    }


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"class_path": "mmnar_lightning.module.MultimodalOutcomeModule", "init_args": {"lr": 0.001}},
    "data": {"class_path": "mmnar_eicu.EICUDataModule", "init_args": {"root": "/home/someone/eicu", "note": HOSTILE}},
    "run_dir": "/home/someone/runs/eicu",
}


def write_run(
    folder: Path,
    stage: str = "test",
    *,
    found: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    measured: dict[str, float] | None = None,
    evaluated: bool = True,
) -> Path:
    """Write the folder; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(deepcopy(config or CONFIG)), encoding="utf-8")
    (folder / f"findings-{stage}.json").write_text(json.dumps(found or findings(stage)), encoding="utf-8")
    (folder / f"metrics-{stage}.json").write_text(json.dumps(measured or metrics()), encoding="utf-8")
    if evaluated:
        (folder / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    return folder
