from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.objectives import global_count, join_unused, masked_mean


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans(), st.floats(0, 4, width=32)), max_size=30))
def test_masked_mean_is_the_plain_mean(rows: list[tuple[float, bool, float]]) -> None:
    values = torch.tensor([v for v, _, _ in rows])
    mask = torch.tensor([m for _, m, _ in rows], dtype=torch.bool)
    kept = [v for v, m, _ in rows if m]
    expected = sum(kept) / len(kept) if kept else 0.0
    assert abs(masked_mean(values, mask).item() - expected) <= 1e-3 + 1e-5 * abs(expected)

    weight = torch.tensor([w for _, _, w in rows])
    total = sum(w for _, m, w in rows if m)
    if total > 1e-3:
        expected = sum(v * w for v, m, w in rows if m) / total
        assert abs(masked_mean(values, mask, weight=weight).item() - expected) <= 1e-2 + 1e-5 * abs(expected)


def test_masked_mean_per_task() -> None:
    values = torch.tensor([[1.0, 5.0, 9.0], [3.0, 7.0, 9.0]])
    mask = torch.tensor([[True, False, False], [True, True, False]])
    torch.testing.assert_close(masked_mean(values, mask, dim=0), torch.tensor([2.0, 7.0, 0.0]))


def test_masked_mean_of_nothing_is_zero_and_keeps_its_graph() -> None:
    values = torch.randn(4, requires_grad=True)
    loss = masked_mean(values * 2, torch.zeros(4, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    torch.testing.assert_close(values.grad, torch.zeros(4))


def test_what_is_masked_may_be_nan() -> None:
    values = torch.tensor([1.0, torch.nan, torch.inf])
    mask = torch.tensor([True, False, False])
    assert masked_mean(values, mask, weight=torch.tensor([2.0, torch.nan, 1.0])).item() == 1


def test_counts_are_used() -> None:
    loss = masked_mean(torch.ones(4), torch.ones(4, dtype=torch.bool), counts=lambda local: local * 10)
    assert abs(loss.item() - 0.1) < 1e-7


def test_global_count_of_one_process() -> None:
    torch.testing.assert_close(global_count(torch.tensor([0, 1, 7])), torch.tensor([1.0, 1.0, 7.0]))
    assert global_count(torch.tensor(0.25)).item() == 0.25  # a sum of weights may be less than 1


def test_join_unused_changes_nothing_and_gives_zero_gradients() -> None:
    value, unused, frozen = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True), torch.ones(3)
    joined = join_unused(value * 2, [unused, frozen])
    torch.testing.assert_close(joined, torch.full((2,), 2.0))
    joined.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(unused.grad, torch.zeros(3))
