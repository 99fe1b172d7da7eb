"""Metrics of each group of a test: by availability pattern, and by whatever else samples are grouped by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmnar_lightning.evaluation.bootstrap import patient_weights
from mmnar_lightning.evaluation.intervals import ranks
from mmnar_lightning.metrics import binary_metric
from mmnar_lightning.metrics.binary import PROBABILITY_FLOOR
from mmnar_lightning.metrics.outcomes import FEWEST, WORST_MINIMUM
from mmnar_lightning.records import pattern_names

Array = NDArray[np.float64]
Ends = tuple[float | None, float | None, float | None]
LEVELS = 500
"""Ranks that are told apart in a draw; with more different scores, neighbours share one."""
ROW_DRAWS, MOST_DRAWS, FEWEST_DRAWS = 5_000_000, 500, 200
GROUP_METRICS = ("auroc", "auprc", "brier", "log_loss")
NOTHING: Ends = (None, None, None)


@dataclass(frozen=True)
class GroupRow:
    """What was found in one group, for one task.

    A group in which fewer than 10 people have the outcome, or fewer than 10 don't, has its size and nothing else: a
    number about it would be noise, and could point at someone. So has the smallest of the other groups of a variable,
    where the small ones could be had by subtracting the others from all.

    Args:
        variable: What samples are grouped by: ``pattern``, ``modality_count`` or the name of a subgroup.
        group: The group. ``other_of_2`` holds the patterns of 2 modalities that are too small for a row of their own,
            ``other`` those whose ``other_of_…`` is too small, too.
        task: Name of the task.
        samples: Samples with a known label.
        people: Different people among them, at least 10.
        events: Samples with the outcome; None where there are too few people to say.
        rate: Share of samples with the outcome: estimate and 95 % interval; all None where `events` is.
        metrics: By version of the probabilities and metric: estimate and interval, whose ends are None where the metric
            is defined in fewer than half of the draws; empty where `events` is None.
    """

    variable: str
    group: str
    task: str
    samples: int
    people: int
    events: int | None
    rate: Ends
    metrics: dict[str, dict[str, Ends]]


@dataclass(frozen=True)
class _Group:
    variable: str
    name: str
    rows: NDArray[np.int64]


def by_group(
    scores: Mapping[str, ArrayLike],
    targets: ArrayLike,
    labelled: ArrayLike,
    patient: ArrayLike,
    tasks: Sequence[str],
    variables: Mapping[str, Sequence[str | None]],
    *,
    pattern: ArrayLike | None = None,
    modalities: Sequence[str] = (),
    draws: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> list[GroupRow]:
    """Compute AUROC, AUPRC, Brier, log loss and event rate in each group, with percentile intervals over patients.

    All groups and versions of a task share the draws: patients with a known label are drawn with replacement, each with
    all of their samples, as in `bootstrap_interval`. Inside a group rows of the same class and rank are added up first,
    so that a draw costs little: exact up to 500 different probabilities; beyond, neighbours share a rank, which moves
    the ends in the third or fourth decimal place. Estimates are exact.

    A pattern that ≥ 10 people have with the outcome and ≥ 10 without is a group; the other patterns are pooled by
    modality count. Groups of fewer than 10 people are left out.

    Args:
        scores: Probabilities [n, K] by version.
        targets: [n, K] in {0, 1}; anything where unlabelled.
        labelled: bool [n, K].
        patient: [n] ids of any type.
        tasks: Names of the K tasks.
        variables: Group of each sample [n] by variable; None where it is unknown.
        pattern: int64 [n] pattern ids; None for no groups by availability.
        modalities: Names of the M modalities, in order.
        draws: Bootstrap draws; None takes 500 up to 10,000 rows, then fewer with n, never under 200.
        level: Nominal coverage in (0, 1).
        seed: Seed of the draws.

    Raises:
        ValueError: If lengths disagree, or a variable is called as one of availability is.
    """
    y, known, person = np.asarray(targets, np.float64), np.asarray(labelled, bool), np.asarray(patient)
    p = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    columns = {name: np.asarray(list(values), dtype=object) for name, values in variables.items()}
    _check(p, y, known, person, tasks, columns)
    ids = None if pattern is None else np.asarray(pattern, np.int64)
    found: list[GroupRow] = []
    for k, task in enumerate(tasks):
        own = np.flatnonzero(known[:, k])
        members = np.unique(person[own], return_inverse=True)[1].astype(np.int64)
        if not len(own) or members.max() + 1 < FEWEST:
            continue
        groups = [] if ids is None else _patterns(ids[own], y[own, k], members, modalities)
        groups += [group for name, values in columns.items() for group in _values(name, values[own])]
        versions = {name: values[own, k] for name, values in p.items() if np.isfinite(values[own, k]).all()}
        number = draws or int(np.clip(ROW_DRAWS // len(own), FEWEST_DRAWS, MOST_DRAWS))
        found += _rows(task, groups, versions, y[own, k], members, number, level, seed)
    return found


def _check(
    scores: Mapping[str, Array],
    targets: Array,
    labelled: NDArray[np.bool_],
    patient: NDArray[Any],
    tasks: Sequence[str],
    variables: Mapping[str, NDArray[Any]],
) -> None:
    shape = (len(patient), len(tasks))
    for name, values in {"targets": targets, "labelled": labelled, **scores}.items():
        if values.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} (rows, tasks), not {list(values.shape)}")
    for name, labels in variables.items():
        if name in ("pattern", "modality_count"):
            raise ValueError(f"a variable cannot be called {name!r}: that is what availability is grouped by")
        if len(labels) != len(patient):
            raise ValueError(f"variable {name!r} has {len(labels)} samples, not {len(patient)}")


def _people(person: NDArray[np.int64], y: Array) -> tuple[int, int]:
    """Different people with the outcome, and without: someone with several samples may count in both."""
    return len(np.unique(person[y == 1])), len(np.unique(person[y == 0]))


def _patterns(pattern: NDArray[np.int64], y: Array, person: NDArray[np.int64], names: Sequence[str]) -> list[_Group]:
    """Patterns large enough, most frequent first; then what is left, by modality count, and what is left of that."""
    found: list[_Group] = []

    def enough(rows: NDArray[np.int64]) -> bool:
        return min(_people(person[rows], y[rows])) >= WORST_MINIMUM

    ids, place, counts = np.unique(pattern, return_inverse=True, return_counts=True)
    rows_of = np.split(np.argsort(place, kind="stable"), np.cumsum(counts)[:-1])
    rest: dict[int, list[NDArray[np.int64]]] = {}
    for i in np.lexsort((ids, -counts)).tolist():
        if enough(rows_of[i]):
            found.append(_Group("pattern", "+".join(pattern_names(int(ids[i]), names)) or "none", rows_of[i]))
        else:
            rest.setdefault(int(ids[i]).bit_count(), []).append(rows_of[i])
    left: list[NDArray[np.int64]] = []
    for count, parts in sorted(rest.items()):
        rows = np.sort(np.concatenate(parts))
        if enough(rows):
            found.append(_Group("modality_count", f"other_of_{count}", rows))
        else:
            left.append(rows)
    # what is left must not be told by subtraction
    while left and found and not enough(np.concatenate(left)):
        left.append(found.pop().rows)
    if left:
        found.append(_Group("modality_count", "other", np.sort(np.concatenate(left))))
    return found


def _values(variable: str, labels: NDArray[Any]) -> Iterator[_Group]:
    for label in sorted({label for label in labels if label is not None}, key=_order):
        yield _Group(variable, label, np.flatnonzero(labels == label))


def _order(label: str) -> tuple[float, str]:
    """Bands by their first number, ``<100`` before ``100-249``; words after them."""
    number = re.search(r"\d+", label)
    return (float(number.group()) - label.startswith("<") / 2 if number else np.inf, label)


def _told(groups: Sequence[_Group], y: Array, person: NDArray[np.int64]) -> list[_Group]:
    """Groups large enough to tell of. Where the rest of a variable could be had by subtraction, less of it is told."""
    found = []
    for variable in dict.fromkeys(group.variable for group in groups):
        own = [group for group in groups if group.variable == variable]
        people = {group.name: min(_people(person[group.rows], y[group.rows])) for group in own}
        told = sorted((g for g in own if people[g.name] >= WORST_MINIMUM), key=lambda g: -people[g.name])
        while 0 < len(told) < len(own):
            hidden = np.ones(len(y), dtype=bool)
            for group in told:
                hidden[group.rows] = False
            if variable == "modality_count" or min(_people(person[hidden], y[hidden])) >= WORST_MINIMUM:
                break
            told.pop()
        found += told
    return found


def _rows(
    task: str,
    groups: Sequence[_Group],
    scores: Mapping[str, Array],
    y: Array,
    person: NDArray[np.int64],
    draws: int,
    level: float,
    seed: int,
) -> list[GroupRow]:
    people = [len(np.unique(person[group.rows])) for group in groups]
    told = _told(groups, y, person)
    drawn = _drawn(told, scores, y, person, draws, seed) if told else {}
    place = {id(group): g for g, group in enumerate(told)}
    found = []
    for group, number in zip(groups, people, strict=True):
        if number < FEWEST:
            continue
        size = (group.variable, group.name, task, len(group.rows), number)
        if id(group) not in place:
            found.append(GroupRow(*size, None, NOTHING, {}))
            continue
        g, own = place[id(group)], y[group.rows]
        rate = _interval(float(own.mean()), drawn["", "rate"][g], level)
        metrics = {
            version: {
                name: _interval(
                    float(binary_metric(name).of(p[group.rows], own, None)[0]), drawn[version, name][g], level
                )
                for name in GROUP_METRICS
            }
            for version, p in scores.items()
        }
        found.append(GroupRow(*size, int(own.sum()), rate, metrics))
    return found


def _interval(estimate: float, drawn: Array, level: float) -> Ends:
    defined = drawn[np.isfinite(drawn)]
    low, high = None, None
    if 2 * len(defined) >= len(drawn):
        low, high = (float(q) for q in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return (estimate if np.isfinite(estimate) else None, low, high)


def _drawn(
    groups: Sequence[_Group],
    scores: Mapping[str, Array],
    y: Array,
    person: NDArray[np.int64],
    draws: int,
    seed: int,
) -> dict[tuple[str, str], Array]:
    """Metrics of each draw [G, draws] by version and name, and the rate under version ``""``."""
    names = [("", "rate"), *((version, name) for version in scores for name in GROUP_METRICS)]
    found = {name: np.empty((len(groups), draws)) for name in names}
    cells = {version: _Cells(groups, p, y) for version, p in scores.items()}
    first = 0
    # as `bootstrap_interval` draws
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    for weights in patient_weights(person, draws, generator):
        chunk, transposed = slice(first, first + len(weights)), np.ascontiguousarray(weights.T)
        first += len(weights)
        for version, own in cells.items():
            for g, values in enumerate(own.values(transposed)):
                for name, value in values.items():
                    found["" if name == "rate" else version, name][g, chunk] = value
    return found


class _Cells:
    """Rows of the same group, class and rank, added up."""

    def __init__(self, groups: Sequence[_Group], p: Array, y: Array) -> None:
        from scipy.sparse import csr_array

        f = np.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        losses = {"brier": (p - y) ** 2, "log_loss": -(y * np.log(f) + (1 - y) * np.log1p(-f))}
        self.parts: list[tuple[int, int, dict[str, Array]]] = []
        places, total = [], 0
        for group in groups:
            rank = ranks(p[group.rows], LEVELS)
            L = int(rank.max()) + 1
            # events by rank, then the others by rank
            cell = rank + L * (y[group.rows] == 0)
            rows = np.maximum(np.bincount(cell, minlength=2 * L), 1)
            sums = {name: np.bincount(cell, weights=loss[group.rows], minlength=2 * L) for name, loss in losses.items()}
            self.parts.append((total, L, {name: values / rows for name, values in sums.items()}))
            places.append(total + cell)
            total += 2 * L
        row, column = np.concatenate(places), np.concatenate([group.rows for group in groups])
        self.member = csr_array((np.ones(len(row)), (row, column)), shape=(total, len(p)))

    def values(self, weights: Array) -> Iterator[dict[str, Array]]:
        """Metrics [d] of each group under weights [n, d]."""
        summed = self.member @ weights
        for first, L, mean in self.parts:
            part = summed[first : first + 2 * L]
            size = part.sum(0)
            found = {name: _ratio(values @ part, size) for name, values in mean.items()}
            yield found | {"rate": _ratio(part[:L].sum(0), size)} | _ranked(part[:L], part[L:])


def _ranked(events: Array, others: Array) -> dict[str, Array]:
    """AUROC and AUPRC [d] from weights [L, d] by rank, lowest first; as `auroc` and `auprc`, for many draws faster."""
    below, up_to = np.cumsum(others, axis=0), np.cumsum(events, axis=0)
    all_events, all_others = up_to[-1], below[-1]
    area = (events * (below - others / 2)).sum(0)
    # at or above the rank
    hits = all_events - up_to + events
    chosen = hits + all_others - below + others
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    auprc = _ratio((events * precision).sum(0), np.where(all_others > 0, all_events, 0.0))
    return {"auroc": _ratio(area, all_events * all_others), "auprc": auprc}


def _ratio(top: Array, bottom: Array) -> Array:
    ratio: Array = np.divide(top, bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)
    return ratio
