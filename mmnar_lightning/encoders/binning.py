"""Events of a series, put into the steps of a time grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Binned:
    """C values in S steps of R rows, sorted by row, then time (the oldest first), then variable.

    Args:
        place: int64 [C], row of each value.
        step: int64 [C], step of each value; a step has one value a variable at most.
        variable: int64 [C].
        value: float32 [C], mean of the events that fall together.
        hours: float32 [C], hours from the latest of those events to the prediction time.
        step_place: int64 [S], row of each step.
        step_hours: float32 [S], the least `hours` of its values.
        rows: R; a row may have no step.
    """

    place: Tensor
    step: Tensor
    variable: Tensor
    value: Tensor
    hours: Tensor
    step_place: Tensor
    step_hours: Tensor
    rows: int


def bin_events(
    place: Tensor,
    hours: Tensor,
    variable: Tensor,
    value: Tensor,
    *,
    rows: int,
    variables: int,
    resolution: float | None,
    limit: int | None,
) -> Binned:
    """Put events into the bins [k·ρ, (k + 1)·ρ) of hours before the prediction time; empty bins are no steps.

    Args:
        place: int64 [E], row of each event.
        hours: float32 [E], hours before the prediction time, ≥ 0.
        variable: int64 [E].
        value: float32 [E].
        rows: R.
        variables: Number of variables, ≥ 1.
        resolution: ρ in hours; None makes a step of each distinct time.
        limit: Binned values kept a row, the latest; None keeps all.
    """
    if resolution is None:
        when = torch.unique(hours, return_inverse=True)[1]
    else:
        when = torch.div(hours, resolution, rounding_mode="floor").long()
    span = int(when.max()) + 1 if len(when) else 1
    moment = place * span + (span - 1 - when)
    key, cell = torch.unique(moment * variables + variable, return_inverse=True)
    count = value.new_zeros(len(key)).index_add(0, cell, torch.ones_like(value))
    mean = value.new_zeros(len(key)).index_add(0, cell, value) / count
    latest = hours.new_full((len(key),), torch.inf).scatter_reduce(0, cell, hours, "amin")
    if limit is not None:
        row = key // (variables * span)
        stop = torch.searchsorted(row, torch.arange(rows, device=row.device), right=True)
        kept = stop[row] - torch.arange(len(row), device=row.device) <= limit
        key, mean, latest = key[kept], mean[kept], latest[kept]
    moments, step = torch.unique_consecutive(key // variables, return_inverse=True)
    step_hours = latest.new_full((len(moments),), torch.inf).scatter_reduce(0, step, latest, "amin")
    step_place = moments // span
    return Binned(step_place[step], step, key % variables, mean, latest, step_place, step_hours, rows)


def spans(place: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """First position and number of each row in an ascending int64 [N]: int64 [R] each."""
    row = torch.arange(rows, device=place.device)
    start = torch.searchsorted(place, row)
    return start, torch.searchsorted(place, row, right=True) - start
