from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import log_loss
from torch import Tensor

from mmnar_lightning.objectives import binary_cross_entropy, focal, hierarchical

FINITE = st.floats(-12, 12, width=32)


def _draw(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator) * 2
    return logits, (torch.rand(*shape, generator=generator) < 0.4).float()


def test_bce_agrees_with_sklearn() -> None:
    logits, targets = _draw(0, 200, 1)
    ours = binary_cross_entropy(logits, targets).mean().item()
    assert ours == pytest.approx(log_loss(targets.numpy().ravel(), expit(logits.double().numpy().ravel())), rel=1e-5)


def test_label_smoothing_moves_the_target_toward_a_half() -> None:
    logits, targets = _draw(1, 50, 2)
    expected = binary_cross_entropy(logits, targets * 0.8 + 0.1)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, smoothing=0.2), expected)
    with pytest.raises(ValueError, match="smoothing"):
        binary_cross_entropy(logits, targets, smoothing=1.0)


@given(x=FINITE, y=st.booleans(), gamma=st.floats(0, 5), alpha=st.floats(0.05, 0.95))
def test_focal_is_its_formula(x: float, y: bool, gamma: float, alpha: float) -> None:
    p = expit(np.float64(x)) if y else expit(-np.float64(x))
    weight = alpha if y else 1 - alpha
    expected = -weight * (1 - p) ** gamma * math.log(p)
    ours = focal(torch.tensor([[x]]), torch.tensor([[float(y)]]), gamma=gamma, alpha=alpha)
    assert ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_focal_without_focus_is_bce_and_alpha_goes_by_task() -> None:
    logits, targets = _draw(2, 64, 3)
    torch.testing.assert_close(focal(logits, targets, gamma=0), binary_cross_entropy(logits, targets))
    alpha = torch.tensor([0.2, 0.5, 0.9])
    single = torch.stack([focal(logits[:, k], targets[:, k], alpha=alpha[k].item()) for k in range(3)], 1)
    torch.testing.assert_close(focal(logits, targets, alpha=alpha), single)
    with pytest.raises(ValueError, match="gamma"):
        focal(logits, targets, gamma=-1)


def test_focal_is_finite_for_huge_logits() -> None:
    logits = torch.tensor([[-200.0], [200.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([[1.0], [1.0]]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(st.lists(FINITE, min_size=8, max_size=8))
def test_hierarchical_is_its_formula(x: list[float]) -> None:
    direct, conditional = np.array(x[:3], np.float64), np.array([0, *x[3:5]], np.float64)
    mix = np.array(x[5:], np.float64)
    p = expit(direct)
    w = expit(mix)
    p[1] = w[1] * p[1] + (1 - w[1]) * p[0] * expit(conditional[1])
    p[2] = w[2] * p[2] + (1 - w[2]) * p[1] * expit(conditional[2])
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (direct, conditional, mix)]
    ours = hierarchical(tensors[0][None], tensors[1][None], tensors[2], (None, 0, 1)).numpy()[0]
    np.testing.assert_allclose(ours, logit(p), rtol=1e-4, atol=1e-4)


def test_hierarchical_is_stable_and_differentiable_at_any_size() -> None:
    direct = torch.tensor([[-300.0, 80.0], [300.0, -80.0], [90.0, 90.0]], requires_grad=True)
    conditional = torch.tensor([[0.0, 300.0], [0.0, -300.0], [0.0, 95.0]], requires_grad=True)
    mix = torch.tensor([0.0, -40.0], requires_grad=True)
    logits = hierarchical(direct, conditional, mix, (None, 0))
    logits.sum().backward()  # type: ignore[no-untyped-call]
    # a sure parent and a sure child: 1 − P = σ(−90) + σ(−95), far below what 1 − P can say in floats
    assert logits[2, 1].item() == pytest.approx(90 - math.log1p(math.exp(-5)), abs=1e-3)
    for tensor in (logits, direct.grad, conditional.grad, mix.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


def test_hierarchical_needs_parents_first() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="before"):
        hierarchical(x, x, x[0], (1, None))
    with pytest.raises(ValueError, match="3 parents"):
        hierarchical(x, x, x[0], (None, 0, 0))
    torch.testing.assert_close(hierarchical(x + 1, x, x[0], (None, None)), x + 1)
