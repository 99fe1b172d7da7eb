"""All that is told of a run, as plain JSON: who was in it, what it learned, how well it predicts, for whom."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from mmnar_lightning._evaluated import PREFIXES
from mmnar_lightning.evaluation.assessment import Assessment
from mmnar_lightning.evaluation.calibration_curve import calibration_curve
from mmnar_lightning.evaluation.decision_curve import decision_curve, told_thresholds
from mmnar_lightning.metrics.outcomes import FEWEST, WORST_MINIMUM
from mmnar_lightning.records import RecordDataModule, RecordSchema, availability_reasons, pattern_names
from mmnar_lightning.rectifier import Rectifier

FORMAT = 1
PACKAGES = ("mmnar-lightning", "torch", "lightning", "polars")
PARTS = ("train", "val", "calibration", "conformal", "test")
REASONS = ("not_ordered", "not_collected", "unknown", "unreadable")
MOST_SITES, MOST_PATTERNS = 30, 40


def findings(
    stage: str,
    data: RecordDataModule,
    schema: RecordSchema,
    rectifier: Rectifier,
    rows: Mapping[str, Tensor] | None,
    assessed: Assessment | None,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what is told of a stage; plain JSON types, no NaN.

    A count of 1 to 9 people, and a share that would say it, is None. So is what the stage does not have: `groups`,
    `worst` and `coverage` belong to a test. Splits are `calibration` (A, the rectifier's) and `conformal` (B). Values
    of patients, ids and texts are not looked at; names of sites and groups are.

    Args:
        stage: `val` or `test`.
        data: The datamodule, set up.
        schema: The model's schema.
        rectifier: The model's.
        rows: What `assess` takes; None where the module kept no rows.
        assessed: What `assess` found; None for a validation.
        run: Facts of the run: seed, epochs, steps, parameters, device, devices, model.
    """
    manifest = data.records.manifest
    samples = _samples(data, schema)
    reasons = _reasons(data, samples, schema)
    described = {name: manifest[name] for name in ("dataset", "cohort", "fingerprint", "samples", "patients")}
    found = {
        "format": FORMAT,
        "stage": stage,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "run": dict(run),
        "data": described | {"store": data.records.path.name, "splits": asdict(data.splits)},
        "tasks": [
            {"name": t.name, "horizon": t.horizon, "description": t.description, "parent": t.parent}
            for t in schema.tasks
        ],
        "modalities": [{"name": m.name, "kind": m.kind, "items": len(m.items)} for m in schema.modalities],
        "cohort": {
            "flow": [
                {"table": table, "what": what, "rows": _count(rows_of, rows_of)}
                for table, what, rows_of in manifest.get("counts", [])
            ],
            "splits": [_size(samples.filter(pl.col(split)), split) for split in PARTS],
            "labels": [row for split in PARTS for row in _labels(samples.filter(pl.col(split)), split, schema)],
            "availability": _availability(reasons, samples, schema),
            "sites": _sites(reasons, samples, schema),
            "patterns": _patterns(samples.filter(pl.col("train")), schema, reasons.filter(pl.col("train"))),
        },
        **_curves(data, schema, rows),
        "groups": [] if assessed is None else [asdict(row) for row in assessed.groups],
        "rectifier": _rectifier(rectifier, samples.filter(pl.col("calibration")), schema),
        "worst": [] if assessed is None else list(_worst(assessed, schema)),
        "coverage": [] if assessed is None else list(_coverage(assessed)),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _plain(value: Any) -> Any:
    """Reduce to JSON's types; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(number: int, people: int) -> int | None:
    return number if people == 0 or people >= FEWEST else None


def _samples(data: RecordDataModule, schema: RecordSchema) -> pl.DataFrame:
    """Samples with `observed/{modality}` of all of the schema, and in which splits they are."""
    frame = data.records.samples
    missing = [name for name in schema.names if f"observed/{name}" not in frame.columns]
    frame = frame.with_columns(pl.lit(False).alias(f"observed/{name}") for name in missing)
    inside = np.zeros((len(PARTS), len(data.records)), dtype=bool)
    for s, split in enumerate(PARTS):
        inside[s, data.samples_of(split)] = True
    return frame.with_columns(pl.Series(split, inside[s]) for s, split in enumerate(PARTS))


def _size(samples: pl.DataFrame, split: str) -> dict[str, Any]:
    people = samples["patient"].n_unique()
    return {"split": split, "samples": _count(samples.height, people), "patients": _count(people, people)}


def _labels(samples: pl.DataFrame, split: str, schema: RecordSchema) -> Iterator[dict[str, Any]]:
    for task in schema.task_names:
        labelled, positive = samples.clear(), samples.clear()
        if f"label/{task}" in samples.columns:
            labelled = samples.filter(pl.col(f"label/{task}").is_not_null())
            positive = labelled.filter(pl.col(f"label/{task}"))
        people, events = labelled["patient"].n_unique(), positive["patient"].n_unique()
        others = labelled.filter(~pl.col(f"label/{task}"))["patient"].n_unique() if labelled.height else 0
        told = _count(positive.height, events)
        # where nearly all have the outcome, its count would tell how few have not
        told = None if _count(others, others) is None else told
        yield {"split": split, "task": task, "labelled": _count(labelled.height, people), "positive": told}


def _reasons(data: RecordDataModule, samples: pl.DataFrame, schema: RecordSchema) -> pl.DataFrame:
    """Why each sample lacks the modalities that it lacks: `modality`, `reason`, and the sample's columns."""
    reasons = availability_reasons(data.records, data.samples_of("train"))
    told = ["sample", "patient", "site", *PARTS, *(f"observed/{name}" for name in schema.names)]
    return reasons.join(samples.select(told), on="sample")


def _absences(reasons: pl.DataFrame, names: Sequence[str], samples: int) -> dict[str, dict[str, float | None]]:
    """Share of a group's samples that lack a modality for a reason, of those reasons that there are."""
    counted = reasons.group_by("modality", "reason").agg(n=pl.len(), people=pl.col("patient").n_unique())
    found: dict[str, dict[str, float | None]] = {}
    for modality, reason, n, people in counted.sort("modality", "reason").iter_rows():
        if modality in names:
            found.setdefault(modality, {})[reason] = _share(n, people, samples, samples)
    return found


def _availability(reasons: pl.DataFrame, samples: pl.DataFrame, schema: RecordSchema) -> list[dict[str, Any]]:
    """Shares of samples that have a modality, or lack it for a reason, by split."""
    found = []
    for split in PARTS:
        part, absent = samples.filter(pl.col(split)), reasons.filter(pl.col(split))
        whole = part["patient"].n_unique()
        counted = absent.group_by("modality", "reason").agg(n=pl.len(), people=pl.col("patient").n_unique())
        cells = {(modality, reason): (n, people) for modality, reason, n, people in counted.iter_rows()}
        for name in schema.names:
            there = part.filter(pl.col(f"observed/{name}"))
            counts = {"observed": (there.height, there["patient"].n_unique())}
            counts |= {reason: cells.get((name, reason), (0, 0)) for reason in REASONS}
            shares = {what: _share(*count, part.height, whole) for what, count in counts.items()}
            if any(0 < people < FEWEST for _, people in counts.values()):
                # the share that has it would tell how few lack it
                shares["observed"] = None
            found.append({"split": split, "modality": name, **shares})
    return found


def _share(number: int, people: int, samples: int, of_people: int) -> float | None:
    told = _count(number, people)
    return None if told is None or of_people < FEWEST else told / samples


def _sites(reasons: pl.DataFrame, samples: pl.DataFrame, schema: RecordSchema) -> list[dict[str, Any]]:
    """The largest sites of the store, what share of their samples has each modality, and why the others don't."""
    seen = [pl.col(f"observed/{name}").sum().alias(f"n/{name}") for name in schema.names]
    who = [pl.col("patient").filter(f"observed/{name}").n_unique().alias(f"people/{name}") for name in schema.names]
    who += [pl.col("patient").filter(~pl.col(f"observed/{n}")).n_unique().alias(f"without/{n}") for n in schema.names]
    sites = samples.drop_nulls("site").group_by("site").agg(pl.len(), pl.col("patient").n_unique(), *seen, *who)
    sites = sites.filter(pl.col("patient") >= FEWEST).sort("len", "site", descending=[True, False]).head(MOST_SITES)
    found = []
    for row in sites.iter_rows(named=True):
        size = row["len"], row["patient"]
        shares = {
            name: None
            if 0 < row[f"without/{name}"] < FEWEST
            else _share(row[f"n/{name}"], row[f"people/{name}"], *size)
            for name in schema.names
        }
        absent = _absences(reasons.filter(pl.col("site") == row["site"]), schema.names, row["len"])
        found.append({"site": str(row["site"]), "samples": row["len"], "observed": shares, "absent": absent})
    return found


def _patterns(samples: pl.DataFrame, schema: RecordSchema, reasons: pl.DataFrame | None = None) -> list[dict[str, Any]]:
    """Patterns that ≥ 10 people have, most frequent first, and why what is absent in them is."""
    observed = [f"observed/{name}" for name in schema.names]
    counted = samples.group_by(observed).agg(pl.len(), pl.col("patient").n_unique())
    told = counted.filter(pl.col("patient") >= FEWEST).sort(
        "len", *observed, descending=[True] + [False] * len(observed)
    )
    found = []
    for row in told.head(MOST_PATTERNS).iter_rows(named=True):
        one = {"modalities": [n for n in schema.names if row[f"observed/{n}"]], "samples": row["len"]}
        if reasons is not None:
            same = pl.all_horizontal(pl.col(name) == row[name] for name in observed)
            one["absent"] = _absences(reasons.filter(same), schema.names, row["len"])
        found.append(one)
    return found


def _curves(data: RecordDataModule, schema: RecordSchema, rows: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Calibration and decision curves of the tasks that ≥ 10 people have with the outcome and ≥ 10 without."""
    found: dict[str, Any] = {"calibration": {}, "decision": {}}
    if rows is None:
        return found
    columns = {name: values.detach().cpu().double().numpy() for name, values in rows.items()}
    patient = data.records.samples["patient"].gather(rows["sample"].cpu().numpy()).rank("dense").to_numpy()
    for k, task in enumerate(schema.task_names):
        own = np.flatnonzero(columns["labelled"][:, k])
        y, person = columns["targets"][own, k], patient[own]
        if min(len(np.unique(person[y == label])) for label in (0, 1)) < WORST_MINIMUM:
            continue
        scores = {name: columns[name][own, k] for name in PREFIXES}
        scores = {name: p for name, p in scores.items() if np.isfinite(p).all()}
        curves = {name: calibration_curve(p, y, person) for name, p in scores.items()}
        found["calibration"][task] = {name: asdict(curve) for name, curve in curves.items()}
        thresholds = told_thresholds(list(scores.values()), y, person)
        decided = {name: decision_curve(p, y, thresholds=thresholds) for name, p in scores.items()}
        treat_all = decision_curve(np.ones(len(y)), y, thresholds=thresholds).treat_all
        net_benefit = {name: curve.net_benefit for name, curve in decided.items()}
        found["decision"][task] = {"threshold": thresholds, "treat_all": treat_all, "net_benefit": net_benefit}
    return found


def _rectifier(rectifier: Rectifier, calibration: pl.DataFrame, schema: RecordSchema) -> dict[str, Any]:
    """Rungs, and the shifts of patterns that ≥ 10 people of calibration A have."""
    why = [choice.reason for choice in rectifier.choices] or [""] * len(rectifier.tasks)
    named = zip(rectifier.tasks, rectifier.rungs, rectifier.reasons, why, strict=True)
    rungs = [{"task": task, "chosen": rung, "reason": reason or told} for task, rung, reason, told in named]
    bits = {name: 1 << m for m, name in enumerate(schema.names)}
    told = _patterns(calibration, schema)
    shifts = rectifier.shifts()
    listed = []
    for task in rectifier.tasks:
        for row in told:
            name = f"{task}/pattern/{sum(bits[n] for n in row['modalities'])}"
            if name in shifts:
                listed.append({"task": task, "modalities": row["modalities"], "shift": shifts[name]})
    return {"fitted": rectifier.fitted, "rungs": rungs, "shifts": listed}


def _worst(assessed: Assessment, schema: RecordSchema) -> Iterator[dict[str, Any]]:
    for task, patterns in assessed.patterns.items():
        if patterns:
            worst = patterns[0]
            numbers = {name: getattr(worst, name) for name in ("raw", "shrunken", "low", "high")}
            names = list(pattern_names(worst.pattern, schema.names))
            yield {"task": task, "modalities": names, **numbers, "patterns": len(patterns)}


def _coverage(assessed: Assessment) -> Iterator[dict[str, Any]]:
    for row in assessed.coverage:
        yield asdict(row) | {"calibration": _count(row.calibration, row.calibration)}
