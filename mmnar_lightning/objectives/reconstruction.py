"""How far a reconstructed vector is from the true one."""

from __future__ import annotations

from torch import Tensor


def reconstruction_error(predicted: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error a row over what is known: ‖ê − e‖² / F, F the number of known entries.

    Args:
        predicted: float [R, F].
        target: float [R, F]; detach it to stop its gradient.
        known: bool [R, F], True where the target was measured; None = everywhere.

    Returns:
        float32 [R], unreduced; 0 where nothing is known.
    """
    squared = (predicted.float() - target.float()).square()
    if known is None:
        return squared.sum(1) / max(squared.shape[1], 1)
    return (squared * known).sum(1) / known.sum(1).clamp(min=1)
