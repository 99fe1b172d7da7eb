"""How a model would do where other things are ordered: its test samples, weighted to another availability behaviour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.assignment import Learner, fitted_probability, patient_folds, prepared
from mmnar_lightning.evaluation.bootstrap import Interval
from mmnar_lightning.evaluation.overlap import LEAST_SHOWN, OverlapError, effective_size, finite, shown
from mmnar_lightning.metrics import binary_metric

Array = NDArray[np.float64]
METRICS = ("auroc", "brier", "log_loss", "calibration_intercept", "calibration_slope")
ASSUMPTION = (
    "under ignorability: given what everyone has before the order, what is recorded depends on nothing else that "
    "matters to the outcome, here or there; patients, their values and their outcomes stay those of the test samples"
)
_OPERATORS = ("<=", ">=", "=", "<", ">")


@dataclass(frozen=True)
class AsIf:
    """A condition that names the samples whose availability behaviour is taken over: `site=X`, `year<=2014`.

    Args:
        column: `site`, or a `group/…` column of the samples.
        operator: One of <=, >=, =, <, >. Numbers are compared as numbers, words as words.
        value: What is compared with; a finite number unless the operator is =.

    Raises:
        ValueError: If the value is no finite number where it must be one.
    """

    column: str
    operator: str
    value: str

    def __post_init__(self) -> None:
        if self.operator != "=" and _number(self.value) is None:
            raise ValueError(f"--as-if {self}: {self.operator} needs a number, and {self.value!r} is none")

    @classmethod
    def parse(cls, given: str) -> AsIf:
        """Read `COLUMN OPERATOR VALUE`; `year` stands for `group/year`.

        Raises:
            ValueError: If it can't be read, or compares with what is no number.
        """
        found = re.fullmatch(r"\s*([\w/]+?)\s*(<=|>=|=|<|>)\s*(.+?)\s*", given)
        if found is None:
            raise ValueError(f"--as-if {given!r}: write site=X or year<=2014 (one of {', '.join(_OPERATORS)})")
        column, operator, value = found.groups()
        known = column == "site" or column.startswith("group/")
        return cls(column if known else f"group/{column}", operator, value)

    def __str__(self) -> str:
        return f"{self.column.removeprefix('group/')}{self.operator}{self.value}"

    def rows(self, samples: pl.DataFrame) -> NDArray[np.bool_]:
        """Whether each sample meets the condition: bool [n]; one whose value is unknown doesn't.

        Raises:
            ValueError: If there is no such column, or no sample meets the condition, or all do.
        """
        if self.column not in samples.columns:
            there = ", ".join(c for c in samples.columns if c == "site" or c.startswith("group/"))
            raise ValueError(f"--as-if {self}: the samples have no {self.column!r}; there are: {there}")
        words = samples[self.column].cast(pl.String)
        numbers = words.cast(pl.Float64, strict=False)
        numeric = numbers.null_count() == words.null_count() and _number(self.value) is not None
        column: Any = numbers.fill_nan(None) if numeric else words
        value: Any = _number(self.value) if numeric else self.value
        compare = {"<=": column.__le__, ">=": column.__ge__, "=": column.__eq__, "<": column.__lt__, ">": column.__gt__}
        met: NDArray[np.bool_] = compare[self.operator](value).fill_null(False).to_numpy()
        if not met.any():
            raise ValueError(f"--as-if {self}: no sample meets it")
        if met.all():
            raise ValueError(f"--as-if {self}: all samples meet it, so that none is left to weight")
        return met


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


@dataclass(frozen=True)
class Behaviour:
    """Samples from which an availability behaviour P(δ | w) is learned; no outcome is looked at.

    Args:
        known: float [n, P], w; NaN where an item was not measured.
        observed: bool [n, M], δ.
        patient: [n] ids.
    """

    known: Array
    observed: NDArray[np.bool_]
    patient: NDArray[Any]


@dataclass(frozen=True)
class ShiftThresholds:
    """When a policy shift is refused.

    Args:
        ess: Least effective sample size.
        ess_share: Least share of it in the samples.
        mean: How far the mean weight may be from 1. It falls below where samples lack patterns that the other
            behaviour produces, and where models of behaviour are fitted on too few samples for their columns.
    """

    ess: float = 50.0
    ess_share: float = 0.1
    mean: float = 0.25


@dataclass(frozen=True)
class ShiftWeights:
    """Weights that turn one availability behaviour into another.

    Args:
        weight: float [n], P_target(δ | w) / P_source(δ | w), capped.
        counts: float [d, n], how often each sample is in each bootstrap draw.
        weights: float [d, n], `counts` times the weights of the draw.
        capped: Share of samples whose weight was capped.
        targets: Samples that the target behaviour was learned from.
        estimated_again: Whether each draw has weights of its own, or those of the samples.
    """

    weight: Array
    counts: Array
    weights: Array
    capped: float
    targets: int
    estimated_again: bool

    @property
    def ess(self) -> float:
        """Effective sample size."""
        return effective_size(self.weight)

    def refusal(self, thresholds: ShiftThresholds) -> str:
        """Say why nothing should be concluded; empty where nothing speaks against it."""
        mean, share = float(self.weight.mean()), self.ess / len(self.weight)
        if abs(mean - 1) > thresholds.mean:
            return (
                f"weights average {mean:.2f} and not 1: either patterns that the other behaviour produces are too rare "
                "here, or there are too few samples for the columns that the models of behaviour are fitted on"
            )
        if self.ess < thresholds.ess:
            told = "" if len(self.weight) < LEAST_SHOWN else f" {self.ess:.0f}"
            return f"the effective sample size{told} is below {thresholds.ess:.0f}"
        if share < thresholds.ess_share:
            return f"the effective sample size is {share:.2f} of the samples, below {thresholds.ess_share}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; counts below 10 are not told, nor what they could be worked out from."""
        few = len(self.weight) < LEAST_SHOWN
        return {
            "assumption": ASSUMPTION,
            "samples": shown(len(self.weight)),
            "target_samples": shown(self.targets),
            "ess": None if few else self.ess,
            "ess_share": None if few else self.ess / len(self.weight),
            "mean_weight": float(self.weight.mean()),
            "largest_weight": float(self.weight.max()),
            "capped_share": None if few else self.capped,
            "weights_estimated_in_each_draw": self.estimated_again,
        }


