"""What the figures of a run are drawn from: numbers about groups of at least 10 people, never a patient's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmnar_lightning._evaluated import EvaluatedRows, pattern_words
from mmnar_lightning.evaluation.calibration_curve import calibration_curve
from mmnar_lightning.evaluation.drawing import draw_patients
from mmnar_lightning.evaluation.groups import by_group
from mmnar_lightning.metrics.outcomes import FEWEST
from mmnar_lightning.records import RecordDataModule, RecordSchema, pattern_id, pattern_names

Array = NDArray[np.float64]
DRAWS = 200
THRESHOLDS = 101
MOST_PATTERNS = 12
REST = "pattern and prior"


@dataclass(frozen=True)
class OutcomeRows:
    """Probabilities and outcomes of samples, with what they are grouped by.

    Args:
        schema: The model's.
        probabilities: float64 [n, K] by version.
        targets: float64 [n, K].
        labelled: bool [n, K].
        pattern: int64 [n].
        patient: int64 [n], people numbered from 0: nothing that leaves this process.
    """

    schema: RecordSchema
    probabilities: dict[str, Array]
    targets: Array
    labelled: NDArray[np.bool_]
    pattern: NDArray[np.int64]
    patient: NDArray[np.int64]

    @classmethod
    def of(cls, module: Any, rows: EvaluatedRows, data: RecordDataModule, most: int) -> OutcomeRows:
        """Take about `most` rows of a pass, all of a patient or none, with every version of their probabilities."""
        samples = rows.sample.numpy()
        kept = torch.from_numpy(np.isin(samples, draw_patients(data, samples, most)))
        logits, pattern = rows.logits[kept], rows.pattern[kept]
        versions = {name: p.double().numpy() for name, p in module.versions(logits, pattern).items()}
        targets, labelled = rows.targets[kept].double().numpy(), rows.labelled[kept].numpy()
        return cls(module.schema, versions, targets, labelled, pattern.numpy(), _people(data, samples[kept.numpy()]))

    def enough(self, k: int) -> bool:
        """Whether at least 10 people have the outcome of task k, and 10 don't."""
        known = self.labelled[:, k]
        y, patient = self.targets[known, k] > 0.5, self.patient[known]
        return min(_count(patient[y]), _count(patient[~y])) >= FEWEST

    def calibration(self, k: int) -> dict[str, dict[str, Any]]:
        """Calibration curve of task k by version; none for a task that cannot be told of."""
        if not self.enough(k):
            return {}
        known = self.labelled[:, k]
        y, patient = self.targets[known, k], self.patient[known]
        return {name: asdict(calibration_curve(p[known, k], y, patient)) for name, p in self.probabilities.items()}

    def by_pattern(self) -> list[dict[str, Any]]:
        """Label rate and AUROC of raw probabilities by pattern and task with 95 % intervals, as `GroupRow` has them."""
        rows = by_group(
            {"raw": self.probabilities["raw"]},
            self.targets,
            self.labelled,
            self.patient,
            self.schema.task_names,
            {},
            pattern=self.pattern,
            modalities=self.schema.names,
            draws=DRAWS,
        )
        return [asdict(row) for row in rows]


def curve_counts(rows: OutcomeRows) -> Iterator[tuple[str, str, Array]]:
    """Curves of precision and recall by task and version, as `SummaryWriter.add_pr_curve_raw` takes them.

    Thresholds that fewer than 10 people lie above or below stand at the next one that they don't; counts are rounded
    down to tens. A task needs 10 people with the outcome and 10 without.

    Returns:
        Task, version, and [6, T]: true positives, false positives, true negatives, false negatives, precision, recall.
    """
    for k, task in enumerate(rows.schema.task_names):
        if rows.enough(k):
            known = rows.labelled[:, k]
            y, patient = rows.targets[known, k] > 0.5, rows.patient[known]
            for version in ("raw", "rectified"):
                yield task, version, _counts(rows.probabilities[version][known, k], y, patient)


def _counts(p: Array, y: NDArray[np.bool_], patient: NDArray[np.int64]) -> Array:
    thresholds = np.linspace(0, 1, THRESHOLDS)
    person = np.unique(patient, return_inverse=True)[1]
    highest, lowest = np.full(person.max() + 1, -np.inf), np.full(person.max() + 1, np.inf)
    np.maximum.at(highest, person, p)
    np.minimum.at(lowest, person, p)
    above = len(highest) - np.searchsorted(np.sort(highest), thresholds)
    below = np.searchsorted(np.sort(lowest), thresholds)
    # at 0 everyone is above and nobody below
    shown = np.flatnonzero((above >= FEWEST) & ((below == 0) | (below >= FEWEST)))
    at = thresholds[shown[np.clip(np.searchsorted(shown, np.arange(THRESHOLDS), side="right") - 1, 0, None)]]
    positives, negatives = np.sort(p[y]), np.sort(p[~y])
    tp = len(positives) - np.searchsorted(positives, at)
    fp = len(negatives) - np.searchsorted(negatives, at)
    counts = np.stack([tp, fp, len(negatives) - fp, len(positives) - tp]) // FEWEST * FEWEST
    return np.concatenate([counts, np.stack([tp / np.maximum(1, tp + fp), tp / len(positives)])]).astype(np.float64)


