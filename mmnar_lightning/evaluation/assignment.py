"""Assignment models π_m = P(modality m is recorded | what everyone has before the order), cross-fitted by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.records import keyed_uniform

Array = NDArray[np.float64]
Learner = Literal["logistic", "trees"]
CLIP = (0.02, 1.0)
"""Default bounds of π. Only a small π makes a weight 1 / π large, so nothing is cut off at the upper end."""


@dataclass(frozen=True)
class Assignment:
    """Out-of-fold assignment probabilities of n samples and M modalities.

    Args:
        names: Names of the M modalities.
        raw: float64 [n, M], π_m before clipping; NaN where the sample is not eligible, 1 where everyone who is eligible
            has the modality.
        clip: Lowest and highest π that is used.
        order: The declared monotone order, or empty. The π of a modality in it is conditional on having all that stand
            before it.
    """

    names: tuple[str, ...]
    raw: Array
    clip: tuple[float, float] = CLIP
    order: tuple[str, ...] = ()

    @property
    def probability(self) -> Array:
        """π_m within the bounds, [n, M]; NaN where not eligible."""
        return np.clip(self.raw, *self.clip)

    @property
    def inclusion(self) -> Array:
        """Probability of having the modality given w alone: along a declared order, the product of its steps. [n, M].

        It is NaN where a sample lacks an earlier modality of the order; such a sample has no weight anyway.
        """
        reached = self.probability.copy()
        places = [self.names.index(name) for name in self.order]
        reached[:, places] = np.cumprod(reached[:, places], axis=1)
        return reached


def fit_assignment(
    known: ArrayLike,
    observed: ArrayLike,
    patient: ArrayLike,
    names: Sequence[str],
    *,
    eligible: ArrayLike | None = None,
    order: Sequence[str] = (),
    values: Mapping[str, ArrayLike] | None = None,
    learner: Learner = "logistic",
    folds: int = 5,
    clip: tuple[float, float] = CLIP,
    seed: int = 0,
) -> Assignment:
    """Fit π_m(w) for each modality on the eligible patients of the other folds.

    w may hold only what is known for everyone before anything is ordered; a column made from δ, or from the values of
    a modality that δ reveals, makes π meaningless. The exception is a declared monotone order: nobody has a modality of
    it without all earlier ones, and π_m then conditions on their values too, among those who have them.

    Args:
        known: float [n, P], w; NaN where an item was not measured.
        observed: bool [n, M], δ.
        patient: [n] ids of any type; a patient's samples are in one fold.
        names: Names of the M modalities.
        eligible: bool [n, M], samples for which the modality could have been recorded; None if all.
        order: Names in the order in which they are asked for, or empty.
        values: float [n, F_m] of the modalities in `order` that later ones may condition on.
        learner: L2 logistic regression, or boosted trees.
        folds: Number of folds, at least 2.
        clip: Lowest and highest π that is used.
        seed: Key of the folds.

    Returns:
        Out-of-fold probabilities.

    Raises:
        ValueError: If shapes disagree, a bound is out of range, or `order` is not monotone in these samples.
    """
    w, delta = np.asarray(known, dtype=np.float64), np.asarray(observed, dtype=bool)
    open_to = np.ones_like(delta) if eligible is None else np.asarray(eligible, dtype=bool)
    if w.ndim != 2 or delta.shape != (len(w), len(names)) or open_to.shape != delta.shape:
        raise ValueError(
            f"w {w.shape}, observed {delta.shape}, eligible {open_to.shape} don't fit {len(names)} modalities"
        )
    if not 0 < clip[0] < clip[1] <= 1 or folds < 2:
        raise ValueError(f"clip {clip} must be 0 < low < high ≤ 1, folds {folds} at least 2")
    open_to = open_to & _reached(delta, names, order)
    fold = patient_folds(patient, folds, seed)
    raw = np.full(delta.shape, np.nan)
    for m, name in enumerate(names):
        earlier = order[: order.index(name)] if name in order else ()
        blocks = [np.asarray((values or {})[e], dtype=np.float64) for e in earlier if e in (values or {})]
        columns = np.column_stack([w, *blocks]) if blocks else w
        rows = open_to[:, m]
        raw[rows, m] = cross_fitted(columns[rows], delta[rows, m], fold[rows], learner)
    return Assignment(tuple(names), raw, clip, tuple(order))


def _reached(delta: NDArray[np.bool_], names: Sequence[str], order: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a sample has all modalities that stand before m in the order: bool [n, M]."""
    strange = [name for name in order if name not in names]
    if strange or len(set(order)) != len(order):
        raise ValueError(f"order {list(order)} must name each modality once; there are: {', '.join(names)}")
    reached = np.ones_like(delta)
    so_far = np.ones(len(delta), dtype=bool)
    for name in order:
        m = names.index(name)
        broken = int((delta[:, m] & ~so_far).sum())
        if broken:
            raise ValueError(f"order is not monotone: {broken} samples have {name!r} without all that stand before it")
        reached[:, m] = so_far
        so_far = so_far & delta[:, m]
    return reached


