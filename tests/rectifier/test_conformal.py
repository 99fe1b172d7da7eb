"""Conformal sets: coverage inside each cell, against a brute-force reference, and where a plain one fails."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom
from torch import Tensor

from mmnar_lightning.rectifier.conformal import Conformal, Coverage

ALPHA = 0.1
NAMES = ("labs", "notes", "films")
# pattern id → share of rows; 4 and 2 are too rare to be cells of their own among positives
SHARES = {7: 0.5, 3: 0.3, 5: 0.12, 1: 0.05, 2: 0.02, 4: 0.01}


def drawn(seed: int, n: int, prevalence: float = 0.15) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities [n, 1], targets, labelled and pattern; the model is worse where less is seen."""
    g = np.random.default_rng(seed)
    pattern = g.choice(list(SHARES), n, p=list(SHARES.values()))
    y = g.random(n) < prevalence
    strength = np.select([pattern == 7, pattern == 3], [2.5, 1.5], 0.5)
    logit = strength * (y - 0.5) + g.standard_normal(n) - 1.5
    p = torch.tensor(1 / (1 + np.exp(-logit)))[:, None]
    return p, torch.tensor(y.astype(float))[:, None], torch.ones(n, 1, dtype=torch.bool), torch.tensor(pattern)


def fitted(seed: int, n: int = 1500) -> Conformal:
    return Conformal(["y"], ALPHA).fit(*drawn(seed, n), 3)


def held(conformal: Conformal, p: Tensor, y: Tensor, pattern: Tensor) -> Tensor:
    """Whether the sets hold the true labels of one task: bool [n]."""
    return conformal.sets(p, pattern)[torch.arange(len(p)), 0, y[:, 0].long()]


def brute_force(
    p: list[float], y: list[int], pattern: list[int], alpha: Fraction, label: int, asked: int, probability: float
) -> bool:
    """Whether `label` is in the set of one row, from the definition and with whole numbers and loops alone."""
    own = [(pt, pi if label == 0 else 1 - pi) for pt, pi, yi in zip(pattern, p, y, strict=True) if yi == label]

    def size(group: set[int]) -> int:
        return sum(pt in group for pt, _ in own)

    seen = set(pattern)
    big = {pt for pt in seen if size({pt}) * alpha >= 1}
    others = {n: {pt for pt in seen - big if pt.bit_count() == n} for n in range(4)}
    left = set().union(*(o for o in others.values() if size(o) * alpha < 1))
    choices = [others[asked.bit_count()], left, seen]
    group = {asked} if asked in big else next((g for g in choices if size(g) * alpha >= 1), seen)
    scores = sorted(score for pt, score in own if pt in group)
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    score = probability if label == 0 else 1 - probability
    return rank > len(scores) or score <= scores[rank - 1]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1), st.integers(0, 7)), max_size=60),
    asked=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 7)), min_size=1, max_size=8),
    alpha=st.sampled_from(["0.05", "0.1", "0.2", "0.25", "0.5", "0.9"]),
)
def test_sets_are_those_of_the_definition(
    rows: list[tuple[int, int, int]], asked: list[tuple[int, int]], alpha: str
) -> None:
    """Probabilities are on a coarse grid, so that ties are common."""
    p, y, pattern = ([row[j] for row in rows] for j in range(3))
    grid = [pi / 32 for pi in p]
    columns = (torch.tensor(grid).reshape(-1, 1), torch.tensor(y, dtype=torch.float32).reshape(-1, 1))
    labelled = torch.ones(len(rows), 1, dtype=torch.bool)
    conformal = Conformal(["y"], float(alpha)).fit(*columns, labelled, torch.tensor(pattern, dtype=torch.int64), 3)
    found = conformal.sets(torch.tensor([[a / 32] for a, _ in asked]), torch.tensor([pt for _, pt in asked]))
    for row, (a, pt) in zip(found[:, 0].tolist(), asked, strict=True):
        expected = [brute_force(grid, y, pattern, Fraction(alpha), c, pt, a / 32) for c in (0, 1)]
        assert row == expected


