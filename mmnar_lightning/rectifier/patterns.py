"""Which availability patterns the calibration rows hold, and their parents: pattern → modality count → global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over devices and returns the sum on every one of them (as an all-reduce does)."""


def keep(values: Tensor) -> Tensor:
    """Reduce of a single device: the sum is already whole."""
    return values


def modality_count(pattern: Tensor) -> Tensor:
    """Count the modalities in each pattern id: the set bits of int64 [P], returned as int64 [P]."""
    bits = torch.arange(63, device=pattern.device)
    return (pattern[:, None] >> bits & 1).sum(1)


def present_patterns(pattern: Tensor, n_modalities: int, reduce: Reduce = keep) -> Tensor:
    """Find the distinct pattern ids over all devices, with sums alone.

    The union grows bit by bit from the highest: every prefix that is present somewhere has one counter for each
    continuation, and counters are what a summing reduce can join. So nothing of size 2^M exists, and every device
    gets the same ids in the same order.

    Args:
        pattern: int64 [n] of this device; n may be 0.
        n_modalities: M ≤ 62.
        reduce: Sum over devices.

    Returns:
        int64 [P], ascending.
    """
    local = torch.unique(pattern)
    prefixes = torch.zeros(1, dtype=torch.int64, device=pattern.device)
    for bit in reversed(range(n_modalities)):
        children = torch.stack([2 * prefixes, 2 * prefixes + 1], 1).reshape(-1)
        seen = torch.isin(children, local >> bit)
        prefixes = children[reduce(seen.double()) > 0]
    return prefixes


@dataclass(frozen=True)
class PatternTree:
    """Patterns that are present, and their groups by modality count.

    Args:
        pattern: int64 [P], ascending ids.
        group: int64 [P], index of each pattern's group in `count`.
        count: int64 [C], ascending modality counts.
    """

    pattern: Tensor
    group: Tensor
    count: Tensor

    @classmethod
    def of(cls, pattern: Tensor) -> Self:
        """Build the tree over ascending, distinct pattern ids int64 [P]."""
        count, group = torch.unique(modality_count(pattern), return_inverse=True)
        return cls(pattern, group, count)

    def to(self, device: torch.device | str) -> PatternTree:
        """Return a copy on `device`."""
        return PatternTree(self.pattern.to(device), self.group.to(device), self.count.to(device))

    def node(self, pattern: Tensor) -> Tensor:
        """Find where each row's shift stands in the stacked table [patterns; counts; global].

        Args:
            pattern: int64 [n].

        Returns:
            int64 [n]: p for a known pattern, P + c for an unknown one with a known modality count, else P + C.
        """
        P, C = len(self.pattern), len(self.count)
        node = torch.full_like(pattern, P + C)
        for table, values, first in ((self.count, modality_count(pattern), P), (self.pattern, pattern, 0)):
            if len(table):
                place = torch.searchsorted(table, values.contiguous()).clamp(max=len(table) - 1)
                node = torch.where(table[place] == values, place + first, node)
        return node

    def by_group(self, values: Tensor) -> Tensor:
        """Sum values [G, P, K] over the patterns of each group: [G, C, K]."""
        G, _, K = values.shape
        return values.new_zeros(G, len(self.count), K).index_add_(1, self.group, values)
