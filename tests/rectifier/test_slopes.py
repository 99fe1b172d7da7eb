"""Shrunk intercepts and slopes against a dense reference, and against what was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from mmnar_lightning.rectifier import Rectifier
from mmnar_lightning.rectifier.intercepts import fit_intercepts
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, keep, present_patterns
from mmnar_lightning.rectifier.slopes import CENTRE_SLOPE_SD, TAU_SLOPE_SD, Slopes, fit_slopes

Array = NDArray[Any]
M = 6


def simulated(
    seed: int, patterns: int, low: int, high: int, sd: tuple[float, float] = (0.0, 0.0)
) -> tuple[Array, Array, Array, Array]:
    """Logits [n], targets [n], pattern [n] and true (a, b) [P, 2] around logit −1, by ascending pattern id."""
    g = np.random.default_rng(seed)
    ids = np.sort(g.choice(2**M, patterns, replace=False))
    sizes = np.exp(g.uniform(np.log(low), np.log(high), patterns)).astype(int)
    effect = g.standard_normal((patterns, 2)) * sd
    effect[:, 1] = np.maximum(effect[:, 1], -0.9)
    pattern = np.repeat(ids, sizes)
    x = 1.5 * g.standard_normal(len(pattern))
    a, b = np.repeat(effect, sizes, 0).T
    targets = (g.random(len(pattern)) < 1 / (1 + np.exp(1 - x - a - b * x))).astype(float)
    return x - 1, targets, pattern, effect


def fitted(logits: Array, targets: Array, pattern: Array, weights: Array | None = None) -> tuple[Slopes, PatternTree]:
    ids = torch.as_tensor(pattern)
    tree = PatternTree.of(present_patterns(ids, M))
    weight = np.ones(len(logits)) if weights is None else weights
    x, y, w = (torch.as_tensor(values, dtype=torch.float64)[:, None] for values in (logits, targets, weight))
    rows = Rows(x, y, w, torch.searchsorted(tree.pattern, ids), keep)
    return fit_slopes(rows, x, tree, fit_intercepts(rows, x, tree), torch.tensor([True])), tree


def dense(logits: Array, targets: Array, pattern: Array, centre: float, tau: Array) -> tuple[Array, Array, float]:
    """Mode and posterior sd of effects [P, 2], and the restricted Laplace criterion, with plain dense matrices.

    Args:
        logits: [n].
        targets: [n].
        pattern: [n].
        centre: c.
        tau: [2, 2], (count, pattern) × (a, b).
    """
    ids, index = np.unique(pattern, return_inverse=True)
    counts = np.array([int(i).bit_count() for i in ids])
    P, x = len(ids), np.clip(logits - centre, -10, 10)
    # effects are stacked (a_1 … a_P, b_1 … b_P); the shared centre of b has a prior, that of a is integrated out flat
    same = (counts[:, None] == counts).astype(float)
    blocks = [tau[0, j] ** 2 * same + (tau[1, j] ** 2 + 1e-10) * np.eye(P) for j in (0, 1)]
    blocks[1] = blocks[1] + CENTRE_SLOPE_SD**2
    prior = [np.linalg.inv(block) for block in blocks]
    ones = np.ones(P)
    projected = prior[0] - np.outer(prior[0] @ ones, ones @ prior[0]) / (ones @ prior[0] @ ones)
    precision = np.block([[projected, np.zeros((P, P))], [np.zeros((P, P)), prior[1]]])
    design = np.zeros((len(x), 2 * P))
    design[np.arange(len(x)), index], design[np.arange(len(x)), P + index] = 1, x

    def objective(v: Array) -> tuple[float, Array]:
        eta = logits + design @ v
        residual = targets - 1 / (1 + np.exp(-eta))
        value = np.sum(np.logaddexp(0, eta) - targets * eta) + v @ precision @ v / 2
        return float(value), precision @ v - design.T @ residual

    found = minimize(objective, np.zeros(2 * P), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    f = 1 / (1 + np.exp(-logits - design @ found.x))
    joint = precision + design.T @ (design * (f * (1 - f))[:, None])
    volume = np.linalg.slogdet(joint)[1] + sum(np.linalg.slogdet(block)[1] for block in blocks)
    volume += np.log(ones @ prior[0] @ ones)
    half_normal = np.sum(tau**2 / (2 * np.array([0.5, TAU_SLOPE_SD]) ** 2))
    sd = np.sqrt(np.diag(np.linalg.inv(joint))).reshape(2, P).T
    return found.x.reshape(2, P).T, sd, float(-found.fun - volume / 2 - half_normal)


def taus(found: Slopes) -> Array:
    return torch.stack([found.tau_count[:, 0], found.tau_pattern[:, 0]]).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_mode_and_sd_equal_a_dense_optimiser_at_the_same_variances(seed: int) -> None:
    logits, targets, pattern, _ = simulated(seed, 12, 40, 250, (0.6, 0.5))
    found, tree = fitted(logits, targets, pattern)
    tau = taus(found)
    assert (tau[1] > 0.1).all()
    effect, sd, _ = dense(logits, targets, pattern, float(found.centre[0]), tau)
    np.testing.assert_allclose(found.effect[: len(tree.pattern), :, 0], effect, atol=2e-4)
    np.testing.assert_allclose(found.sd[:, :, 0], sd, atol=2e-4)


def test_variances_maximise_the_dense_restricted_likelihood() -> None:
    logits, targets, pattern, _ = simulated(11, 12, 40, 250, (0.6, 0.5))
    found, _ = fitted(logits, targets, pattern)
    chosen, centre = taus(found), float(found.centre[0])
    best = dense(logits, targets, pattern, centre, chosen)[2]
    for cell in np.ndindex(2, 2):
        for value in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
            tried = chosen.copy()
            tried[cell] = value
            # the search ends on a grid of ratio 2^0.06, in bins of logits
            assert dense(logits, targets, pattern, centre, tried)[2] <= best + 0.05


def test_planted_slopes_are_recovered_and_intervals_cover_on_average() -> None:
    covered, regression = [], []
    for seed in range(16):
        logits, targets, pattern, truth = simulated(100 + seed, 24, 80, 600, (0.5, 0.4))
        found, _ = fitted(logits, targets, pattern)
        centre = float(found.centre[0])
        # a is the shift at the fitted centre
        truth = np.stack([truth[:, 0] + truth[:, 1] * (centre + 1), truth[:, 1]], 1)
        effect, sd = found.effect[:24, :, 0].numpy(), found.sd[:, :, 0].numpy()
        covered.append((np.abs(effect - truth) < 1.96 * sd).mean(0))
        regression.append([np.polyfit(effect[:, j], truth[:, j], 1)[0] for j in (0, 1)])
    # 384 each: SE ≈ 0.015 with the dependence inside a draw; shrunk predictors have slope 1 on the truth
    assert (np.abs(np.mean(covered, 0) - 0.95) < 0.04).all()
    assert (np.abs(np.mean(regression, 0) - 1) < 0.12).all()


def test_no_slopes_planted_gives_slopes_near_zero() -> None:
    largest = []
    for seed in range(12):
        logits, targets, pattern, _ = simulated(200 + seed, 24, 12, 600)
        found, _ = fitted(logits, targets, pattern)
        largest.append(float((found.effect[:24, 1, 0] - found.effect[-1, 1, 0]).abs().max()))
    assert np.median(largest) < 0.08


def test_weights_count_rows_twice() -> None:
    logits, targets, pattern, _ = simulated(8, 10, 40, 120, (0.6, 0.5))
    weights = np.random.default_rng(0).integers(0, 3, len(logits))
    index = np.repeat(np.arange(len(logits)), weights)
    weighted, _ = fitted(logits, targets, pattern, weights)
    repeated, _ = fitted(logits[index], targets[index], pattern[index])
    torch.testing.assert_close(weighted.effect, repeated.effect, atol=1e-7, rtol=0)
    torch.testing.assert_close(weighted.sd, repeated.sd, atol=1e-7, rtol=0)


def test_order_of_rows_changes_nothing() -> None:
    logits, targets, pattern, _ = simulated(9, 10, 40, 120, (0.6, 0.5))
    order = np.random.default_rng(0).permutation(len(logits))
    first, second = fitted(logits, targets, pattern)[0], fitted(logits[order], targets[order], pattern[order])[0]
    torch.testing.assert_close(first.effect, second.effect, atol=1e-8, rtol=0)


def test_a_ranking_inside_a_pattern_is_never_turned_round() -> None:
    g = torch.Generator().manual_seed(0)
    pattern = torch.arange(4000) % 8
    x = 2 * torch.randn(4000, 1, generator=g, dtype=torch.float64)
    # one pattern's scores are upside down
    sign = torch.where(pattern == 5, -1.0, 1.0)[:, None]
    y = torch.bernoulli((sign * x).sigmoid(), generator=g)
    known = torch.ones_like(y, dtype=torch.bool)
    rectifier = Rectifier(["y"], "slopes").fit(x, y, known, pattern, 3)
    assert rectifier.shifts()["y/slope/5"] < -1
    ends = rectifier.apply(torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([4, 4]))
    assert float(ends[1] - ends[0]) == pytest.approx(1, abs=0.15)
    grid = torch.linspace(-60, 60, 500, dtype=torch.float64)[:, None]
    for p in range(9):  # 8 was not seen
        assert (rectifier.apply(grid, torch.full((500,), p)).diff(dim=0) >= 0).all()


def test_separable_labels_stay_finite() -> None:
    x = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
    known, pattern = torch.ones_like(x, dtype=torch.bool), torch.arange(200) % 8
    rectifier = Rectifier(["y"], "slopes").fit(x, (x > 0).double(), known, pattern, 3)
    state = rectifier.to_state()
    assert np.isfinite([v for name in ("shift", "slope", "sd", "slope_sd") for row in state[name] for v in row]).all()
    again = Rectifier.from_state(state)
    assert torch.equal(again.apply(x, pattern), rectifier.apply(x, pattern))