def shift_weights(
    source: Behaviour,
    target: Behaviour,
    *,
    learner: Learner = "logistic",
    folds: int = 1,
    cap: float = 20.0,
    draws: int = 200,
    estimate_again: bool = True,
    seed: int = 0,
) -> ShiftWeights:
    """Weight source samples so that their availability, given w, is the target's: P_target(δ | w) / P_source(δ | w).

    P(δ | w) = Π_m P(δ_m | w, δ_1 … δ_{m−1}), an identity in any order of the modalities; each factor is a model of its
    own. Logistic regressions are fitted on all samples: a fitted denominator balances the very samples that it weights,
    one of other folds does not. The distribution of w, and of the outcome, stays the source's: a change of ordering is
    told apart from a change of patients.

    Args:
        source: The n samples to weight.
        target: Samples that show the other behaviour.
        learner: Kind of model of each factor.
        folds: 1, or for flexible learners the number of folds that patients are divided into, each weighted by models
            of the others.
        cap: Highest weight.
        draws: Bootstrap draws of patients, of both.
        estimate_again: Whether to fit all models again in each draw, as an honest interval needs; else the weights are
            held as they are, which says nothing about how well the target's behaviour is known.
        seed: Key of the folds and seed of the draws.

    Returns:
        Weights of the samples and of the draws.

    Raises:
        ValueError: If there are no samples of either kind, or shapes disagree.

    Source: density ratio weighting, Shimodaira, JSPI 2000; for a change of treatment policy Dudík, Langford, Li, ICML
    2011.
    """
    for what, given in (("source", source), ("target", target)):
        n = len(given.known)
        if not n or len(given.observed) != n or len(given.patient) != n:
            raise ValueError(f"{what}: {n} samples, {len(given.observed)} patterns, {len(given.patient)} patients")
    if source.known.shape[1] != target.known.shape[1] or source.observed.shape[1] != target.observed.shape[1]:
        raise ValueError("source and target must have the same columns and modalities")
    once = np.ones(len(source.known)), np.ones(len(target.known))
    ratio = _ratio(source, target, learner, folds, seed, *once)
    weight = np.minimum(ratio, cap)
    generator = np.random.default_rng(seed)
    members = [np.unique(b.patient.astype(str), return_inverse=True)[1] for b in (source, target)]
    counts, weights = np.empty((draws, len(weight))), np.empty((draws, len(weight)))
    for d in range(draws):
        own, other = (_drawn(member, generator) for member in members)
        again = np.minimum(_ratio(source, target, learner, folds, seed, own, other), cap) if estimate_again else weight
        counts[d], weights[d] = own, own * again
    return ShiftWeights(weight, counts, weights, float((ratio > cap).mean()), len(target.known), estimate_again)


