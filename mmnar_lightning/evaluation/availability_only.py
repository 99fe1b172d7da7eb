"""What availability alone predicts: the risk of each pattern, from the labels of train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmnar_lightning.evaluation.drawing import draw_patients
from mmnar_lightning.records import RecordDataModule, RecordSchema, pattern_id
from mmnar_lightning.rectifier import Rectifier

MOST_ROWS = 200_000
"""Bound of the training samples to fit on."""


@dataclass(frozen=True)
class PatternRisk:
    """Risks from availability alone.

    Args:
        risk: float64 [n, K], P(y = 1 | δ); NaN for tasks that could not be fitted.
        reasons: Why a task could not be fitted, [K]; empty where it could.
        samples: Training samples it was fitted on.
    """

    risk: NDArray[np.float64]
    reasons: tuple[str, ...]
    samples: int


def pattern_risk(data: RecordDataModule, schema: RecordSchema, pattern: Tensor) -> PatternRisk:
    r"""Fit P(y | δ) on the train split and apply it to patterns int64 [n].

    y_ik ~ Bernoulli(σ(b_k + a_{δ_i,k})), a_p ~ N(a_count(p), τ₂²), a_count ~ N(μ, τ₁²): the rectifier's shrunk pattern
    intercepts with every logit 0, from 200,000 training samples at most. No value of any modality is read.
    Availability is also a measure of severity and of throughput of care (Agniel, Kohane, Weber, *Biases in electronic
    health record data due to processes within the healthcare system*, BMJ 2018): what a model gains over this is what
    it owes to values. With a model from a checkpoint, train is the train split of the data at hand, not of those the
    checkpoint came from.

    Args:
        data: The datamodule; its train labels and availability are read, and no element.
        schema: The model's schema, which gives a pattern's bits their meaning.
        pattern: int64 [n] pattern ids to predict for.
    """
    train = draw_patients(data, data.samples_of("train"), MOST_ROWS)
    samples = data.records.samples[train]
    observed = torch.zeros(len(train), len(schema.names), dtype=torch.bool)
    for m, name in enumerate(schema.names):
        if f"observed/{name}" in samples.columns:
            observed[:, m] = torch.from_numpy(samples[f"observed/{name}"].to_numpy().astype(bool))
    targets = torch.full((len(train), len(schema.task_names)), torch.nan)
    for k, task in enumerate(schema.task_names):
        if f"label/{task}" in samples.columns:
            targets[:, k] = torch.from_numpy(samples[f"label/{task}"].cast(pl.Float32).to_numpy().copy())
    model = Rectifier(schema.task_names)
    model.fit(torch.zeros_like(targets), targets, ~targets.isnan(), pattern_id(observed), len(schema.names))
    pattern = pattern.cpu()
    nothing = torch.zeros(len(pattern), len(schema.task_names), dtype=torch.float64)
    risk = model.probabilities(nothing, pattern).numpy().copy()
    reasons = tuple(reason.replace("calibration", "training") for reason in model.reasons)
    risk[:, [bool(reason) for reason in reasons]] = np.nan
    return PatternRisk(risk, reasons, len(train))
