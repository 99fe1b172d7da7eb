"""A run's test samples, and its training samples, weighted to the availability behaviour of another site or period."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.evaluation.availability_report import AvailabilitySettings, Predicted
from mmnar_lightning.evaluation.covariates import availability, known_before
from mmnar_lightning.evaluation.overlap import OverlapError
from mmnar_lightning.evaluation.policy_shift import (
    AsIf,
    Behaviour,
    ShiftThresholds,
    interval_dict,
    shift_weights,
    shifted_metrics,
)
from mmnar_lightning.records import RecordDataModule, RecordSchema


def evaluate_shift(
    data: RecordDataModule, schema: RecordSchema, predicted: Predicted, as_if: AsIf, settings: AvailabilitySettings
) -> dict[str, Any]:
    """Metrics of the test samples that don't meet a condition, as if availability were as among those who meet it.

    The behaviour of those who do is learned from all of them, whatever their split: their availability and w are
    looked at, their outcomes are not.

    Args:
        data: The datamodule of the run.
        schema: The model's.
        predicted: Of the test samples.
        as_if: The condition.
        settings: How.

    Returns:
        JSON types, or the reason of a refusal.

    Raises:
        ValueError: If the condition can't be applied, or its column is among the groups.
    """
    everyone = np.arange(len(data.records))
    rows, source, target, names = _behaviours(data, schema, predicted.sample, everyone, as_if, settings)
    about: dict[str, Any] = {"as_if": str(as_if), "modalities": names}
    if not len(source.known) or not len(target.known):
        which = "no test sample is outside of it" if not len(source.known) else "no sample that meets it is complete"
        return {**about, "refused": which}
    shift = shift_weights(
        source,
        target,
        learner=settings.learner,
        folds=_folds(settings),
        draws=settings.draws,
        estimate_again=not settings.hold_weights,
        seed=settings.seed,
    )
    about |= shift.to_dict()
    part = predicted.part(rows)
    try:
        found = {
            task: shifted_metrics(
                part.whole[:, k],
                part.targets[:, k],
                source.patient,
                shift,
                labelled=part.labelled[:, k],
                thresholds=ShiftThresholds(settings.min_ess, settings.min_shift_share),
                level=settings.level,
            )
            for k, task in enumerate(schema.task_names)
        }
    except OverlapError as error:
        return {**about, "refused": str(error)}
    kinds = ("as_is", "as_if", "difference")
    told = {
        task: {name: {kind: interval_dict(getattr(m, kind)) for kind in kinds} for name, m in metrics.items()}
        for task, metrics in found.items()
    }
    return {**about, "refused": None, "metrics": told}


def training_shift_weights(
    data: RecordDataModule, schema: RecordSchema, as_if: AsIf, settings: AvailabilitySettings
) -> NDArray[np.float64]:
    """Weights for training under the other behaviour, as those that test samples get: float64 [samples of the store].

    Training samples that don't meet the condition have the ratio of the two behaviours, with mean 1 among them; those
    that meet it behave so already and have 1, as do those that lack what w is made of. NaN outside train. Both
    behaviours are learned from training samples alone: no other split has a say in what a model is trained with.

    Raises:
        OverlapError: If effective sample size or mean weight fail; says how.
        ValueError: As `evaluate_shift`, or if no complete training sample meets the condition, or all do.
    """
    train = data.samples_of("train")
    rows, source, target, _ = _behaviours(data, schema, train, train, as_if, settings)
    if not len(source.known) or not len(target.known):
        which = "is outside of it" if not len(source.known) else "meets it"
        raise ValueError(f"--as-if {as_if}: no training sample that has what w is made of {which}")
    whole = np.full(len(data.records), np.nan)
    whole[train] = 1.0
    shift = shift_weights(source, target, learner=settings.learner, folds=_folds(settings), draws=0, seed=settings.seed)
    if reason := shift.refusal(ShiftThresholds(settings.min_ess, settings.min_shift_share)):
        raise OverlapError(f"training samples: {reason}")
    whole[train[rows]] = shift.weight / shift.weight.mean()
    return whole


def _folds(settings: AvailabilitySettings) -> int:
    return 1 if settings.learner == "logistic" else settings.folds


def _behaviours(
    data: RecordDataModule,
    schema: RecordSchema,
    samples: NDArray[np.int64],
    learned_from: NDArray[np.int64],
    as_if: AsIf,
    settings: AvailabilitySettings,
) -> tuple[NDArray[np.int64], Behaviour, Behaviour, Sequence[str]]:
    """Rows of `samples` that are weighted, their behaviour, the target's, and the modalities that it is about.

    The target's is that of those in `learned_from` who meet the condition.
    """
    store = data.records
    if as_if.column in settings.columns:
        raise ValueError(f"{as_if.column!r} can't be a group of --groups and the condition of --as-if {as_if}")
    met = as_if.rows(store.samples)
    outside = np.flatnonzero(~met[samples])
    always = settings.always
    if always is None:
        always = list(known_before(store, schema, samples, groups=settings.columns).modalities)
    # columns of groups are the same on both sides only if they are made at once
    every = np.concatenate([samples[outside], learned_from[met[learned_from]]])
    known = known_before(store, schema, every, always=always, groups=settings.columns)
    names = [name for name in schema.names if name not in known.modalities]
    observed, patient = availability(store, names, every), store.samples["patient"].gather(every).to_numpy()
    here = np.arange(len(every)) < len(outside)
    source, target = (
        Behaviour(known.values[rows], observed[rows], patient[rows])
        for rows in (here & known.complete, ~here & known.complete)
    )
    return outside[known.complete[here]], source, target, names
