"""What availability does to a model's results, over the test samples of a run: overlap, and values of modalities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.evaluation.assignment import CLIP, Assignment, Learner, fit_assignment
from mmnar_lightning.evaluation.covariates import Known, availability, collectable, known_before, ordered_values
from mmnar_lightning.evaluation.modality_value import (
    ASSUMPTION,
    GAMMAS,
    Loss,
    modality_value,
    reweighted_auroc_gain,
    sample_losses,
)
from mmnar_lightning.evaluation.overlap import OverlapError, OverlapThresholds, overlap_report, shown
from mmnar_lightning.evaluation.policy_shift import interval_dict
from mmnar_lightning.records import RecordDataModule, RecordSchema

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AvailabilitySettings:
    """How availability is evaluated.

    Args:
        always: Modalities that everyone has before anything is ordered; None takes those that all test samples have.
            Samples that lack one are left out.
        groups: `site` or groups of the samples (`year`) that ordering may depend on.
        order: Modalities in the order they are asked for, where nobody has a later one without the earlier ones.
        learner: Model of who has a modality.
        folds: Folds of the cross-fitting.
        clip: Lowest and highest assignment probability that is used.
        min_ess: Effective sample size below which an estimate is refused.
        min_ess_share: Share of it in the observed samples below which an estimate is refused.
        max_clipped: Share of clipped probabilities above which an estimate is refused.
        probabilities: Which probabilities of the model.
        losses: Losses that the value of a modality is told in.
        gammas: Γ of the sensitivity sweep.
        level: Nominal coverage of intervals.
        draws: Bootstrap draws of the policy shift.
        hold_weights: Hold its weights as they are in all draws: faster, and blind to how well they are known.
        min_shift_share: Share of the effective sample size in the samples below which a policy shift is refused.
        seed: Key of the folds, seed of the draws.
    """

    always: list[str] | None = None
    groups: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    learner: Learner = "logistic"
    folds: int = 5
    clip: tuple[float, float] = CLIP
    min_ess: float = 50.0
    min_ess_share: float = 0.2
    max_clipped: float = 0.05
    probabilities: Literal["rectified", "raw"] = "rectified"
    losses: list[Loss] = field(default_factory=lambda: ["brier", "log_loss"])
    gammas: list[float] = field(default_factory=lambda: list(GAMMAS))
    level: float = 0.95
    draws: int = 200
    hold_weights: bool = False
    min_shift_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(gamma > 1 for gamma in self.gammas):
            raise ValueError("gammas: the sweep needs a Γ above 1; a value is never told without one")

    @property
    def thresholds(self) -> OverlapThresholds:
        """When an estimate is refused."""
        return OverlapThresholds(self.min_ess, self.min_ess_share, self.max_clipped)

    @property
    def columns(self) -> list[str]:
        """Groups as columns of the samples."""
        return [g if g == "site" or g.startswith("group/") else f"group/{g}" for g in self.groups]


@dataclass(frozen=True)
class Predicted:
    """Probabilities of a model with all that was recorded, and with one modality at a time hidden from it.

    Args:
        sample: int64 [n], rows of the store, ascending.
        whole: float64 [n, K].
        hidden: float64 [n, K] by hidden modality.
        targets: float64 [n, K], 0 where unlabelled.
        labelled: bool [n, K].
    """

    sample: NDArray[np.int64]
    whole: Array
    hidden: dict[str, Array]
    targets: Array
    labelled: NDArray[np.bool_]

    def part(self, rows: NDArray[np.int64]) -> Predicted:
        """Keep some rows."""
        hidden = {name: p[rows] for name, p in self.hidden.items()}
        return Predicted(self.sample[rows], self.whole[rows], hidden, self.targets[rows], self.labelled[rows])


@dataclass(frozen=True)
class _Samples:
    """Complete test samples with all that estimates need."""

    schema: RecordSchema
    predicted: Predicted
    patient: NDArray[Any]
    known: Known
    observed: NDArray[np.bool_]
    assignment: Assignment
    earlier: dict[str, Array]

    def columns_of(self, modality: str) -> Array:
        """w of a modality: along a declared order, with the values of those before it."""
        order = self.assignment.order
        before = order[: order.index(modality)] if modality in order else ()
        return np.column_stack([self.known.values, *(self.earlier[e] for e in before if e in self.earlier)])


def evaluate_availability(
    data: RecordDataModule, schema: RecordSchema, predicted: Predicted, settings: AvailabilitySettings
) -> dict[str, Any]:
    """Overlap of each modality, and the value of each for each task where overlap allows.

    Args:
        data: The datamodule of the run; availability reasons come from its training samples.
        schema: The model's.
        predicted: Of the test samples.
        settings: How.

    Returns:
        JSON types. Counts below 10 are not told, and nothing points at a person.

    Raises:
        ValueError: If a name is unknown, or no modality is known for everyone.
    """
    samples = _samples(data, schema, predicted, settings)
    overlaps = overlap_report(samples.assignment, samples.observed, settings.thresholds)
    ordered = [o for o in overlaps if o.modality not in samples.known.modalities]
    return {
        "known_before": {"modalities": samples.known.modalities, "columns": len(samples.known.names)},
        "samples": shown(len(samples.patient)),
        "patients": shown(len(np.unique(samples.patient))),
        "left_out_as_incomplete": shown(len(predicted.sample) - len(samples.patient)),
        "assumption": ASSUMPTION,
        "overlap": [o.to_dict() for o in ordered],
        "value": [
            _value(samples, o.modality, k, loss, settings)
            for o in ordered
            for k in range(len(schema.tasks))
            for loss in settings.losses
        ],
        "auroc_gain": [
            _auroc_gain(samples, o.modality, k, settings) for o in ordered for k in range(len(schema.tasks))
        ],
    }


def _samples(
    data: RecordDataModule, schema: RecordSchema, predicted: Predicted, settings: AvailabilitySettings
) -> _Samples:
    store = data.records
    known = known_before(store, schema, predicted.sample, always=settings.always, groups=settings.columns)
    kept = np.flatnonzero(known.complete)
    if not len(kept):
        raise ValueError(f"no test sample has {', '.join(known.modalities)}")
    predicted = predicted.part(kept)
    known = Known(known.values[kept], known.names, known.complete[kept], known.modalities)
    observed = availability(store, schema.names, predicted.sample)
    possible = collectable(store, schema.names, predicted.sample, data.samples_of("train")) | observed
    patient = store.samples["patient"].gather(predicted.sample).to_numpy()
    earlier = ordered_values(store, schema, predicted.sample, settings.order)
    assignment = fit_assignment(
        known.values,
        observed,
        patient,
        schema.names,
        eligible=possible,
        order=settings.order,
        values=earlier,
        learner=settings.learner,
        folds=settings.folds,
        clip=settings.clip,
        seed=settings.seed,
    )
    return _Samples(schema, predicted, patient, known, observed, assignment, earlier)


def _value(samples: _Samples, modality: str, k: int, loss: Loss, settings: AvailabilitySettings) -> dict[str, Any]:
    m, predicted = samples.schema.names.index(modality), samples.predicted
    about = {"modality": modality, "task": samples.schema.task_names[k], "loss": loss}
    known, y = predicted.labelled[:, k], predicted.targets[:, k]
    try:
        value = modality_value(
            sample_losses(loss, predicted.hidden[modality][known, k], y[known]),
            sample_losses(loss, predicted.whole[known, k], y[known]),
            samples.observed[known, m],
            samples.assignment.raw[known, m],
            samples.columns_of(modality)[known],
            samples.patient[known],
            modality=modality,
            clip=settings.clip,
            gammas=settings.gammas,
            thresholds=settings.thresholds,
            folds=settings.folds,
            level=settings.level,
            seed=settings.seed,
        )
    except OverlapError as error:
        return {**about, "refused": str(error)}
    return {**about, "refused": None, **value.to_dict()}


def _auroc_gain(samples: _Samples, modality: str, k: int, settings: AvailabilitySettings) -> dict[str, Any]:
    m, predicted = samples.schema.names.index(modality), samples.predicted
    about = {"modality": modality, "task": samples.schema.task_names[k]}
    rows = predicted.labelled[:, k]
    part = Assignment((modality,), samples.assignment.raw[rows, m : m + 1], settings.clip)
    (overlap,) = overlap_report(part, samples.observed[rows, m : m + 1], settings.thresholds)
    if overlap.reason:
        return {**about, "refused": f"{modality}: {overlap.reason}"}
    gain = reweighted_auroc_gain(
        predicted.hidden[modality][rows, k],
        predicted.whole[rows, k],
        predicted.targets[rows, k],
        samples.observed[rows, m],
        samples.assignment.raw[rows, m],
        samples.patient[rows],
        clip=settings.clip,
        draws=1000,
        level=settings.level,
        seed=settings.seed,
    )
    return {**about, "refused": None, "assumption": f"re-weighted only, {ASSUMPTION}", **interval_dict(gain)}
