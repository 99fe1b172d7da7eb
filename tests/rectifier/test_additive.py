"""Shifts on the probability scale against a dense reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from mmnar_lightning.rectifier import Rectifier
from mmnar_lightning.rectifier.additive import fit_additive, shifted
from mmnar_lightning.rectifier.intercepts import Intercepts
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, keep, present_patterns

Array = NDArray[Any]


def simulated(seed: int, sd: float, prevalence: float = 0.3) -> tuple[Array, Array, Array]:
    """Probabilities, targets and patterns; pattern p's risks are Δ_p above the probabilities."""
    g = np.random.default_rng(seed)
    sizes = np.exp(g.uniform(np.log(20), np.log(400), 14)).astype(int)
    pattern = np.repeat(np.sort(g.choice(64, 14, replace=False)), sizes)
    p = g.beta(8 * prevalence, 8 * (1 - prevalence), len(pattern)).clip(0.001, 0.999)
    risk = np.clip(p + np.repeat(sd * g.standard_normal(14), sizes), 0, 1)
    return p, (g.random(len(p)) < risk).astype(float), pattern


def fitted(p: Array, y: Array, pattern: Array) -> Intercepts:
    ids = torch.as_tensor(pattern)
    tree = PatternTree.of(present_patterns(ids, 6))
    offset = torch.logit(torch.as_tensor(p))[:, None]
    ones = torch.ones_like(offset)
    rows = Rows(offset, torch.as_tensor(y)[:, None], ones, torch.searchsorted(tree.pattern, ids), keep)
    return fit_additive(rows, offset, tree)


def summaries(p: Array, y: Array, pattern: Array) -> tuple[Array, Array, Array]:
    """Mean residual and its model-based variance by pattern, and which patterns share a count."""
    ids, index, n = np.unique(pattern, return_inverse=True, return_counts=True)
    counts = np.array([int(i).bit_count() for i in ids])
    return (
        np.bincount(index, y - p) / n,
        np.bincount(index, p * (1 - p)) / n**2,
        (counts[:, None] == counts).astype(float),
    )


@pytest.mark.parametrize("seed", range(3))
def test_shrinkage_and_variances_equal_dense_restricted_likelihood(seed: int) -> None:
    p, y, pattern = simulated(seed, 0.12)
    found = fitted(p, y, pattern)
    D, v, same = summaries(p, y, pattern)
    ones, unit = np.ones(len(D)), np.mean(p * (1 - p))

    def criterion(tau: Array) -> float:
        sigma = tau[0] ** 2 * same + tau[1] ** 2 * np.eye(len(D)) + np.diag(v)
        inverse = np.linalg.inv(sigma)
        centre = ones @ inverse @ D / (ones @ inverse @ ones)
        value = np.linalg.slogdet(sigma)[1] + np.log(ones @ inverse @ ones) + (D - centre) @ inverse @ (D - centre)
        return float(-value / 2 - np.sum((tau / unit) ** 2) / (2 * 0.5**2))

    tau = np.array([float(found.tau_count[0]), float(found.tau_pattern[0])])
    best = minimize(lambda t: -criterion(np.abs(t)), [0.05, 0.1], method="Nelder-Mead", options={"xatol": 1e-6})
    assert criterion(tau) > -best.fun - 0.02
    sigma = tau[0] ** 2 * same + tau[1] ** 2 * np.eye(len(D))
    inverse = np.linalg.inv(sigma + np.diag(v))
    centre = ones @ inverse @ D / (ones @ inverse @ ones)
    np.testing.assert_allclose(found.shift[:, 0], centre + sigma @ inverse @ (D - centre), atol=1e-9)
    assert float(found.centre[0]) == pytest.approx(centre, abs=1e-9)


def test_no_events_by_chance_are_no_evidence_of_an_effect() -> None:
    largest = []
    for seed in range(30):
        found = fitted(*simulated(seed, 0.0, 0.06))
        largest.append(float((found.shift - found.centre).abs().max()))
    assert np.median(largest) < 0.006


def test_corrected_probabilities_are_shifted_and_clipped() -> None:
    g = torch.Generator().manual_seed(0)
    pattern = torch.arange(4000) % 4
    delta = torch.tensor([0.2, -0.2, 0.15, -0.15], dtype=torch.float64)
    p = 0.25 + 0.5 * torch.rand(4000, 1, generator=g, dtype=torch.float64)
    y = torch.bernoulli(p + delta[pattern, None], generator=g)
    known = torch.ones_like(y, dtype=torch.bool)
    rectifier = Rectifier(["y"], scale="probability").fit(torch.logit(p), y, known, pattern, 2)
    base = rectifier.recalibrate(torch.logit(p)).sigmoid()
    moved = rectifier.probabilities(torch.logit(p), pattern) - base
    for k in range(4):
        assert float(moved[pattern == k].std()) < 1e-12
        assert float(moved[pattern == k].mean() - moved.mean()) == pytest.approx(float(delta[k]), abs=0.05)
    extreme = torch.tensor([[-12.0], [-3.0], [3.0], [12.0]])
    for k in range(5):  # one that was not seen
        out = rectifier.probabilities(extreme, torch.full((4,), k))
        assert ((out > 0) & (out < 1)).all()
        assert (out.diff(dim=0) >= 0).all()
    risk = torch.tensor([0.02, 0.3, 0.98], dtype=torch.float64)
    for delta_p, expected in ((-0.1, [0.002, 0.2, 0.88]), (0.1, [0.12, 0.4, 0.998])):
        out = shifted(torch.logit(risk), torch.full((3,), delta_p, dtype=torch.float64)).sigmoid()
        np.testing.assert_allclose(out, expected)  # at most nine tenths of a risk, or of its complement, are taken
    again = Rectifier.from_state(rectifier.to_state())
    assert again.scale == "probability"
    assert torch.equal(again.apply(extreme, pattern[:4]), rectifier.apply(extreme, pattern[:4]))


def test_a_shift_of_nothing_changes_nothing() -> None:
    logits = torch.tensor([[-90.0, 1.0], [0.3, -2.0]])
    assert torch.equal(shifted(logits, torch.zeros(2, 2)), logits)
