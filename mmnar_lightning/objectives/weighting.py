"""Weights against selection, and what they cost."""

from __future__ import annotations

from torch import Tensor


def inverse_probability_weights(probability: Tensor, rate: Tensor, clip: float) -> Tensor:
    """Stabilised and clipped inverse probability weights, w = min(r / π, c).

    Weighted by r / π, those who were selected stand for everyone, if selection is ignorable given what π was computed
    from and π is right. The clip bounds the variance and brings a bias toward the unweighted mean back.

    Args:
        probability: float, any shape: π in (0, 1], probability of having been selected.
        rate: float, broadcastable: r, the share selected, so that weights are 1 where π tells nothing.
        clip: c ≥ 1.

    Returns:
        float, shape of `probability`; no gradient flows through it.

    Raises:
        ValueError: If the clip is less than 1.

    Source: Robins, Hernán, Brumback, *Marginal Structural Models and Causal Inference in Epidemiology*, 2000
    (stabilised weights); Cole, Hernán, *Constructing Inverse Probability Weights for Marginal Structural Models*, 2008
    (truncation).
    """
    if not clip >= 1:
        raise ValueError(f"ipw_clip must be at least 1, is {clip}")
    return (rate / probability).detach().clamp(max=clip)


def effective_share(weight: Tensor, mask: Tensor) -> Tensor:
    """Kish's effective sample size as a share of the sample: (Σ w)² / (n Σ w²), over the first dimension.

    Args:
        weight: float [B, …].
        mask: bool, shape of `weight`; n entries count.

    Returns:
        float, `weight` without its first dimension: 1 where all weights are alike, NaN where nothing counts.

    Source: Kish, *Survey Sampling*, 1965.
    """
    kept = weight * mask
    return kept.sum(0).square() / (mask.sum(0) * kept.square().sum(0))
