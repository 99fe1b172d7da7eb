"""A table of predictions, rectified: fitted on its calibration rows, scored on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmnar_lightning.commands._predictions import TRAINED, Predictions
from mmnar_lightning.evaluation import Interval, bootstrap_difference
from mmnar_lightning.metrics import binary_metric
from mmnar_lightning.rectifier import PoweredMean, Rectifier, Scale, patient_keys, powered_mean

Wanted = Literal["ladder", "global", "intercepts", "slopes"]
ENOUGH = 10
"""Patients, events and non-events below which nothing is said: few people could be told apart, and few say little."""
METRICS = ("brier", "log_loss", "excess_ece", "auroc")
COMPARED = ("raw", "recalibrated")
"""Versions that the rectified one is set against: the second has global bias and temperature already."""
DRAWS = 500

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PatternMeans:
    """What calibration says of a pattern and task.

    Args:
        pattern: Its id.
        patients: With a known label in calibration.
        shift: a_p, on the rectifier's scale.
        sd: Its posterior sd.
        slope: Relative slope; 0 below the rung `slopes`.
        powered: Prediction-powered mean with the tuned λ, None where events or non-events are few.
        plain: The same with λ = 1.
    """

    pattern: int
    patients: int
    shift: float
    sd: float
    slope: float
    powered: PoweredMean | None
    plain: PoweredMean | None


@dataclass(frozen=True)
class Rectification:
    """What was fitted, and how it does.

    Args:
        predictions: The table that was read.
        frame: The same with corrected probabilities.
        rectifier: Fitted on its calibration rows.
        evaluated: Splits that were scored.
        scores: Version (raw, recalibrated, rectified) → metric → value, by task and split; absent where too few.
        gains: Version (raw, recalibrated) → metric → rectified minus that version with a patient-bootstrap interval,
            by task and split.
        patterns: By task, those with enough labelled patients.
    """

    predictions: Predictions
    frame: pl.DataFrame
    rectifier: Rectifier
    evaluated: tuple[str, ...]
    scores: dict[tuple[str, str], dict[str, dict[str, float]]]
    gains: dict[tuple[str, str], dict[str, dict[str, Interval]]]
    patterns: dict[str, list[PatternMeans]]


def rectify(predictions: Predictions, scale: Scale, rung: Wanted, folds: int, seed: int) -> Rectification:
    """Fit on calibration rows alone, correct all rows, score the labelled rows of the other splits.

    Raises:
        ValueError: If rung and scale don't go together, or no calibration row has a label.
    """
    p = predictions
    fit = p.calibration & p.labelled.any(1)
    if not fit.any():
        raise ValueError(f"{p.path}: no row to fit on has a known label")
    rectifier = Rectifier(p.tasks, "intercepts" if rung == "ladder" else rung, scale)
    rows = [torch.tensor(values[fit]) for values in (p.logits, p.targets, p.labelled, p.pattern)]
    logits, targets, labelled, pattern = rows
    if rung == "ladder":
        keys = patient_keys(p.patient[fit].tolist())
        rectifier.fit_ladder(logits, targets, labelled, pattern, keys, p.modalities, folds=folds, seed=seed)
    else:
        rectifier.fit(logits, targets, labelled, pattern, p.modalities)
    everything = torch.tensor(p.logits)
    versions = {
        "raw": everything.sigmoid().numpy(),
        "recalibrated": rectifier.recalibrate(everything).sigmoid().numpy(),
        "rectified": rectifier.probabilities(everything, torch.tensor(p.pattern)).numpy(),
    }
    written = [pl.Series(p.columns.of("rectified", t), versions["rectified"][:, k]) for k, t in enumerate(p.tasks)]
    places = [(k, task, split) for k, task in enumerate(p.tasks) for split in p.evaluated]
    pairs = {(task, split): _scored(p, versions, k, split) for k, task, split in places}
    found = {place: pair for place, pair in pairs.items() if pair is not None}
    return Rectification(
        p,
        p.frame.with_columns(written),
        rectifier,
        p.evaluated,
        {place: pair[0] for place, pair in found.items()},
        {place: pair[1] for place, pair in found.items()},
        {task: _patterns(p, rectifier, versions["raw"][:, k], k) for k, task in enumerate(p.tasks)},
    )


def _scored(
    p: Predictions, versions: dict[str, Array], k: int, split: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Interval]]] | None:
    rows = p.labelled[:, k] & (p.split == split)
    # whatever the options are: what was fitted on is never scored
    assert not (rows & p.calibration).any()
    y, patient = p.targets[rows, k], p.patient[rows]
    if min(len(np.unique(patient[y == value])) for value in (0, 1)) < ENOUGH:
        return None
    metrics = {name: binary_metric(name).of for name in METRICS}
    scores = {
        version: {name: float(metric(values[rows, k], y, None)[0]) for name, metric in metrics.items()}
        for version, values in versions.items()
    }
    rectified = versions["rectified"][rows, k]
    gains = {
        version: {
            name: bootstrap_difference(name, rectified, versions[version][rows, k], y, patient, draws=DRAWS)
            for name in ("brier", "log_loss")
        }
        for version in COMPARED
    }
    return scores, gains


def _patterns(p: Predictions, rectifier: Rectifier, raw: Array, k: int) -> list[PatternMeans]:
    """Shifts and prediction-powered means of the patterns with enough labelled patients."""
    state = rectifier.to_state()
    fitted = p.calibration & p.labelled[:, k]
    others = ~fitted & ~np.isin(p.split, TRAINED)
    found = []
    for place, pattern in enumerate(state["patterns"]):
        own = fitted & (p.pattern == pattern)
        patients = len(np.unique(p.patient[own]))
        if patients < ENOUGH:
            continue
        y, powered, plain = p.targets[own, k], None, None
        if min(len(np.unique(p.patient[own][y == value])) for value in (0, 1)) >= ENOUGH:
            rest = others & (p.pattern == pattern)
            sides = (y, raw[own], raw[rest])
            people = {"patient": p.patient[own], "other_patient": p.patient[rest]}
            powered, plain = powered_mean(*sides, **people), powered_mean(*sides, **people, power=1.0)
        shift, sd, slope = (float(state[name][place][k]) for name in ("shift", "sd", "slope"))
        found.append(PatternMeans(pattern, patients, shift, sd, slope, powered, plain))
    return found
