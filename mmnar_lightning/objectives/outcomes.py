"""Losses of binary outcomes, unreduced: what is unlabelled is masked, and the mean taken, by `masked_mean`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def _smoothed(targets: Tensor, smoothing: float) -> Tensor:
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing must be in [0, 1), is {smoothing}")
    targets = targets.float()
    return targets * (1 - smoothing) + smoothing / 2 if smoothing else targets


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, −y log σ(x) − (1 − y) log(1 − σ(x)).

    Args:
        logits: float [B, K], x.
        targets: float [B, K], y in [0, 1]; finite also where unlabelled.
        smoothing: ε in [0, 1): y becomes y(1 − ε) + ε/2. More than 0 biases probabilities toward ½.

    Returns:
        float32 [B, K], unreduced.

    Raises:
        ValueError: If `smoothing` is out of range.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), _smoothed(targets, smoothing), reduction="none")


def focal(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Focal loss, −α_y (1 − p_y)^γ log p_y with p_1 = σ(x), p_0 = 1 − σ(x).

    It down-weights what is already well predicted, so its minimiser is not the outcome's probability: a model trained
    with it is miscalibrated by construction, and no claim about calibration may rest on it.

    Args:
        logits: float [B, K], x.
        targets: float [B, K], y in [0, 1]; finite also where unlabelled.
        gamma: γ ≥ 0; 0 gives weighted binary cross-entropy.
        alpha: α_1 in (0, 1), and α_0 = 1 − α_1; [K] for one a task (1 − training prevalence balances the classes).
            None weighs both by 1.
        smoothing: As in `binary_cross_entropy`.

    Returns:
        float32 [B, K], unreduced.

    Raises:
        ValueError: If γ is negative or `smoothing` is out of range.

    Source: Lin et al., *Focal Loss for Dense Object Detection*, 2017, eq. 5.
    """
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, is {gamma}")
    logits = logits.float()
    y = _smoothed(targets, smoothing)
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    positive, negative = -y * (gamma * log_q).exp() * log_p, -(1 - y) * (gamma * log_p).exp() * log_q
    if alpha is None:
        return positive + negative
    return alpha * positive + (1 - alpha) * negative


def hierarchical(direct: Tensor, conditional: Tensor, mix: Tensor, parents: Sequence[int | None]) -> Tensor:
    """Logits of tasks that can be positive only where their parent is.

    For a task c with parent p: P_c = w_c σ(direct_c) + (1 − w_c) P_p σ(conditional_c), w_c = σ(mix_c); parents are
    resolved first, so chains work. A task without a parent keeps its direct logit. Computed with log P and log(1 − P),
    never with P itself: exact for logits of any size.

    Args:
        direct: float [B, K], each task's own logit.
        conditional: float [B, K], logit of the task given that its parent is positive; unused without a parent.
        mix: float [K], logit of the weight of the direct head.
        parents: K entries: index of the parent, which stands before its child, or None.

    Returns:
        float32 [B, K], logits of P.

    Raises:
        ValueError: If a parent does not stand before its child, or the number of entries is not K.
    """
    if len(parents) != direct.shape[1]:
        raise ValueError(f"{len(parents)} parents for {direct.shape[1]} tasks")
    direct, conditional, mix = direct.float(), conditional.float(), mix.float()
    log_p: list[Tensor] = []
    log_q: list[Tensor] = []
    logits: list[Tensor] = []
    for k, parent in enumerate(parents):
        x, own = direct[:, k], (functional.logsigmoid(direct[:, k]), functional.logsigmoid(-direct[:, k]))
        if parent is not None:
            if not 0 <= parent < k:
                raise ValueError(f"task {k}: its parent {parent} must stand before it")
            c, w, v = conditional[:, k], functional.logsigmoid(mix[k]), functional.logsigmoid(-mix[k])
            # 1 − P_p σ(c) = σ(−c) + σ(c) (1 − P_p): a sum of positive terms, nothing cancels
            not_child = torch.logaddexp(functional.logsigmoid(-c), functional.logsigmoid(c) + log_q[parent])
            own = (
                torch.logaddexp(w + own[0], v + log_p[parent] + functional.logsigmoid(c)),
                torch.logaddexp(w + own[1], v + not_child),
            )
            x = own[0] - own[1]
        log_p.append(own[0])
        log_q.append(own[1])
        logits.append(x)
    return torch.stack(logits, 1)
