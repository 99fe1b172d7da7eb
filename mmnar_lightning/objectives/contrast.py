"""Contrast between two views of the same thing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmnar_lightning.objectives.gathering import gather_rows


def _negative_log_share(scores: Tensor, allowed: Tensor, positive: Tensor) -> Tensor:
    scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.logsumexp(1) - scores.gather(1, positive[:, None]).squeeze(1)


def info_nce(
    a: Tensor,
    b: Tensor,
    group: Tensor,
    valid: Tensor | None = None,
    temperature: float = 0.1,
    gather: bool = True,
) -> Tensor:
    """Symmetric InfoNCE inside groups: row i of `a` belongs with row i of `b`, not with another row of its group.

    With unit vectors, s_ij = a_i·b_j / τ and G(i) the valid rows of i's group, on all devices:
    ℓ_i = ½ [ log Σ_{j∈G(i)} exp s_ij − s_ii  +  log Σ_{j∈G(i)} exp s_ji − s_ii ].
    A row alone in its group has no negatives and a loss of 0. Computed in float32 whatever the autocast.

    Args:
        a: float [R, P], projections of the predicted tokens; made unit vectors here.
        b: float [R, P], projections of the true ones.
        group: int64 [R], the group inside which rows are compared (the modality).
        valid: bool [R]; rows that are False are no one's negatives, and their own loss has no meaning. None = all.
        temperature: τ > 0.
        gather: Take negatives from all devices, with gradients; else from this one only.

    Returns:
        float32 [R], unreduced; reduce with `masked_mean(…, valid)`.

    Raises:
        ValueError: If the temperature is not positive.

    Source: van den Oord, Li, Vinyals, *Representation Learning with Contrastive Predictive Coding*, 2018, eq. 4;
    symmetric as in Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, 2021.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, is {temperature}")
    with torch.autocast(a.device.type, enabled=False):
        a, b = functional.normalize(a.float(), dim=1), functional.normalize(b.float(), dim=1)
        key_group = group if valid is None else torch.where(valid, group, -1)
        every, start = (
            gather_rows(torch.cat([a, b], 1), key_group) if gather else ((torch.cat([a, b], 1), key_group), 0)
        )
        all_a, all_b = every[0].chunk(2, 1)
        own = start + torch.arange(a.shape[0], device=a.device)
        # a row always sees its own partner, so that no row is without a key (NaN), not even an invalid one
        allowed = (group[:, None] == every[1][None, :]).scatter(1, own[:, None], True)
        forth = _negative_log_share(a @ all_b.T / temperature, allowed, own)
        back = _negative_log_share(b @ all_a.T / temperature, allowed, own)
        return (forth + back) / 2
