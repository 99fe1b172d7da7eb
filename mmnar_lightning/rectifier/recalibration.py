"""Global bias and temperature of each task: the correction that every method gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmnar_lightning.rectifier.likelihood import Rows

SLOPE_FLOOR = 0.01
"""Smallest 1/T: an inverted ranking is flattened, never turned round."""
BIAS_SD, SLOPE_SD = 10.0, 2.0
"""Prior sd of b (mean 0) and of 1/T (mean 1): wide, but ten events alone can neither erase a model nor triple it."""


@dataclass(frozen=True)
class Recalibration:
    """logit' = logit / T + b.

    Args:
        bias: b [K].
        slope: 1/T [K], ≥ 0.01.
    """

    bias: Tensor
    slope: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Recalibrate logits [n, K]."""
        return logits * self.slope + self.bias


def fit_recalibration(rows: Rows, steps: int = 50) -> Recalibration:
    """Fit σ(s·logit + b) by penalised maximum likelihood (Platt scaling), all tasks at once.

    Maximises Σ w log Bernoulli(y; σ(s·x + b)) − b²/2·10² − (s − 1)²/2·2². Newton steps, each cut to the best of
    a few lengths, so that no step lowers the objective. Where s would fall under 0.01 it is held there.

    Args:
        rows: Calibration rows of this device; every fitted task has both classes.
        steps: Most Newton steps.

    Returns:
        b and s, [K] each; 0 and 1 where a task has no weight.
    """
    K = rows.logits.shape[1]
    free = torch.ones(K, dtype=torch.bool, device=rows.logits.device)
    start = torch.stack([rows.logits.new_zeros(K), rows.logits.new_ones(K)])
    theta = _newton(rows, start, free, steps)
    low = theta[1] < SLOPE_FLOOR
    if bool(low.any()):
        held = torch.stack([theta[0], theta[1].clamp(min=SLOPE_FLOOR)])
        theta = _newton(rows, held, ~low, steps)
    return Recalibration(theta[0], theta[1].clamp(min=SLOPE_FLOOR))


def _penalty(theta: Tensor) -> Tensor:
    return (theta[0] / BIAS_SD) ** 2 / 2 + ((theta[1] - 1) / SLOPE_SD) ** 2 / 2


def _newton(rows: Rows, theta: Tensor, slope_free: Tensor, steps: int) -> Tensor:
    lengths = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.1, 0.02, 0.004], dtype=theta.dtype, device=theta.device)
    for _ in range(steps):
        s0, s1, h00, h01, h11 = _derivatives(rows, theta)
        g0 = s0 - theta[0] / BIAS_SD**2
        g1 = torch.where(slope_free, s1 - (theta[1] - 1) / SLOPE_SD**2, 0.0)
        h00, h11 = h00 + BIAS_SD**-2, h11 + SLOPE_SD**-2
        h01 = torch.where(slope_free, h01, 0.0)
        determinant = h00 * h11 - h01**2
        step = torch.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
        tried = theta[:, None] + lengths[:, None] * step[:, None]
        value = _likelihood(rows, tried) - _penalty(tried)
        # gains of the last steps drown in the rounding of the likelihood: there the full Newton step is taken
        chosen = torch.where(g0 * step[0] + g1 * step[1] < 1e-4, 1, value.argmax(0))
        theta = tried.gather(1, chosen[None, None].expand(2, 1, -1))[:, 0]
        # every device must take the same number of steps, or the next reduce would wait for ever
        if not bool(rows.reduce((step.abs().max() > 1e-9).double()) > 0):
            break
    return theta


def _derivatives(rows: Rows, theta: Tensor) -> Tensor:
    total = theta.new_zeros(5, theta.shape[1])
    for part in rows.chunks(1):
        x, w = rows.logits[part], rows.weights[part]
        eta = x * theta[1] + theta[0]
        residual = w * (rows.targets[part] - torch.sigmoid(eta))
        information = w * torch.sigmoid(eta) * torch.sigmoid(-eta)
        total += torch.stack(
            [t.sum(0) for t in (residual, residual * x, information, information * x, information * x**2)]
        )
    return rows.reduce(total)


def _likelihood(rows: Rows, theta: Tensor) -> Tensor:
    """Log likelihood [G, K] of candidates [2, G, K]."""
    total = theta.new_zeros(theta.shape[1:])
    for part in rows.chunks(theta.shape[1]):
        eta = rows.logits[part] * theta[1][:, None] + theta[0][:, None]
        total += (rows.weights[part] * (rows.targets[part] * eta - softplus(eta))).sum(1)
    return rows.reduce(total)
