"""The risk that is known of everyone: logistic regression on the modalities that (nearly) nobody lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.evaluation.drawing import draw_patients
from mmnar_lightning.evaluation.flat import Flat, flatten, logistic_regression
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema

ALWAYS = 0.999
"""Share of training samples that have a modality which counts as always observed; the rest get its mean."""
MOST_ROWS, MOST_VALUES = 50_000, 20_000_000
"""Bounds of the rows to fit on, and of rows × columns held at once."""
MIN_EVENTS = 10


@dataclass(frozen=True)
class StructuredRisk:
    """Risks from what is observed for everyone.

    Args:
        risk: float64 [n, K], P(y = 1 | values of the modalities); NaN for tasks that could not be fitted.
        modalities: Names of the modalities.
        samples: Training samples it was fitted on.
        reason: Why there is none at all; empty where there is.
    """

    risk: NDArray[np.float64]
    modalities: tuple[str, ...]
    samples: int
    reason: str


def always_observed(data: RecordDataModule, schema: RecordSchema) -> tuple[str, ...]:
    """Names of the `vector` and `codes` modalities that ≥ 99.9 % of the training samples have."""
    samples = data.records.samples[data.samples_of("train")]
    there = [m.name for m in schema.modalities if m.kind in ("vector", "codes") and m.items]
    there = [name for name in there if f"observed/{name}" in samples.columns]
    return tuple(n for n in there if samples.height and samples[f"observed/{n}"].sum() >= ALWAYS * samples.height)


def structured_risk(data: RecordDataModule, schema: RecordSchema, sample: NDArray[np.int64]) -> StructuredRisk:
    """Fit P(y | what is observed for everyone) on train and predict for samples.

    L2-regularised logistic regression on the values of these modalities, its penalty chosen on val; availability is
    not among the columns. At most 50,000 training patients' rows are read, fewer with over 400 columns, drawn by a
    keyed hash of the patient; samples are read in parts, so memory does not grow with them.

    Args:
        data: The datamodule.
        schema: The model's schema.
        sample: int64 [n], rows of the store to predict for.
    """
    K = len(schema.task_names)
    empty = StructuredRisk(np.full((len(sample), K), np.nan), (), 0, "")
    if find_spec("sklearn") is None:
        return replace(empty, reason="scikit-learn is not installed (mmnar-lightning[evaluation])")
    names = always_observed(data, schema)
    if not names:
        return replace(empty, reason=f"no modality of numbers or codes is observed in {ALWAYS:.1%} of train")
    part = schema.restrict(modalities=names)
    columns = sum(len(m.items) for m in part.modalities)
    most = max(1, min(MOST_ROWS, MOST_VALUES // columns))
    train, val = (_values(data, part, draw_patients(data, data.samples_of(split), most)) for split in ("train", "val"))
    risk = empty.risk
    models = {k: logistic_regression(train, val, k) for k in range(K) if _enough(train, k) and _enough(val, k, 1)}
    for first in range(0, len(sample) if models else 0, most):
        rows = slice(first, first + most)
        values = _values(data, part, sample[rows]).values
        for k, model in models.items():
            risk[rows, k] = model.predict_proba(values)[:, 1]
    return StructuredRisk(risk, names, len(train.values), "")


def _values(data: RecordDataModule, part: RecordSchema, samples: NDArray[np.int64]) -> Flat:
    flat = flatten(RecordDataset(data.records, part, samples))
    # the last columns are availability
    M = len(part.modalities)
    return replace(flat, values=flat.values[:, :-M], names=flat.names[:-M])


def _enough(rows: Flat, task: int, fewest: int = MIN_EVENTS) -> bool:
    y = rows.targets[:, task]
    return bool(min((y == 1).sum(), (y == 0).sum()) >= fewest)
