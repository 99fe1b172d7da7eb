"""Rows of all devices on each device, with gradients that find their way home."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from mmnar_lightning.objectives.reduction import world_size


def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    # collectives need one shape everywhere: pad to the longest, cut after
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward sums the gradient over devices and returns each device its own rows' part."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], start: int) -> Tensor:
        ctx.start, ctx.size = start, rows.shape[0]
        return _gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        # every device enters this all-reduce, one without rows too: it stands in the same place of the same graph
        total = grads[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.size], None, None


def gather_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Gather the rows of all devices, which may hold different numbers of them, none included.

    Float tensors keep their gradient: what any device's loss does to a row is summed and returned to the row's owner.
    With one process the tensors come back as they are. All devices must call it with the same number of tensors.

    Args:
        tensors: Each [R, …], the same R on this device.

    Returns:
        The tensors with rows of all devices, in rank order, and where this device's rows start.
    """
    if world_size() == 1:
        return tensors, 0
    rows, rank = tensors[0].shape[0], distributed.get_rank()
    size = torch.tensor([rows], device=tensors[0].device)
    parts = [torch.zeros_like(size) for _ in range(world_size())]
    distributed.all_gather(parts, size)
    sizes = [int(part) for part in parts]
    start = sum(sizes[:rank])
    gathered: list[Tensor] = [
        _GatherRows.apply(t, sizes, start) if t.is_floating_point() else _gather(t, sizes) for t in tensors
    ]
    return tuple(gathered), start