def train_patterns(data: RecordDataModule, schema: RecordSchema, most: int = 30) -> list[dict[str, Any]]:
    """The patterns that at least 10 people of train have, most frequent first: their modalities and samples."""
    pattern, people = _train(data, schema)
    counted = dict(zip(*np.unique(pattern, return_counts=True), strict=True))
    return [
        {"modalities": list(pattern_names(p, schema.names)), "samples": int(counted[p])}
        for p in _frequent(pattern, people, most)
    ]


def pattern_shifts(rectifier: Any, data: RecordDataModule, schema: RecordSchema) -> list[dict[str, Any]]:
    """What the rectifier adds to each task's predictions of the frequent patterns of at least 10 people of train."""
    found = rectifier.shifts(pattern_words(schema))
    words = pattern_words(schema)
    kept = [p for p in _frequent(*_train(data, schema), len(words)) if p in words]
    named = [(task, p, found.get(f"{task}/pattern/{words[p]}")) for p in kept for task in schema.task_names]
    return [
        {"task": task, "modalities": list(pattern_names(p, schema.names)), "shift": shift}
        for task, p, shift in named
        if shift is not None
    ]


def mean_views(
    kept: Sequence[tuple[Tensor, Tensor, Mapping[str, Tensor]]], data: RecordDataModule, schema: RecordSchema
) -> dict[str, tuple[Array, list[list[str]], list[str]]]:
    """Mean by pattern of what a fusion showed of each modality, see `mmnar_lightning.fusion.base.SHOWN_VIEWS`.

    Attention is the mean over what a row observes of what it gives to each modality. Shares of the precision get a
    column more, for what is neither modality's.

    Args:
        kept: Of each batch `sample` [B], `observed` [B, M] and the views.
        data: The datamodule.
        schema: The model's.

    Returns:
        By view, values [patterns, columns], the patterns' modalities and the columns' names.
    """
    if not kept:
        return {}
    observed = torch.cat([part for _, part, _ in kept]).cpu()
    pattern = pattern_id(observed).numpy()
    people = _people(data, torch.cat([sample for sample, _, _ in kept]).cpu().numpy())
    chosen = _frequent(pattern, people)
    found = {}
    for name in kept[0][2] if chosen else ():
        values = torch.cat([views[name] for _, _, views in kept]).cpu().double()
        if values.ndim == 3:
            values = values.sum(1) / observed.sum(1, keepdim=True).clamp(min=1)
        columns, patterns = list(schema.names), [list(pattern_names(p, schema.names)) for p in chosen]
        if name == "precision_share":
            values = torch.cat([values, 1 - values.sum(1, keepdim=True)], 1)
            columns, patterns = [*columns, REST], [[*names, REST] for names in patterns]
        means = np.stack([values.numpy()[pattern == p].mean(0) for p in chosen])
        found[name] = (means, patterns, columns)
    return found


def _frequent(pattern: NDArray[np.int64], people: NDArray[np.int64], most: int = MOST_PATTERNS) -> list[int]:
    """The most frequent patterns that at least 10 people have; the smaller id first where they are as frequent."""
    ids, counts = np.unique(pattern, return_counts=True)
    enough = [int(p) for p in ids[np.lexsort((ids, -counts))] if _count(people[pattern == p]) >= FEWEST]
    return enough[:most]


def _count(people: NDArray[np.int64]) -> int:
    return len(np.unique(people))


def _people(data: RecordDataModule, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the people of samples, in an order of no meaning."""
    return data.records.samples["patient"].gather(samples).rank("dense").to_numpy().astype(np.int64)


def _train(data: RecordDataModule, schema: RecordSchema) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pattern and person of each sample of train."""
    samples = data.samples_of("train")
    there = data.records.samples[samples]
    columns = [
        there[f"observed/{name}"] if f"observed/{name}" in there.columns else pl.repeat(False, there.height, eager=True)
        for name in schema.names
    ]
    observed = np.stack([column.to_numpy().astype(bool) for column in columns], axis=1)
    return pattern_id(torch.from_numpy(observed)).numpy(), _people(data, samples)
