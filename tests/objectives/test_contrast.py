from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from mmnar_lightning.objectives import info_nce, masked_mean


def _plain(a: np.ndarray, b: np.ndarray, group: list[int], valid: list[bool], temperature: float) -> list[float]:
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    losses = []
    for i in range(len(a)):
        mates = [j for j in range(len(a)) if group[j] == group[i] and valid[j]]
        forth = logsumexp([a[i] @ b[j] / temperature for j in mates]) - a[i] @ b[i] / temperature
        back = logsumexp([b[i] @ a[j] / temperature for j in mates]) - a[i] @ b[i] / temperature
        losses.append((forth + back) / 2)
    return losses


@given(
    members=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.07, 0.1, 1.0]),
)
def test_info_nce_is_its_formula(members: list[tuple[int, bool]], seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, len(members), 5, generator=generator)
    group, valid = [g for g, _ in members], [v for _, v in members]
    ours = info_nce(a, b, torch.tensor(group), torch.tensor(valid), temperature)
    expected = _plain(a.double().numpy(), b.double().numpy(), group, valid, temperature)
    for mine, theirs, counted in zip(ours.tolist(), expected, valid, strict=True):
        assert np.isfinite(mine)
        if counted:
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_invalid_rows_are_no_negatives() -> None:
    a, b = torch.randn(2, 6, 4)
    group, valid = torch.zeros(6, dtype=torch.long), torch.tensor([True] * 4 + [False] * 2)
    alone = info_nce(a[:4], b[:4], group[:4])
    torch.testing.assert_close(info_nce(a, b, group, valid)[:4], alone)


def test_no_rows_at_all_is_a_loss_of_zero_with_a_graph() -> None:
    a = torch.zeros(0, 4, requires_grad=True)
    loss = masked_mean(info_nce(a, a, torch.zeros(0, dtype=torch.long)), torch.zeros(0, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert a.grad is not None


def test_gradient_is_finite_for_zero_and_equal_rows() -> None:
    a = torch.zeros(3, 4, requires_grad=True)
    info_nce(a, a.detach() + 1, torch.tensor([0, 0, 1])).sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature"):
        info_nce(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, dtype=torch.long), temperature=0)
