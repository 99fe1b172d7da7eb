"""Everything that is said of a test beside the metrics: intervals, availability alone, worst pattern, coverage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmnar_lightning._evaluated import PREFIXES
from mmnar_lightning.evaluation.availability_only import PatternRisk, pattern_risk
from mmnar_lightning.evaluation.bootstrap import Interval
from mmnar_lightning.evaluation.groups import GroupRow, by_group
from mmnar_lightning.evaluation.intervals import (
    Statistic,
    bootstrap_statistics,
    bounded_draws,
    metric_statistic,
    metric_statistics,
)
from mmnar_lightning.evaluation.pattern_adjusted import adjustable, adjusted_auroc, risk_strata
from mmnar_lightning.evaluation.structured_risk import StructuredRisk, structured_risk
from mmnar_lightning.evaluation.subgroups import subgroups
from mmnar_lightning.evaluation.worst_pattern import PatternAuroc, pattern_aurocs
from mmnar_lightning.metrics.outcomes import FEWEST
from mmnar_lightning.records import RecordDataModule, RecordSchema
from mmnar_lightning.rectifier.conformal import Conformal, Coverage

INTERVAL_METRICS = ("auroc", "auprc", "brier", "log_loss")
CALIBRATION_METRICS = ("calibration_intercept", "calibration_slope", "excess_ece")


@dataclass(frozen=True)
class Assessment:
    """What was found on the rows of a test.

    Args:
        intervals: By metric: ``{task}/{metric}`` of the raw probabilities, with ``recalibrated/``, ``rectified/`` or
            ``delta_only/`` (availability alone) before it; ``delta_only/{task}/adjusted_auroc``, adjusted for the
            structured-only risk; ``structured_only/{task}/auroc``.
        patterns: Shrunken AUROCs inside patterns by task, lowest first.
        coverage: Coverage of the conformal sets, in groups of ≥ 10 people.
        groups: Metrics by availability pattern and by subgroup.
        availability: The δ-only model.
        structured: The structured-only risk.
    """

    intervals: dict[str, Interval]
    patterns: dict[str, list[PatternAuroc]]
    coverage: list[Coverage]
    groups: list[GroupRow]
    availability: PatternRisk
    structured: StructuredRisk

    def numbers(self) -> dict[str, float]:
        """Return what belongs into the metrics: ``…/low`` and ``…/high``, and estimates no metric has; no NaN.

        ``{task}/worst_pattern/shrunken_auroc`` is the lowest of `patterns`;
        ``conformal/{task}/{negative,positive}/{group}/…`` holds samples, coverage, size and shares of the sets.
        """
        found: dict[str, float] = {}
        for name, interval in self.intervals.items():
            if name.startswith(("delta_only/", "structured_only/")):
                found[name] = interval.estimate
            found |= {f"{name}/low": interval.low, f"{name}/high": interval.high}
        for task, patterns in self.patterns.items():
            if patterns:
                name, worst = f"{task}/worst_pattern/shrunken_auroc", patterns[0]
                found |= {name: worst.shrunken, f"{name}/low": worst.low, f"{name}/high": worst.high}
        for row in self.coverage:
            name = f"conformal/{row.task}/{('negative', 'positive')[row.label]}/{row.group}"
            shares = {"empty": row.empty, "single": row.single, "both": row.both}
            values = {"samples": row.samples, "coverage": row.coverage, "size": row.size} | shares
            found |= {f"{name}/{what}": float(value) for what, value in values.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def assess(
    rows: Mapping[str, Tensor], data: RecordDataModule, schema: RecordSchema, conformal: Conformal | None = None
) -> Assessment:
    """Assess predictions of the samples of a test.

    Args:
        rows: ``raw``, ``recalibrated`` and ``rectified`` probabilities [n, K], ``targets`` [n, K], ``labelled`` bool
            [n, K], ``pattern`` and ``sample`` int64 [n].
        data: The datamodule, whose train split the δ-only model and the structured-only risk are fitted on.
        schema: The model's schema.
        conformal: Sets fitted on corrected probabilities; None where there are none.
    """
    rows = {name: values.detach().cpu() for name, values in rows.items()}
    sample = rows["sample"].numpy()
    patient = data.records.samples["patient"].gather(sample).rank("dense").cast(pl.Int64).to_numpy()
    availability = pattern_risk(data, schema, rows["pattern"])
    structured = structured_risk(data, schema, sample)
    columns = {name: rows[name].double().numpy() for name in PREFIXES}
    columns |= {"delta_only": availability.risk, "structured_only": structured.risk}
    targets, pattern = rows["targets"].double().numpy(), rows["pattern"].numpy()
    intervals: dict[str, Interval] = {}
    patterns: dict[str, list[PatternAuroc]] = {}
    for k, task in enumerate(schema.task_names):
        own = np.flatnonzero(rows["labelled"][:, k].numpy())
        people = patient[own]
        if len(np.unique(people)) < FEWEST:
            continue
        scores = {name: values[own, k] for name, values in columns.items()}
        y, draws = targets[own, k], bounded_draws(len(own))
        intervals |= bootstrap_statistics(dict(_statistics(task, scores, y)), people, draws=draws)
        patterns[task] = pattern_aurocs(scores["raw"], y, pattern[own], people)
    coverage = [] if conformal is None else _coverage(conformal, rows, schema, patient)
    groups = by_group(
        {name: columns[name] for name in PREFIXES},
        targets,
        rows["labelled"].numpy(),
        patient,
        schema.task_names,
        subgroups(data, sample),
        pattern=pattern,
        modalities=schema.names,
    )
    return Assessment(intervals, patterns, coverage, groups, availability, structured)


def _statistics(
    task: str, scores: Mapping[str, NDArray[np.float64]], y: NDArray[np.float64]
) -> Iterator[tuple[str, Statistic]]:
    for name, prefix in (PREFIXES | {"delta_only": "delta_only/"}).items():
        if np.isfinite(scores[name]).all():
            metrics = INTERVAL_METRICS + (CALIBRATION_METRICS if name in PREFIXES else ())
            for metric, statistic in metric_statistics(metrics, scores[name], y).items():
                yield f"{prefix}{task}/{metric}", statistic
    known = scores["structured_only"]
    if np.isfinite(known).all():
        yield f"structured_only/{task}/auroc", metric_statistic("auroc", known, y)
        if adjustable(y) and np.isfinite(scores["delta_only"]).all():
            adjusted = adjusted_auroc(scores["delta_only"], y, risk_strata(known, y))
            yield f"delta_only/{task}/adjusted_auroc", adjusted


def _coverage(
    conformal: Conformal, rows: Mapping[str, Tensor], schema: RecordSchema, patient: NDArray[np.int64]
) -> list[Coverage]:
    p, y, labelled, pattern = (rows[name] for name in ("rectified", "targets", "labelled", "pattern"))
    found = conformal.coverage(p, y, labelled, pattern, schema.names, torch.tensor(patient))
    # the size of a class tells that of the other: a task is told of where both have ten people
    both = {
        task
        for k, task in enumerate(schema.task_names)
        if min(len(np.unique(patient[labelled[:, k].numpy() & (y[:, k].numpy() == c)])) for c in (0, 1)) >= FEWEST
    }
    return [row for row in found if row.people >= FEWEST and row.task in both]