def _drawn(member: NDArray[np.int64], generator: np.random.Generator) -> Array:
    people = int(member.max()) + 1
    return np.bincount(generator.integers(people, size=people), minlength=people)[member].astype(np.float64)


def _ratio(
    source: Behaviour, target: Behaviour, learner: Learner, folds: int, seed: int, own: Array, other: Array
) -> Array:
    """P_target(δ | w) / P_source(δ | w) of each source sample, with how often each sample counts in fitting: [n]."""
    fold, fold_there = patient_folds(source.patient, folds, seed), patient_folds(target.patient, folds, seed)
    ratio = np.ones(len(source.known))
    for m in range(source.observed.shape[1]):
        event, there = source.observed[:, m], target.observed[:, m]
        if (event.all() and there.all()) or not (event.any() or there.any()):
            continue
        before = np.concatenate([source.observed[:, :m], target.observed[:, :m]])
        columns = prepared(np.column_stack([np.concatenate([source.known, target.known]), before]), learner)
        here, elsewhere = columns[: len(event)], columns[len(event) :]
        mine, theirs = np.empty(len(ratio)), np.empty(len(ratio))
        for f in np.unique(fold):
            held = fold == f
            rest, away = ((b != f) | (folds == 1) for b in (fold, fold_there))
            rest, away = rest & (own > 0), away & (other > 0)
            mine[held] = fitted_probability(here[rest], event[rest], own[rest], here[held], learner)
            theirs[held] = fitted_probability(elsewhere[away], there[away], other[away], here[held], learner)
        ratio *= np.where(event, theirs / mine, (1 - theirs) / np.maximum(1 - mine, 1e-12))
    return ratio


@dataclass(frozen=True)
class Shifted:
    """A metric as it is, and as if the other behaviour were in force.

    Args:
        as_is: On the samples as they are.
        as_if: Weighted.
        difference: as_if − as_is, on the same draws.
    """

    as_is: Interval
    as_if: Interval
    difference: Interval


def shifted_metrics(
    probabilities: ArrayLike,
    targets: ArrayLike,
    patient: ArrayLike,
    shift: ShiftWeights,
    *,
    labelled: ArrayLike | None = None,
    metrics: Sequence[str] = METRICS,
    thresholds: ShiftThresholds | None = None,
    level: float = 0.95,
) -> dict[str, Shifted]:
    """Metrics under the other behaviour, with patient-bootstrap intervals.

    Args:
        probabilities: float [n].
        targets: float [n] in {0, 1}; anything where unlabelled.
        patient: [n] ids, for the count of people.
        shift: Weights of the same n samples.
        labelled: bool [n]; None if all are known.
        metrics: Names out of `BINARY_METRICS`.
        thresholds: When the shift is refused.
        level: Nominal coverage.

    Raises:
        OverlapError: If effective sample size or mean weight fail; says how.
    """
    if reason := shift.refusal(thresholds or ShiftThresholds()):
        raise OverlapError(reason)
    y = np.asarray(targets, dtype=np.float64)
    rows = np.ones(len(y), dtype=bool) if labelled is None else np.asarray(labelled, dtype=bool)
    p, y = np.asarray(probabilities, dtype=np.float64)[rows], y[rows]
    people = len(np.unique(np.asarray(patient)[rows]))
    found = {}
    for name in metrics:
        of = binary_metric(name).of
        is_now, would_be = of(p, y, None)[0], of(p, y, shift.weight[None, rows])[0]
        first, second = of(p, y, shift.counts[:, rows]), of(p, y, shift.weights[:, rows])
        found[name] = Shifted(
            _interval(is_now, first, level, people, len(y)),
            _interval(would_be, second, level, people, len(y)),
            _interval(would_be - is_now, second - first, level, people, len(y)),
        )
    return found


def _interval(estimate: float, drawn: Array, level: float, patients: int, samples: int) -> Interval:
    finite_draws = drawn[np.isfinite(drawn)]
    low, high = np.nan, np.nan
    if len(finite_draws) and 2 * len(finite_draws) >= len(drawn):
        low, high = (float(q) for q in np.quantile(finite_draws, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(float(estimate), low, high, level, len(finite_draws), patients, samples)


def interval_dict(interval: Interval) -> dict[str, float | None]:
    """Return estimate and ends as JSON types."""
    return {name: finite(getattr(interval, name)) for name in ("estimate", "low", "high")}