def test_every_cell_is_covered_on_average_and_varies_as_expected() -> None:
    """320 draws of calibration and test. In a cell that is one pattern, the covered test rows of a draw are
    BetaBinomial(n, k, n_cal + 1 − k): 95 % of the draws lie in the range of each, and the mean is ≥ 1 − α.
    """
    misses: dict[tuple[int, str], list[float]] = {}
    inside: dict[tuple[int, str], list[bool]] = {}
    for seed in range(320):
        conformal = fitted(2 * seed, 1500)
        for row in conformal.coverage(*drawn(2 * seed + 1, 1500), NAMES):
            misses.setdefault((row.label, row.group), []).append(row.coverage)
            if not math.isnan(row.low):
                inside.setdefault((row.label, row.group), []).append(row.low <= row.coverage <= row.high)
    own = {(label, group) for label in (0, 1) for group in ("labs+notes+films", "labs+notes", "labs+films")}
    assert own <= inside.keys(), "patterns with enough rows are cells of their own"
    for key in own:
        assert len(misses[key]) >= 300
        error = np.std(misses[key]) / np.sqrt(len(misses[key]))
        assert np.mean(misses[key]) > 1 - ALPHA - 3 * error, key
        # ≤ 1 − α + 1/(n + 1) without ties; the smallest of these cells has some 27 rows
        assert np.mean(misses[key]) < 1 - ALPHA + 1 / 20 + 3 * error, key
        # the range is discrete, so it may hold more than 95 %; 3 standard errors of 320 draws are 0.037
        assert np.mean(inside[key]) > 0.95 - 0.037, key
        assert np.std(misses[key]) > 0.005, key
    # the rest of a count, too: here merging looks at counts, and the guarantee is approximate
    for key in set(inside) - own:
        assert np.mean(misses[key]) > 1 - ALPHA - 0.03, key


def test_positives_are_covered_where_a_marginal_threshold_leaves_them_out() -> None:
    """One threshold for all rows has its coverage from the many negatives."""
    marginal, ours = [], []
    for seed in range(60):
        p, y, _, _ = drawn(2 * seed, 1500, prevalence=0.05)
        tested, truth, _, pattern = drawn(2 * seed + 1, 1500, prevalence=0.05)
        score = torch.where(y > 0.5, 1 - p, p).flatten().sort().values
        threshold = score[math.ceil((len(score) + 1) * (1 - ALPHA)) - 1]
        own = torch.where(truth > 0.5, 1 - tested, tested).flatten() <= threshold
        positive = truth[:, 0] > 0.5
        marginal.append([float(own.double().mean()), float(own[positive].double().mean())])
        conformal = Conformal(["y"], ALPHA).fit(*drawn(2 * seed, 1500, prevalence=0.05), 3)
        ours.append(float(held(conformal, tested, truth, pattern)[positive].double().mean()))
    overall, of_positives = np.mean(marginal, axis=0)
    assert overall == pytest.approx(1 - ALPHA, abs=0.01), "it keeps its own promise"
    assert of_positives < 0.6, "which hides that positives are left out"
    assert np.mean(ours) > 1 - ALPHA - 3 * np.std(ours) / np.sqrt(60)


def test_one_threshold_for_a_class_hides_a_pattern() -> None:
    """The companion of cells by pattern: by class alone, the pattern with little information is not covered."""
    by_class, by_cell = [], []
    for seed in range(40):
        calibration, test = drawn(2 * seed, 3000), drawn(2 * seed + 1, 3000)
        nowhere = torch.zeros_like(calibration[3])
        alone = Conformal(["y"], ALPHA).fit(*calibration[:3], nowhere, 3)
        rows = (test[3] == 5) & (test[1][:, 0] > 0.5)
        p, y, pattern = test[0][rows], test[1][rows], test[3][rows]
        by_class.append(float(held(alone, p, y, pattern * 0).double().mean()))
        by_cell.append(float(held(Conformal(["y"], ALPHA).fit(*calibration, 3), p, y, pattern).double().mean()))
    assert np.mean(by_class) < 1 - ALPHA - 0.03
    assert np.mean(by_cell) > 1 - ALPHA - 3 * np.std(by_cell) / np.sqrt(40)


