"""From unreduced losses to one number that is the same on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, distributed

Counts = Callable[[Tensor], Tensor]
"""Turns a local count (or sum of weights), of any shape, into the denominator of a mean over all devices."""


def world_size() -> int:
    """Return the number of processes that train together (1 where torch.distributed is not in use)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def global_count(local: Tensor) -> Tensor:
    """Turn a local count into the denominator that makes a sum into a mean over all devices.

    With W devices, DDP averages gradients: (1/W) Σ_r ∇(s_r / d) with d = (Σ_r n_r) / W is Σ_r ∇s_r / Σ_r n_r, the
    gradient of the mean over everything. A mean of per-device means is not, where devices hold different counts.

    Args:
        local: Number of terms here, or the sum of their weights, of any shape; not differentiated.

    Returns:
        float, shape of `local`: all-reduced count / W; never 0 (no term anywhere: 1 / W, so that the sum 0 stays 0).
    """
    total = local.detach().to(torch.float32).clone()
    devices = world_size()
    if devices > 1:
        distributed.all_reduce(total)
    return torch.where(total > 0, total, torch.ones_like(total)) / devices


def masked_mean(
    values: Tensor,
    mask: Tensor,
    counts: Counts = global_count,
    weight: Tensor | None = None,
    dim: int | None = None,
) -> Tensor:
    """Mean of the values that count: Σ w v / counts(Σ w) over `mask`, and 0, with its graph, where none does.

    Args:
        values: float, any shape; entries outside `mask` may be anything, but their gradient must be finite.
        mask: bool, shape of `values`.
        counts: Turns the local denominator into the global one (`global_count`).
        weight: float ≥ 0, shape of `values`; None weighs all alike.
        dim: Reduce this dimension only (one mean a task: values [B, K], dim 0); None reduces all.

    Returns:
        float, a scalar or `values` without `dim`. On each of several devices the local share of the mean, times W.
    """
    share = mask.to(values.dtype) if weight is None else torch.where(mask, weight.to(values.dtype), 0.0)
    kept = torch.where(mask, values, 0.0) * share
    if dim is None:
        return kept.sum() / counts(share.float().sum())
    return kept.sum(dim) / counts(share.float().sum(dim))


def join_unused(value: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """Join tensors to a result with the factor 0, so that each gets a gradient (of zeros) on every device.

    DDP waits for the gradient of every parameter on every device: one that is left out on some hangs the others.

    Args:
        value: float, any shape.
        unused: Parameters, or activations of modules, that the result does not depend on in this phase.

    Returns:
        `value`, unchanged.
    """
    for tensor in unused:
        if tensor.requires_grad:
            value = value + (tensor * 0.0).sum().to(value.dtype)
    return value
