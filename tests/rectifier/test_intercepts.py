"""The shrunk intercepts against a dense reference, and against the moment estimator they replace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from mmnar_lightning.rectifier.intercepts import Intercepts, _mode, _sd, fit_intercepts
from mmnar_lightning.rectifier.likelihood import LikelihoodTable, Rows, Sums, pattern_sums
from mmnar_lightning.rectifier.patterns import PatternTree, keep, modality_count, present_patterns

Array = NDArray[Any]
M = 6


def simulated(
    seed: int, patterns: int, low: int, high: int, sd: float = 0.0, prevalence: float = 0.2, count_sd: float = 0.0
) -> tuple[Array, Array, Array, Array]:
    """Logits [n], targets [n], pattern [n] and true shifts [P] in the order of ascending pattern ids."""
    g = np.random.default_rng(seed)
    ids = np.sort(g.choice(2**M, patterns, replace=False))
    sizes = np.exp(g.uniform(np.log(low), np.log(high), patterns)).astype(int)
    of_count = count_sd * g.standard_normal(M + 1)
    shift = sd * g.standard_normal(patterns) + of_count[[int(i).bit_count() for i in ids]]
    pattern = np.repeat(ids, sizes)
    logits = np.log(prevalence / (1 - prevalence)) + g.standard_normal(len(pattern))
    targets = (g.random(len(pattern)) < 1 / (1 + np.exp(-logits - np.repeat(shift, sizes)))).astype(float)
    return logits, targets, pattern, shift


def fitted(
    logits: Array, targets: Array, pattern: Array, weights: Array | None = None
) -> tuple[Intercepts, PatternTree]:
    ids = torch.as_tensor(pattern)
    tree = PatternTree.of(present_patterns(ids, M))
    weight = torch.ones(len(ids), 1) if weights is None else torch.as_tensor(weights)[:, None]
    x, y = torch.as_tensor(logits)[:, None], torch.as_tensor(targets)[:, None]
    rows = Rows(x, y, weight.double(), torch.searchsorted(tree.pattern, ids), keep)
    return fit_intercepts(rows, x, tree), tree


def dense_mode(logits: Array, targets: Array, pattern: Array, tau: tuple[float, float]) -> tuple[Array, float]:
    """Joint mode of (μ, a) under a ~ N(μ, Σ), and the restricted Laplace criterion, with plain dense matrices."""
    ids, index = np.unique(pattern, return_inverse=True)
    counts = np.array([int(i).bit_count() for i in ids])
    P = len(ids)
    sigma = tau[0] ** 2 * (counts[:, None] == counts) + tau[1] ** 2 * np.eye(P) + 1e-12 * np.eye(P)
    inverse = np.linalg.inv(sigma)

    def objective(v: Array) -> tuple[float, Array]:
        eta = logits + v[1:][index]
        residual = targets - 1 / (1 + np.exp(-eta))
        d = v[1:] - v[0]
        gradient = inverse @ d - np.bincount(index, residual, P)
        value = np.sum(np.logaddexp(0, eta) - targets * eta) + d @ inverse @ d / 2
        return float(value), np.append(-np.sum(inverse @ d), gradient)

    found = minimize(objective, np.zeros(P + 1), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    f = 1 / (1 + np.exp(-(logits + found.x[1:][index])))
    W = np.diag(np.bincount(index, f * (1 - f), P))
    # information of (μ, a) jointly; its determinant over the prior's is the Laplace volume with μ integrated out
    ones = np.ones(P)
    joint = np.block(
        [[np.array([[ones @ inverse @ ones]]), -(inverse @ ones)[None]], [-(inverse @ ones)[:, None], inverse + W]]
    )
    criterion = -found.fun - (np.linalg.slogdet(joint)[1] + np.linalg.slogdet(sigma)[1]) / 2
    criterion -= (tau[0] ** 2 + tau[1] ** 2) / (2 * 0.5**2)  # the half-normal prior of both
    return found.x, float(criterion)


@pytest.mark.parametrize("seed", range(4))
def test_mode_equals_a_dense_optimiser_at_the_same_variances(seed: int) -> None:
    logits, targets, pattern, _ = simulated(seed, 14, 8, 150, sd=0.6, count_sd=0.5)
    found, _ = fitted(logits, targets, pattern)
    tau = float(found.tau_count[0]), float(found.tau_pattern[0])
    assert tau[1] > 0
    reference, _ = dense_mode(logits, targets, pattern, tau)
    np.testing.assert_allclose(found.shift[:, 0], reference[1:], atol=2e-5)
    np.testing.assert_allclose(found.centre[0], reference[0], atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_variances_maximise_the_dense_restricted_likelihood(seed: int) -> None:
    logits, targets, pattern, _ = simulated(10 + seed, 14, 20, 150, sd=0.6, count_sd=0.6)
    found, _ = fitted(logits, targets, pattern)
    chosen = np.array([float(found.tau_count[0]), float(found.tau_pattern[0])])
    best = dense_mode(logits, targets, pattern, (chosen[0], chosen[1]))[1]
    for one in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2):
        for two in (0.1, 0.2, 0.4, 0.6, 0.8, 1.2):
            # the search ends on a grid of ratio 2^0.06 and an interpolated likelihood: 0.02 of log likelihood at most
            assert dense_mode(logits, targets, pattern, (one, two))[1] <= best + 0.02


def test_interpolated_likelihood_equals_the_sums() -> None:
    logits, targets, pattern, _ = simulated(3, 10, 5, 200)
    ids = torch.as_tensor(pattern)
    tree = PatternTree.of(present_patterns(ids, M))
    x, y = torch.as_tensor(logits)[:, None], torch.as_tensor(targets)[:, None]
    rows = Rows(x, y, torch.ones_like(x), torch.searchsorted(tree.pattern, ids), keep)
    shift = torch.empty(50, len(tree.pattern), 1, dtype=torch.float64).uniform_(-7, 7)
    exact, table = pattern_sums(rows, x, shift), LikelihoodTable(rows, x, len(tree.pattern))(shift)
    n = torch.bincount(rows.node)[:, None]
    assert ((exact.likelihood - table.likelihood).abs() / n).max() < 1e-6
    assert ((exact.score - table.score).abs() / n).max() < 1e-4
    assert ((exact.information - table.information).abs() / n).max() < 2e-3


def test_likelihood_beyond_the_table_stays_concave_and_finite() -> None:
    logits, targets, pattern, _ = simulated(3, 4, 5, 50)
    ids = torch.as_tensor(pattern)
    tree = PatternTree.of(present_patterns(ids, M))
    x, y = torch.as_tensor(logits)[:, None], torch.as_tensor(targets)[:, None]
    rows = Rows(x, y, torch.ones_like(x), torch.searchsorted(tree.pattern, ids), keep)
    shift = torch.tensor([-60.0, -7.0, 7.0, 60.0], dtype=torch.float64)[:, None, None].expand(-1, len(tree.pattern), 1)
    sums = LikelihoodTable(rows, x, len(tree.pattern))(shift)
    assert all(torch.isfinite(part).all() for part in sums)
    assert (sums.score[1:] <= sums.score[:-1]).all()


def moment_variance(f: Array, targets: Array, pattern: Array) -> float:
    """DerSimonian and Laird's τ² of per-pattern mean residuals with s² = var/n."""
    ids, index, n = np.unique(pattern, return_inverse=True, return_counts=True)
    d = np.bincount(index, targets - f) / n
    s2 = np.array([np.var((targets - f)[index == p]) / n[p] for p in range(len(ids))])
    w = 1 / np.maximum(s2, 1e-12)
    Q = np.sum(w * (d - np.sum(w * d) / w.sum()) ** 2)
    return float(max(0.0, (Q - len(ids) + 1) / (w.sum() - np.sum(w**2) / w.sum())))