def patient_folds(patient: ArrayLike, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Fold of each sample by a keyed hash of its patient, int64 [n]: nobody moves when others come or go."""
    people, member = np.unique(np.asarray(patient).astype(str), return_inverse=True)
    drawn: NDArray[np.int64] = (keyed_uniform(people.tolist(), seed, "assignment") * folds).astype(np.int64)
    return drawn[member]


def cross_fitted(
    columns: Array, event: NDArray[np.bool_], fold: NDArray[np.int64], learner: Learner = "logistic"
) -> Array:
    """P(event | columns) for each sample by a model of the other folds: float64 [n].

    Args:
        columns: [n, P].
        event: bool [n].
        fold: int64 [n].
        learner: Kind of model.
    """
    out = np.ones(len(event))
    if event.all():
        return out
    columns = prepared(columns, learner)
    for f in np.unique(fold):
        held, rest = fold == f, fold != f
        out[held] = fitted_probability(columns[rest], event[rest], np.ones(int(rest.sum())), columns[held], learner)
    return out


def fitted_probability(columns: Array, event: NDArray[np.bool_], weight: Array, new: Array, learner: Learner) -> Array:
    """Fit P(event | columns) with weights [n] and return it for `new`: float64 [k].

    Where everybody or nobody has the event there is nothing to fit: the rate, with half an event of either kind added.

    Args:
        columns: [n, P], `prepared`.
        event: bool [n].
        weight: [n] > 0.
        new: [k, P], prepared with the others.
        learner: Kind of model.
    """
    if not event.any() or event.all():
        return np.full(len(new), (float(weight @ event) + 0.5) / (float(weight.sum()) + 1.0))
    fitted: Array = _model(learner).fit(columns, event, sample_weight=weight).predict_proba(new)[:, 1]
    return fitted


def prepared(columns: Array, learner: Learner) -> Array:
    """Columns as a learner takes them. Trees take NaN; for linear models see `standardised`."""
    return columns if learner == "trees" else standardised(columns)


def standardised(columns: Array) -> Array:
    """Mean 0 and variance 1 of what was measured, 0 (the mean) where nothing was; columns without spread are left out.

    No outcome or availability is looked at, so that it is done once for all folds.
    """
    count = np.isfinite(columns).sum(0)
    filled = np.where(np.isfinite(columns), columns, 0.0)
    mean = filled.sum(0) / np.maximum(count, 1)
    centred = np.where(np.isfinite(columns), columns - mean, 0.0)
    spread = np.sqrt((centred**2).sum(0) / np.maximum(count, 1))
    kept = spread > 1e-8 * np.maximum(np.abs(mean), 1e-8)
    scaled: Array = centred[:, kept] / spread[kept]
    return scaled


def _model(learner: Learner) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    if learner == "logistic":
        return LogisticRegression(C=1.0, solver="newton-cholesky")
    if learner == "trees":
        return HistGradientBoostingClassifier(
            learning_rate=0.05, max_leaf_nodes=8, max_iter=100, min_samples_leaf=30, early_stopping=False
        )
    raise ValueError(f"learner {learner!r} is not one of logistic, trees")


def assignment_weights(
    probability: ArrayLike, observed: ArrayLike, clip: tuple[float, float] = CLIP
) -> NDArray[np.float64]:
    """Inverse probability weights δ / π, with mean 1 among those observed.

    Args:
        probability: float [n, M], π.
        observed: bool [n, M], δ.
        clip: Lowest and highest π that is used.

    Returns:
        float64 [n, M], 0 where not observed; a modality that nobody has is 0 throughout.

    Raises:
        ValueError: If shapes disagree or an observed sample has no π.
    """
    pi, delta = np.asarray(probability, dtype=np.float64), np.asarray(observed, dtype=bool)
    if pi.shape != delta.shape or pi.ndim != 2:
        raise ValueError(f"probabilities {pi.shape} and observed {delta.shape} must both be [n, M]")
    without = int((delta & ~np.isfinite(pi)).sum())
    if without:
        raise ValueError(f"{without} observed (sample, modality) have no assignment probability")
    weights: Array = np.zeros(pi.shape)
    np.divide(1.0, np.clip(pi, *clip), out=weights, where=delta)
    count = delta.sum(0)
    mean = np.divide(weights.sum(0), count, out=np.ones(len(count)), where=count > 0)
    weights /= mean
    return weights
