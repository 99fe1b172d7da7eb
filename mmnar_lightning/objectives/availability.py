"""How well availability itself is predicted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmnar_lightning.records import pattern_id


def pattern_cross_entropy(logits: Tensor, observed: Tensor) -> Tensor:
    """Cross-entropy of the availability pattern, all 2^M of them as classes (the paper's L_mis, for small M).

    Args:
        logits: float [B, 2^M], class p is the pattern with id p.
        observed: bool [B, M].

    Returns:
        float32 [B], unreduced.

    Raises:
        ValueError: If there are not 2^M logits.
    """
    classes = 2 ** observed.shape[1]
    if logits.shape[1] != classes:
        raise ValueError(f"{logits.shape[1]} logits for {classes} patterns of {observed.shape[1]} modalities")
    return functional.cross_entropy(logits.float(), pattern_id(observed), reduction="none")


def availability_cross_entropy(logits: Tensor, observed: Tensor) -> Tensor:
    """Binary cross-entropy of each modality's availability δ_m.

    Args:
        logits: float, any shape: log-odds that the modality is observed.
        observed: bool, same shape.

    Returns:
        float32, same shape, unreduced. Its sum over m is the pattern's cross-entropy if the δ_m are independent given
        what the logits were computed from.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), observed.to(torch.float32), reduction="none")