def test_no_effect_and_rare_outcome_give_no_shifts_but_the_moment_estimator_does() -> None:
    ours, largest, moment = [], [], []
    for seed in range(40):
        logits, targets, pattern, _ = simulated(seed, 30, 12, 600, prevalence=0.06)
        found, _ = fitted(logits, targets, pattern)
        ours.append(float(found.tau_pattern[0]) ** 2 + float(found.tau_count[0]) ** 2)
        largest.append(float((found.shift - found.centre).abs().max()))
        f = 1 / (1 + np.exp(-logits))
        moment.append(moment_variance(f, targets, pattern))
    # log odds shifts under 0.1 move a risk of 6 % by under 0.6 points
    assert np.mean(ours) < 0.02
    assert np.median(largest) < 0.1
    # what ours replaces sees an effect in most draws: patterns without events have s² ≈ 0 there
    assert np.mean(np.array(moment) > 0) > 0.7
    assert np.mean(np.array(moment) > 0) > np.mean(np.array(ours) > 1e-6) + 0.1


def test_planted_shifts_are_recovered_and_their_intervals_cover_on_average() -> None:
    covered, slope = [], []
    for seed in range(30):
        logits, targets, pattern, truth = simulated(100 + seed, 25, 30, 500, sd=0.7, prevalence=0.3)
        found, _ = fitted(logits, targets, pattern)
        shift, sd = found.shift[:, 0].numpy(), found.sd[:, 0].numpy()
        covered.append(np.mean(np.abs(shift - truth) < 1.96 * sd))
        slope.append(np.polyfit(shift, truth, 1)[0])
    # 750 shifts: SE of coverage ≈ 0.01 with the dependence inside a draw; shrunk predictors have slope 1 on the truth
    assert 0.92 < np.mean(covered) < 0.98
    assert abs(float(np.mean(slope)) - 1) < 0.08