def groups(rows: list[Coverage], label: int) -> dict[str, int]:
    return {row.group: row.calibration for row in rows if row.label == label}


def test_small_patterns_are_merged_to_their_count_and_then_to_what_is_left() -> None:
    """α = 0.1 wants 10 rows of a class: 12 of {labs}, 6 + 5 of two patterns of two, some of three or none."""
    for last, left in ((4, 27), (6, 10)):  # 4 rows are too few for a cell, 6 + 4 are enough
        pattern = torch.tensor([1] * 12 + [3] * 6 + [5] * 5 + [7] * last + [0] * (4 * (last == 6)))
        n = len(pattern)
        p, y, labelled = torch.linspace(0.01, 0.99, n)[:, None], torch.ones(n, 1), torch.ones(n, 1, dtype=torch.bool)
        conformal = Conformal(["y"], ALPHA).fit(p, y, labelled, pattern, 3)
        rows = conformal.coverage(p, y, labelled, pattern, NAMES)
        assert groups(rows, 1) == {"all": n, "labs": 12, "other_of_2": 11, "other": left}
        assert {row.group: row.samples for row in rows if row.label == 1}["other"] == n - 23
        assert [math.isnan(row.low) for row in rows if row.group == "other"] == [last == 4]
        assert groups(rows, 0) == {"all": 0}, "no row is a negative"
        members = {"two": (pattern == 3) | (pattern == 5), "left": pattern >= 0}
        if last == 6:
            members["left"] = (pattern == 7) | (pattern == 0)
        cuts = {}
        for name, own in members.items():
            scores = sorted(1 - p[own, 0].double())
            cuts[name] = float(scores[math.ceil(0.9 * (len(scores) + 1) - 1e-9) - 1])
        # 6 is unseen, with a known count; 2 goes with what is left: {labs} is a cell of its own
        for asked, cut in ((6, cuts["two"]), (7, cuts["left"]), (0, cuts["left"]), (2, cuts["left"])):
            just = torch.tensor([[1 - cut + 1e-6], [1 - cut - 1e-6]], dtype=torch.float64)
            found = conformal.sets(just, torch.tensor([asked, asked]))
            assert found[:, 0, 1].tolist() == [True, False], asked
            assert found[:, 0, 0].all(), "a class that was never seen cannot be excluded"


def test_a_class_with_too_few_rows_is_in_every_set() -> None:
    """8 rows are fewer than (1 − α)/α = 9: no finite threshold covers with 0.9."""
    for n, finite in ((8, False), (9, True)):
        p, y = torch.full((n, 1), 0.9), torch.ones(n, 1)
        conformal = Conformal(["y"], ALPHA).fit(p, y, torch.ones(n, 1, dtype=torch.bool), torch.zeros(n).long(), 3)
        assert bool(conformal.sets(torch.tensor([[0.0]]), torch.tensor([0]))[0, 0, 1]) is not finite


def test_missing_labels_are_ignored() -> None:
    p, y, labelled, pattern = drawn(3, 2000)
    labelled = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0)) < 0.6
    kept = labelled[:, 0]
    whole = Conformal(["y"], ALPHA).fit(
        torch.where(labelled, p, torch.nan), torch.where(labelled, y, torch.nan), labelled, pattern, 3
    )
    part = Conformal(["y"], ALPHA).fit(p[kept], y[kept], labelled[kept], pattern[kept], 3)
    assert whole.to_state() == part.to_state()
    rows = whole.coverage(p, y, labelled, pattern, NAMES)
    assert sum(row.samples for row in rows if row.group == "all") == int(kept.sum())


def test_tasks_are_apart_and_order_of_rows_is_nothing() -> None:
    first, second = drawn(0, 900), drawn(1, 900, prevalence=0.4)
    p, y, labelled = (torch.cat([a, b], 1) for a, b in zip(first[:3], second[:3], strict=True))
    both = Conformal(["a", "b"], ALPHA).fit(p, y, labelled, first[3], 3)
    alone = Conformal(["a"], ALPHA).fit(*first, 3)
    assert torch.equal(both.sets(p, first[3])[:, :1], alone.sets(first[0], first[3]))
    order = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    again = Conformal(["a", "b"], ALPHA).fit(p[order], y[order], labelled[order], first[3][order], 3)
    assert again.to_state() == both.to_state()


