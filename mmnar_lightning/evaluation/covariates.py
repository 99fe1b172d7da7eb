"""What is known of everyone before anything is ordered, as columns: the w of assignment models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.evaluation.assignment import CLIP, Learner, assignment_weights, fit_assignment
from mmnar_lightning.evaluation.flat import flatten
from mmnar_lightning.evaluation.overlap import Overlap, OverlapThresholds, effective_size, overlap_report
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema, RecordStore, availability_reasons

Array = NDArray[np.float64]
LEAST_OF_A_GROUP = 10
FLAT_KINDS = ("vector", "codes")


@dataclass(frozen=True)
class Known:
    """w of some samples.

    Args:
        values: float64 [n, P], NaN where an item was not measured.
        names: P names.
        complete: bool [n], whether the sample has the modalities that w is made of.
        modalities: Names of those modalities.
    """

    values: Array
    names: tuple[str, ...]
    complete: NDArray[np.bool_]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class TrainingWeights:
    """Inverse probability weights of train's observed modalities, and what they rest on.

    Args:
        names: Names of the M modalities, in the order of the schema.
        values: float64 [samples of the store, M]: before the cap mean 1 among train's observed, 0 where not observed,
            NaN outside train. A train sample that lacks what w is made of has weight 1 where observed.
        ess: float64 [M], Kish's effective sample size as a share of train's observed; NaN where nobody is.
        clipped: float64 [M], share of train's observed whose weight was cut, by π's bounds or by the cap; NaN as above.
        overlap: Of each modality that anyone in train has and w is not made of.
    """

    names: tuple[str, ...]
    values: Array
    ess: Array
    clipped: Array
    overlap: tuple[Overlap, ...]


def availability(store: RecordStore, names: Sequence[str], samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """δ of these samples, bool [n, M]; False throughout for a modality that the store does not have."""
    frame = store.samples
    columns = [
        frame[f"observed/{name}"].to_numpy()[samples]
        if f"observed/{name}" in frame.columns
        else np.zeros(len(samples), dtype=bool)
        for name in names
    ]
    return np.stack(columns, axis=1).astype(bool)


def collectable(
    store: RecordStore, names: Sequence[str], samples: NDArray[np.int64], train: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each modality could have been recorded, bool [n, M]: false where the reason is `not_collected`."""
    possible = np.zeros((len(store), len(names)), dtype=bool)
    reasons = availability_reasons(store, train).filter(reason="not_collected")
    for m, name in enumerate(names):
        if name in store.schema.names:
            possible[:, m] = True
            possible[reasons.filter(modality=name)["sample"].to_numpy(), m] = False
    return possible[samples]


def known_before(
    store: RecordStore,
    schema: RecordSchema,
    samples: NDArray[np.int64],
    *,
    always: Sequence[str] | None = None,
    groups: Sequence[str] = (),
) -> Known:
    """Make w of modalities that everyone has, and of groups such as site and year.

    Args:
        store: The record store.
        schema: What the model takes; items are those of it.
        samples: int64 [n], rows of the store.
        always: Names of modalities known before anything is ordered; None takes those that all these samples have.
            Samples that lack one are not `complete` and must be left out.
        groups: `site`, or `group/…` columns; each value that 10 samples have is a column of 0 and 1.

    Raises:
        ValueError: If a name is unknown or has no flat form, or there would be no column.
    """
    share = availability(store, schema.names, samples).mean(0) if len(samples) else np.zeros(len(schema.names))
    if always is None:
        named = [m.name for m, s in zip(schema.modalities, share, strict=True) if s == 1.0 and m.kind in FLAT_KINDS]
    else:
        named = list(always)
        strange = [name for name in named if schema.modality(name).kind not in FLAT_KINDS]
        if strange:
            raise ValueError(f"{', '.join(strange)}: only vector and codes modalities can be columns of a model")
    if not named and not groups:
        listed = ", ".join(f"{name} {s:.3f}" for name, s in zip(schema.names, share, strict=True))
        raise ValueError(
            f"no modality is recorded for everyone (share of samples: {listed}); name those that are known before "
            "anything is ordered with --always, or groups with --groups"
        )
    values, names = np.zeros((len(samples), 0)), []
    if named:
        flat = flatten(RecordDataset(store, schema.restrict(named), samples))
        values, names = flat.values[:, : -len(named)], list(flat.names[: -len(named)])
    for group in groups:
        columns, levels = _one_hot(store.samples, group, samples)
        values, names = np.column_stack([values, columns]), [*names, *levels]
    complete = np.ones(len(samples), dtype=bool)
    if named:
        complete &= availability(store, named, samples).all(1)
    return Known(values, tuple(names), complete, tuple(named))


