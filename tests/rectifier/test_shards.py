"""Any number of devices fits what one would fit on all rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mmnar_lightning.rectifier import Rectifier, Reduce, Scale, patient_keys

M = 6
Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Fit = Callable[[Rectifier, Rows, Reduce | None], object]


class Devices:
    """A summing all-reduce between threads, which checks that every one of them calls it the same number of times."""

    def __init__(self, world: int) -> None:
        self.barrier, self.world = threading.Barrier(world, timeout=60), world
        self.slots: dict[int, Tensor] = {}

    def reduce(self, rank: int, values: Tensor) -> Tensor:
        self.slots[rank] = values
        self.barrier.wait()
        total = torch.stack([self.slots[r] for r in range(self.world)]).sum(0)
        self.barrier.wait()
        return total


def sharded(parts: list[Rows], scale: Scale, fit: Fit) -> list[Rectifier]:
    devices, found = Devices(len(parts)), [Rectifier(["a", "b"], scale=scale) for _ in parts]

    def work(rank: int) -> None:
        try:
            fit(found[rank], parts[rank], lambda values: devices.reduce(rank, values))
        except Exception:
            devices.barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def plain(rectifier: Rectifier, rows: Rows, reduce: Reduce | None) -> object:
    logits, targets, labelled, pattern, _ = rows
    return rectifier.fit(logits, targets, labelled, pattern, M, reduce=reduce)


def ladder(rectifier: Rectifier, rows: Rows, reduce: Reduce | None) -> object:
    logits, targets, labelled, pattern, patient = rows
    return rectifier.fit_ladder(logits, targets, labelled, pattern, patient, M, reduce=reduce, folds=3)


def assert_close(found: object, expected: object, where: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, where)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, atol=1e-8, err_msg=where)  # type: ignore[call-overload]
    else:
        assert found == expected, where


def drawn(n: int) -> Rows:
    """Two tasks: shifts by pattern, and slopes by pattern. Rows are in the order of patterns, patients are not."""
    g = torch.Generator().manual_seed(2)
    pattern = torch.sort(torch.randint(2**M, (n,), generator=g) & 0b10101)[0]
    logits = 1.5 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    shift = 0.8 * torch.randn(2**M, generator=g, dtype=torch.float64)[pattern]
    truth = torch.stack([logits[:, 0] + shift, logits[:, 1] * (0.2 + 1.6 * (pattern % 2))], 1)
    targets = torch.bernoulli(truth.sigmoid(), generator=g)
    labelled = torch.rand(n, 2, generator=g) < 0.9
    return logits, targets, labelled, pattern, patient_keys((torch.arange(n) % (n // 3)).tolist())


@pytest.mark.parametrize(
    ("scale", "fit", "cuts"),
    [
        ("logit", plain, [0, 700, 1500]),
        ("logit", plain, [0, 0, 1500]),
        ("probability", plain, [0, 0, 1, 900, 1500]),
        ("logit", ladder, [0, 0, 900, 1500]),
    ],
)
def test_shards_give_the_fit_on_the_whole(cuts: list[int], scale: Scale, fit: Fit) -> None:
    whole = drawn(1500)
    a, b, c, d, e = whole
    parts = [(a[i:j], b[i:j], c[i:j], d[i:j], e[i:j]) for i, j in pairwise(cuts)]
    alone = Rectifier(["a", "b"], scale=scale)
    fit(alone, whole, None)
    if fit is ladder:
        assert alone.rungs == ("intercepts", "slopes")
    states = [rectifier.to_state() for rectifier in sharded(parts, scale, fit)]
    for state in states:
        # devices agree to the bit, and with one device but for the order of sums
        assert state == states[0]
        assert_close(state, alone.to_state(), "state")


def test_one_device_alone_does_not_fit_that() -> None:
    a, b, c, d, _ = drawn(1500)
    whole, part = (
        Rectifier(["a", "b"]).fit(a, b, c, d, M),
        Rectifier(["a", "b"]).fit(a[:900], b[:900], c[:900], d[:900], M),
    )
    with pytest.raises(AssertionError):
        assert_close(part.to_state(), whole.to_state(), "state")
