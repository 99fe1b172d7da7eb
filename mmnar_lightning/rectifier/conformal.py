"""Conformal prediction sets of binary outcomes, by class and availability pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmnar_lightning.records import pattern_names
from mmnar_lightning.rectifier.patterns import PatternTree

VERSION = 1


@dataclass(frozen=True)
class Coverage:
    """How often the sets of one class × pattern group hold the true label, on rows the sets were not fitted on.

    Args:
        task: Name of the task.
        label: The true class of these rows, 0 or 1.
        group: ``labs+notes`` for a pattern (``none`` where nothing is observed), ``other_of_2`` for the other patterns
            of 2 modalities, ``other`` for what is left, ``all`` for the class as a whole.
        calibration: Calibration rows behind the threshold; for ``all``, those of the class.
        samples: Labelled rows of the class in the group.
        people: Different people among them.
        coverage: Share of the rows whose set holds their true label.
        low: Lower end of the range that holds `coverage` with 95 % where rows are exchangeable; NaN where they are not
            those of one cell: for ``all``, and for ``other`` where it was too small for a cell.
        high: Upper end of it.
        size: Mean number of labels in a set.
        empty: Share of sets without a label.
        single: Share of sets with one label.
        both: Share of sets with both labels.
    """

    task: str
    label: int
    group: str
    calibration: int
    samples: int
    people: int
    coverage: float
    low: float
    high: float
    size: float
    empty: float
    single: float
    both: float


@dataclass(frozen=True)
class _Fitted:
    tree: PatternTree
    cell: Tensor  # int64 [P + C + 1, K, 2], the node whose rows decide about a node of the tree
    rows: Tensor  # int64 [P + C + 1, K, 2], calibration rows in the cell of a node, 0 where it is no cell
    total: Tensor  # int64 [K, 2], calibration rows of a class
    threshold: Tensor  # [P + C + 1, K, 2], largest score of a label that is in the set; 1 lets every label in

    def chosen(self, values: Tensor) -> Tensor:
        """Read a table [P + C + 1, K, 2] at the cell of each node."""
        return values.gather(0, self.cell)


class Conformal:
    r"""Split conformal sets ⊂ {0, 1}, Mondrian on class × group of availability patterns.

    Label c is in the set of row i where its score s_ic = 1 − p_ic is at most q, the ⌈(n + 1)(1 − α)⌉-th smallest of the
    scores 1 − p_{j,c} of the n calibration rows j of class c in the same cell.

    Cells, for each task and class: a pattern with ≥ 1/α rows is a cell of its own; the other patterns of the same
    modality count are one cell together where they have ≥ 1/α rows; what is left of all counts is one cell where it
    has ≥ 1/α rows, else it takes the threshold of all rows of the class. A pattern that calibration has not seen goes
    with the others of its modality count, else with what is left. A class with fewer than (1 − α)/α rows is never
    excluded: its label is in every set.

    What is promised: P(y ∈ set | cell) ≥ 1 − α in a cell that is one pattern, for every n and whatever the model, and
    ≤ 1 − α + 1/(n + 1) without ties, on average over calibration and test rows that are exchangeable *inside the
    cell*. It conditions on availability and on the class, so it needs no assumption on why a modality is missing, but
    it needs the same ordering behaviour in test. In a cell of several patterns it holds up to the chance with which
    counts decide what is merged; what was too few for any cell, and a pattern never seen, have no promise. For one
    calibration draw the coverage is Beta(k, n + 1 − k), k = ⌈(n + 1)(1 − α)⌉. Nothing is promised given
    values, subgroups or sites, nor at another site. Rows of one patient are dependent: with several samples a patient
    coverage is approximate and varies more than this; one sample a patient, drawn by chance, makes it exact. The
    calibration rows must not have been seen by the model or the rectifier (calibration B).

    A set without a label says that the row is unlike both classes; one with both, that it cannot be told.

    Args:
        tasks: Names of the K tasks.
        alpha: α, share of rows of a cell whose true label may be left out.

    Raises:
        ValueError: If α is not in (0, 1), or a task name occurs twice.

    Source: Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World* (2005), section 4.5 (Mondrian conformal
    predictors); Vovk, *Conditional validity of inductive conformal predictors*, ACML 2012 (class-conditional
    validity, and the distribution of the coverage).
    """

    def __init__(self, tasks: Sequence[str], alpha: float = 0.1) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), not {alpha}")
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError("conformal sets need at least one task, with distinct names")
        self.tasks = tuple(tasks)
        self.alpha = float(alpha)
        self._fitted: _Fitted | None = None

    @property
    def fitted(self) -> bool:
        """Whether `fit` has run."""
        return self._fitted is not None

    @property
    def fewest(self) -> int:
        """Rows that make a cell: ⌈1/α⌉."""
        return math.ceil(1 / self.alpha - 1e-9)

    def fit(
        self, probabilities: Tensor, targets: Tensor, labelled: Tensor, pattern: Tensor, n_modalities: int
    ) -> Conformal:
        """Fit on calibration rows of all devices; each device then computes the same.

        Args:
            probabilities: [n, K], corrected; n may be 0.
            targets: [n, K] in {0, 1}; anything where unlabelled.
            labelled: bool [n, K].
            pattern: int64 [n] pattern ids.
            n_modalities: M ≤ 62.

        Returns:
            Itself.

        Raises:
            ValueError: If shapes disagree, a pattern id has a bit at or above M, or a labelled row has a probability
                outside [0, 1] or a target other than 0 and 1.
        """
        if not 1 <= n_modalities <= 62:
            raise ValueError(f"{n_modalities} modalities; a pattern id holds 1 to 62")
        probabilities, targets, labelled, pattern = self._checked(probabilities, targets, labelled, pattern)
        if strange := int((pattern >> n_modalities != 0).sum()):
            raise ValueError(f"calibration rows: {strange} pattern ids outside 0 … 2^{n_modalities} − 1")
        tree = PatternTree.of(torch.unique(pattern))
        node = torch.searchsorted(tree.pattern, pattern)
        tables: list[tuple[Tensor, Tensor, Tensor]] = []
        total = torch.stack([(labelled & (targets == label)).sum(0) for label in (0, 1)], 1)
        for k in range(len(self.tasks)):
            for label, score in enumerate((probabilities[:, k], 1 - probabilities[:, k])):
                own = labelled[:, k] & (targets[:, k] == label)
                tables.append(self._cells(score[own], node[own], tree))
        shape = (len(tree.pattern) + len(tree.count) + 1, len(self.tasks), 2)
        cell, rows, threshold = (torch.stack(columns, 1).reshape(shape) for columns in zip(*tables, strict=True))
        self._fitted = _Fitted(tree, cell, rows, total, threshold)
        return self

    def _checked(self, *columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probabilities, targets, labelled, pattern = (column.detach().cpu() for column in columns)
        shape = (len(pattern), len(self.tasks))
        for name, tensor in (("probabilities", probabilities), ("targets", targets), ("labelled", labelled)):
            if tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)} (rows, tasks), not {list(tensor.shape)}")
        p, y = probabilities.double(), targets.double()
        wrong = {
            "labelled probabilities outside [0, 1]": int((labelled & ~((p >= 0) & (p <= 1))).sum()),
            "labelled targets other than 0 and 1": int((labelled & (y != 0) & (y != 1)).sum()),
        }
        if any(wrong.values()):
            raise ValueError(f"rows: {'; '.join(f'{count} {what}' for what, count in wrong.items() if count)}")
        return p, y, labelled, pattern.contiguous()

    def _cells(self, score: Tensor, node: Tensor, tree: PatternTree) -> tuple[Tensor, Tensor, Tensor]:
        """Find cell, rows and threshold of each node [P + C + 1] for the rows of one class: score [n], node [n]."""
        P, C = len(tree.pattern), len(tree.count)
        own = torch.bincount(node, minlength=P) >= self.fewest
        rest = torch.bincount(tree.group[node][~own[node]], minlength=C) >= self.fewest
        others = torch.where(rest, P + torch.arange(C), P + C)
        cell = torch.cat([torch.where(own, torch.arange(P), others[tree.group]), others, torch.tensor([P + C])])
        rows, threshold = torch.zeros(P + C + 1, dtype=torch.int64), torch.ones(P + C + 1, dtype=torch.float64)
        placed = cell[node]
        for c in torch.unique(cell).tolist():
            inside = score[placed == c]
            rows[c] = len(inside)
            if len(inside) < self.fewest:  # too few of what is left
                inside = score
            rank = self._rank(len(inside))
            if rank <= len(inside):
                threshold[c] = inside.sort().values[rank - 1]
        return cell, rows, threshold

    def _rank(self, n: int) -> int:
        """⌈(n + 1)(1 − α)⌉, without the rounding of 1 − α."""
        return math.ceil((n + 1) * (1 - self.alpha) - 1e-9)

    def sets(self, probabilities: Tensor, pattern: Tensor) -> Tensor:
        """Return which labels are in each set.

        Args:
            probabilities: [n, K], corrected as those of `fit`.
            pattern: int64 [n].

        Returns:
            bool [n, K, 2] on the device of `probabilities`; before `fit` every label is in every set.
        """
        p = probabilities.detach().double().cpu()
        scores = torch.stack([p, 1 - p], dim=2)
        if self._fitted is None:
            return torch.ones_like(scores, dtype=torch.bool).to(probabilities.device)
        threshold = self._fitted.chosen(self._fitted.threshold)
        held = scores <= threshold[self._fitted.tree.node(pattern.cpu())]
        return held.to(probabilities.device)

    def coverage(
        self,
        probabilities: Tensor,
        targets: Tensor,
        labelled: Tensor,
        pattern: Tensor,
        names: Sequence[str],
        patient: Tensor | None = None,
    ) -> list[Coverage]:
        """Count how often the sets hold the true label, by class × pattern group, on rows not fitted on.

        Args:
            probabilities: [n, K], corrected as those of `fit`.
            targets: [n, K] in {0, 1}; anything where unlabelled.
            labelled: bool [n, K].
            pattern: int64 [n].
            names: Names of the M modalities, in order.
            patient: int64 [n], number of each row's patient; None where no two rows share one.

        Returns:
            A row for each class as a whole, then for each of its groups that has test rows; none before `fit`.

        Raises:
            ValueError: As `fit`.
        """
        if self._fitted is None:
            return []
        fitted, found = self._fitted, []
        p, y, labelled, pattern = self._checked(probabilities, targets, labelled, pattern)
        person = torch.arange(len(pattern)) if patient is None else patient.cpu()
        held, node = self.sets(p, pattern), fitted.tree.node(pattern)
        last = len(fitted.cell) - 1
        for k, task in enumerate(self.tasks):
            for label in (0, 1):
                own = torch.nonzero(labelled[:, k] & (y[:, k] == label))[:, 0]
                cells = fitted.cell[node[own], k, label]
                groups = [("all", own, last)]
                groups += [(self._group(c, names), own[cells == c], c) for c in torch.unique(cells).tolist()]
                for group, rows, c in groups:
                    inside, total = int(fitted.rows[c, k, label]), int(fitted.total[k, label])
                    promised = group != "all" and inside >= self.fewest
                    calibration = inside if promised else total
                    row = self._covered(held[rows, k], label, calibration, promised=promised)
                    people = len(torch.unique(person[rows]))
                    found.append(Coverage(task, label, group, calibration, len(rows), people, *row))
        return found

    def _group(self, cell: int, names: Sequence[str]) -> str:
        assert self._fitted is not None
        tree = self._fitted.tree
        if cell < len(tree.pattern):
            return "+".join(pattern_names(int(tree.pattern[cell]), names)) or "none"
        count = cell - len(tree.pattern)
        return f"other_of_{int(tree.count[count])}" if count < len(tree.count) else "other"

    def _covered(self, held: Tensor, label: int, calibration: int, *, promised: bool) -> tuple[float, ...]:
        """Coverage, its expected range, mean size and shares of sizes 0, 1, 2 of the sets held [n, 2]."""
        n, size = len(held), held.sum(1)
        if not n:
            return (math.nan,) * 7
        low, high, rank = math.nan, math.nan, self._rank(calibration)
        if promised and rank <= calibration:
            low, high = _expected(n, rank, calibration + 1 - rank)
        shares = (float((size == s).double().mean()) for s in range(3))
        return (float(held[:, label].double().mean()), low, high, float(size.double().mean()), *shares)

    def to_state(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: JSON, and loadable with ``weights_only=True``."""
        state: dict[str, Any] = {"version": VERSION, "tasks": list(self.tasks), "alpha": self.alpha}
        if self._fitted is None:
            return state | {"fitted": False}
        f = self._fitted
        numbers = {
            "patterns": f.tree.pattern,
            "cell": f.cell,
            "rows": f.rows,
            "total": f.total,
            "threshold": f.threshold,
        }
        return state | {"fitted": True} | {name: value.tolist() for name, value in numbers.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Conformal:
        """Build the sets back from `to_state`.

        Raises:
            ValueError: If the state is of another version or lacks a part.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"conformal state of version {state.get('version')!r}; this release reads {VERSION}")
        try:
            conformal = cls(state["tasks"], state["alpha"])
            if state["fitted"]:
                tree = PatternTree.of(torch.tensor(state["patterns"], dtype=torch.int64))
                cell, rows, total = (torch.tensor(state[n], dtype=torch.int64) for n in ("cell", "rows", "total"))
                threshold = torch.tensor(state["threshold"], dtype=torch.float64)
                conformal._fitted = _Fitted(tree, cell, rows, total, threshold)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a state of conformal sets: {error}") from error
        return conformal


def _expected(n: int, a: int, b: int) -> tuple[float, float]:
    """2.5 and 97.5 % quantiles of BetaBinomial(n, a, b) / n."""
    from scipy.stats import betabinom

    # one pass over the support; scipy's own quantile sums it anew at each step of a bisection
    below = torch.from_numpy(betabinom(n, a, b).pmf(range(n + 1))).cumsum(0)
    low, high = torch.searchsorted(below, torch.tensor([0.025, 0.975], dtype=below.dtype)).clamp(max=n).tolist()
    return low / n, high / n