def _one_hot(frame: pl.DataFrame, group: str, samples: NDArray[np.int64]) -> tuple[Array, list[str]]:
    if group not in frame.columns:
        there = ", ".join(c for c in frame.columns if c == "site" or c.startswith("group/"))
        raise ValueError(f"no group {group!r}; there are: {there}")
    words = frame[group].cast(pl.String).gather(samples)
    counted = words.drop_nulls().value_counts().filter(pl.col("count") >= LEAST_OF_A_GROUP)
    levels = sorted(counted.to_series(0))
    columns = [(words == level).fill_null(False).to_numpy() for level in levels]
    stacked = np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((len(samples), 0))
    return stacked, [f"{group}={level}" for level in levels]


def training_weights(
    data: RecordDataModule,
    *,
    always: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    order: Sequence[str] = (),
    learner: Learner = "logistic",
    folds: int = 5,
    clip: tuple[float, float] = CLIP,
    cap: float = np.inf,
    thresholds: OverlapThresholds | None = None,
    seed: int = 0,
) -> TrainingWeights:
    """Weigh train's observed modalities by w_im = min(δ_im / π_im / mean, cap), for a loss only they take part in.

    Fitted on train alone, cross-fitted by patient, over samples for which the modality could have been recorded. The
    mean is over those observed, so that weights are 1 where π tells nothing.

    Args:
        data: The datamodule.
        always: As `known_before`.
        groups: As `known_before`.
        order: As `fit_assignment`.
        learner: As `fit_assignment`.
        folds: As `fit_assignment`.
        clip: As `fit_assignment`.
        cap: Greatest weight. It bounds the variance and brings a bias toward the unweighted mean back.
        thresholds: When the report of the overlap says that there is too little.
        seed: Key of the folds.

    Source: Seaman, White, *Review of inverse probability weighting for dealing with missing data*, 2013; Cole, Hernán,
    *Constructing Inverse Probability Weights for Marginal Structural Models*, 2008 (truncation).
    """
    schema, store = RecordSchema.from_dict(data.schema), data.records
    train = data.samples_of("train")
    known = known_before(store, schema, train, always=always, groups=groups)
    delta = availability(store, schema.names, train)
    eligible = (collectable(store, schema.names, train, train) | delta) & known.complete[:, None]
    assignment = fit_assignment(
        known.values,
        delta & eligible,
        store.samples["patient"].gather(train).to_numpy(),
        schema.names,
        eligible=eligible,
        order=order,
        values=ordered_values(store, schema, train, order),
        learner=learner,
        folds=folds,
        clip=clip,
        seed=seed,
    )
    uncapped = np.where(eligible, assignment_weights(assignment.inclusion, delta & eligible, clip), delta)
    weights = np.minimum(uncapped, cap)
    whole = np.full((len(store), len(schema.names)), np.nan)
    whole[train] = weights
    # NaN (not eligible) is outside no bound
    cut = delta & ((uncapped > cap) | (assignment.raw < clip[0]) | (assignment.raw > clip[1]))
    report = overlap_report(assignment, delta & eligible, thresholds)
    asked = tuple(row for row in report if row.observed and row.modality not in known.modalities)
    size = np.array([effective_size(column) for column in weights.T])
    return TrainingWeights(tuple(schema.names), whole, _share(size, delta), _share(cut.sum(0), delta), asked)


def _share(part: NDArray[Any], delta: NDArray[np.bool_]) -> Array:
    count = delta.sum(0)
    shares: Array = np.divide(part, count, out=np.full(len(count), np.nan), where=count > 0)
    return shares


def ordered_values(
    store: RecordStore, schema: RecordSchema, samples: NDArray[np.int64], order: Sequence[str]
) -> dict[str, Array]:
    """Columns of the modalities of a monotone order that later ones may condition on; text and images have none."""
    flat: dict[str, Any] = {}
    for name in order[:-1]:
        if schema.modality(name).kind in FLAT_KINDS:
            flat[name] = flatten(RecordDataset(store, schema.restrict([name]), samples)).values[:, :-1]
    return flat
