from __future__ import annotations

import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from mmnar_lightning.objectives import availability_cross_entropy, pattern_cross_entropy, reconstruction_error


def test_reconstruction_error_is_the_mean_over_what_is_known() -> None:
    predicted, target = torch.randn(2, 20, 6)
    full = reconstruction_error(predicted, target)
    assert full.mean().item() == pytest.approx(mean_squared_error(target.numpy(), predicted.numpy()), rel=1e-5)
    known = torch.rand(20, 6) < 0.5
    known[0] = False
    error = reconstruction_error(predicted, target, known)
    assert error[0] == 0
    for i in range(1, 20):
        if known[i].any():
            expected = mean_squared_error(target[i][known[i]].numpy(), predicted[i][known[i]].numpy())
            assert error[i].item() == pytest.approx(expected, rel=1e-5)


def test_pattern_cross_entropy_reads_bit_m_as_modality_m() -> None:
    observed = torch.tensor([[True, False, False], [False, True, True]])
    logits = torch.full((2, 8), -20.0)
    logits[0, 1] = logits[1, 6] = 20.0
    assert pattern_cross_entropy(logits, observed).max() < 1e-6
    assert pattern_cross_entropy(logits.flip(0), observed).min() > 30
    with pytest.raises(ValueError, match="8 patterns"):
        pattern_cross_entropy(logits[:, :4], observed)


def test_availability_cross_entropy_agrees_with_sklearn_and_with_the_pattern() -> None:
    observed, logits = torch.rand(40, 3) < 0.6, torch.randn(40, 3)
    ours = availability_cross_entropy(logits, observed)
    expected = log_loss(observed.numpy().ravel(), logits.double().sigmoid().numpy().ravel())
    assert ours.mean().item() == pytest.approx(expected, rel=1e-5)
    # bits independent given the logits: a pattern's log-probability is the sum over its bits
    bits = torch.tensor([[bool(p >> m & 1) for m in range(3)] for p in range(8)])
    joint = torch.where(bits, logits[:, None], 0.0).sum(2)
    torch.testing.assert_close(ours.sum(1), pattern_cross_entropy(joint, observed))