def test_only_child_passes_through_to_the_global_centre() -> None:
    g = np.random.default_rng(0)
    # counts: 0 (one pattern), 1 (three patterns), 2 (three patterns); the only child is far off the rest
    ids = np.array([0, 1, 2, 4, 3, 5, 6])
    shift = np.array([1.5, -0.6, 0.4, 0.1, -0.2, 0.5, -0.4])
    pattern = np.repeat(ids, 400)
    logits = g.standard_normal(len(pattern))
    targets = (g.random(len(pattern)) < 1 / (1 + np.exp(-logits - np.repeat(shift, 400)))).astype(float)
    found, tree = fitted(logits, targets, pattern)
    reference, _ = dense_mode(logits, targets, pattern, (float(found.tau_count[0]), float(found.tau_pattern[0])))
    np.testing.assert_allclose(found.shift[:, 0], reference[1:], atol=2e-5)
    assert tree.count.tolist() == [0, 1, 2]
    # its prior is N(μ, τ₁² + τ₂²): one shrinkage step, as wide as both levels
    h, g_ = _sums_at(found.shift[0, 0].item(), logits[pattern == 0], targets[pattern == 0])
    width = float(found.tau_count[0] ** 2 + found.tau_pattern[0] ** 2)
    assert float(found.shift[0, 0] - found.centre[0]) == pytest.approx(width * g_, abs=1e-6)
    assert h > 0


def _sums_at(a: float, logits: Array, targets: Array) -> tuple[float, float]:
    f = 1 / (1 + np.exp(-logits - a))
    return float(np.sum(f * (1 - f))), float(np.sum(targets - f))


def test_child_is_left_out_of_its_parents_estimate() -> None:
    """With a quadratic likelihood everything is exact: a child is shrunk to its prediction from all the others."""
    g = np.random.default_rng(0)
    ids = np.array([0, 1, 2, 4, 3, 5, 6])
    tree = PatternTree.of(torch.as_tensor(np.sort(ids)))
    counts = tree.count[tree.group].numpy()
    z, h, tau = g.standard_normal(7), g.uniform(0.5, 20, 7), (0.7, 0.4)

    def quadratic(shift: torch.Tensor) -> Sums:
        information = torch.as_tensor(h)[None, :, None].expand_as(shift)
        away = torch.as_tensor(z)[None, :, None] - shift
        return Sums(-information * away**2 / 2, information * away, information)

    both = tuple(torch.full((1, 1, 1), t, dtype=torch.float64) for t in tau)
    mode = _mode(quadratic, tree, (both[0], both[1]), torch.zeros(1, 7, 1, dtype=torch.float64), 100, keep)
    sd = _sd(mode.sums, tree, (both[0], both[1]))[0, :, 0]
    sigma = tau[0] ** 2 * (counts[:, None] == counts) + tau[1] ** 2 * np.eye(7)
    for child in range(7):
        o = np.delete(np.arange(7), child)
        inverse = np.linalg.inv(sigma[np.ix_(o, o)] + np.diag(1 / h[o]))
        ones = np.ones(6)
        centre = ones @ inverse @ z[o] / (ones @ inverse @ ones)
        k = sigma[child, o] @ inverse
        mean = centre + k @ (z[o] - centre)
        variance = sigma[child, child] - k @ sigma[o, child] + (1 - k @ ones) ** 2 / (ones @ inverse @ ones)
        expected = (h[child] * z[child] + mean / variance) / (h[child] + 1 / variance)
        assert float(mode.shift[0, child, 0]) == pytest.approx(expected, abs=1e-9)
        assert float(sd[child]) == pytest.approx((h[child] + 1 / variance) ** -0.5, abs=1e-9)


@pytest.mark.parametrize("ids", [[3], [1, 2, 4], [0, 1, 3, 7]])
def test_levels_that_cannot_be_told_apart_have_no_variance(ids: list[int]) -> None:
    g = np.random.default_rng(1)
    pattern = np.repeat(ids, 300)
    shift = np.repeat(np.linspace(-1, 1, len(ids)), 300)
    logits = g.standard_normal(len(pattern))
    targets = (g.random(len(pattern)) < 1 / (1 + np.exp(-logits - shift))).astype(float)
    found, _ = fitted(logits, targets, pattern)
    assert float(found.tau_count[0]) == 0
    assert (float(found.tau_pattern[0]) > 0.3) == (len(ids) > 1)
    assert torch.isfinite(found.sd).all()


def test_weights_count_rows_twice() -> None:
    logits, targets, pattern, _ = simulated(8, 12, 20, 80, sd=0.8)
    weights = np.random.default_rng(0).integers(0, 3, len(logits))
    weighted, _ = fitted(logits, targets, pattern, weights)
    index = np.repeat(np.arange(len(logits)), weights)
    repeated, tree = fitted(logits[index], targets[index], pattern[index])
    assert len(tree.pattern) == 12
    torch.testing.assert_close(weighted.shift, repeated.shift, atol=1e-8, rtol=0)


def test_present_patterns_are_the_distinct_ids() -> None:
    g = torch.Generator().manual_seed(0)
    pattern = torch.randint(0, 2**62 - 1, (500,), generator=g)
    assert torch.equal(present_patterns(pattern, 62), torch.unique(pattern))
    assert present_patterns(pattern[:0], 62).tolist() == []
    assert modality_count(torch.tensor([0, 1, 2**61 + 5])).tolist() == [0, 1, 3]