def test_shares_and_sizes_add_up() -> None:
    for row in fitted(5).coverage(*drawn(6, 1000), NAMES, torch.arange(1000) // 2):
        assert row.empty + row.single + row.both == pytest.approx(1)
        assert row.size == pytest.approx(row.single + 2 * row.both)
        assert row.people <= row.samples
        if row.group == "labs+notes" and row.label == 0:
            rank = math.ceil((row.calibration + 1) * 0.9)
            expected = betabinom(row.samples, rank, row.calibration + 1 - rank).interval(0.95)
            assert (row.low, row.high) == pytest.approx(tuple(np.array(expected) / row.samples))


def test_sixty_two_modalities() -> None:
    pattern = torch.tensor([2**61 + 5] * 40 + [2**62 - 1] * 40)
    p, y = torch.rand(80, 1, generator=torch.Generator().manual_seed(0)), torch.arange(80)[:, None] % 2
    conformal = Conformal(["y"], ALPHA).fit(p, y.double(), torch.ones(80, 1, dtype=torch.bool), pattern, 62)
    names = [f"m{j}" for j in range(62)]
    rows = conformal.coverage(p, y.double(), torch.ones(80, 1, dtype=torch.bool), pattern, names)
    assert {"m0+m2+m61", "+".join(names)} <= {row.group for row in rows}


def test_state_is_plain_and_brings_the_same_sets_back() -> None:
    conformal, (p, y, labelled, pattern) = fitted(7), drawn(8, 500)
    state = json.loads(json.dumps(conformal.to_state(), allow_nan=False))
    again = Conformal.from_state(state)
    assert torch.equal(again.sets(p, pattern), conformal.sets(p, pattern))
    assert again.to_state() == conformal.to_state()
    assert repr(again.coverage(p, y, labelled, pattern, NAMES)) == repr(
        conformal.coverage(p, y, labelled, pattern, NAMES)
    )
    empty = Conformal.from_state(Conformal(["y"], 0.2).to_state())
    assert not empty.fitted
    assert empty.sets(p, pattern).all(), "nothing is excluded before it was fitted"
    assert empty.coverage(p, y, labelled, pattern, NAMES) == []
    with pytest.raises(ValueError, match="version 99"):
        Conformal.from_state(state | {"version": 99})
    with pytest.raises(ValueError, match="threshold"):
        Conformal.from_state({k: v for k, v in state.items() if k != "threshold"})


def test_no_rows_at_all() -> None:
    nothing = (torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0).long())
    conformal = Conformal(["y"]).fit(*nothing, 3)
    assert conformal.sets(torch.tensor([[0.3]]), torch.tensor([5])).all()
    assert Conformal.from_state(json.loads(json.dumps(conformal.to_state()))).to_state() == conformal.to_state()
    assert [row.samples for row in fitted(0).coverage(*nothing, NAMES)] == [0, 0]


def test_wrong_input_is_named() -> None:
    p, y, labelled, pattern = drawn(0, 50)
    with pytest.raises(ValueError, match="alpha"):
        Conformal(["y"], 1.0)
    with pytest.raises(ValueError, match="distinct"):
        Conformal(["y", "y"])
    with pytest.raises(ValueError, match=r"probabilities must be \[50, 2\]"):
        Conformal(["y", "z"]).fit(p, y, labelled, pattern, 3)
    with pytest.raises(ValueError, match="50 labelled probabilities outside"):
        Conformal(["y"]).fit(p + 1, y, labelled, pattern, 3)
    with pytest.raises(ValueError, match="labelled targets other than 0 and 1"):
        Conformal(["y"]).fit(p, y + 0.5, labelled, pattern, 3)
    with pytest.raises(ValueError, match="pattern ids outside"):
        Conformal(["y"]).fit(p, y, labelled, pattern, 2)
