"""Shrunk pattern shifts on the probability scale: the paper's form, with variances that rare outcomes can't fool."""

from __future__ import annotations

import torch
from torch import Tensor

from mmnar_lightning.rectifier.intercepts import Intercepts, divided, fit_shifts
from mmnar_lightning.rectifier.likelihood import Rows, Sums
from mmnar_lightning.rectifier.patterns import PatternTree

KEPT = 0.1
"""A shift takes away at most nine tenths of the risk of an event, or of a non-event."""


def fit_additive(rows: Rows, offset: Tensor, tree: PatternTree) -> Intercepts:
    """Fit D_p ~ N(Δ_p, v_p), Δ_p ~ N(Δ_c, τ₂²), Δ_c ~ N(μ, τ₁²): shrunk mean residuals of the patterns.

    D_p = Σ w (y − f) / Σ w with f = σ(offset), and v_p = Σ w f(1 − f) / (Σ w)² from the model: the empirical variance
    of a pattern without events is near 0, which would leave it unshrunk. A weight counts a row that many times.
    Variances, parents and the grid are those of `fit_shifts`, in units of the task's mean f(1 − f), by which a small
    shift of the logit moves a probability. Everything is Gaussian here, so Laplace's method is exact.

    Args:
        rows: Calibration rows of this device.
        offset: [n, K], recalibrated logits.
        tree: Patterns over all devices.

    Returns:
        Shifts, deviations and τ in units of probability, equal on every device.
    """
    P, K = len(tree.pattern), offset.shape[1]
    sums = offset.new_zeros(3, P, K)
    for part in rows.chunks(1):
        f = torch.sigmoid(offset[part])
        w = rows.weights[part]
        values = (w, w * (rows.targets[part] - f), w * f * torch.sigmoid(-offset[part]))
        for total, value in zip(sums, values, strict=True):
            total.index_add_(0, rows.node[part], value)
    count, residual, spread = rows.reduce(sums).unbind(0)
    unit = divided(spread.sum(0), count.sum(0))
    unit = torch.where(unit > 0, unit, 1.0)
    mean = divided(residual, count) / unit
    information = divided((count * unit) ** 2, spread)

    def gaussian(shift: Tensor) -> Sums:
        away = mean - shift
        return Sums(-information * away**2 / 2, information * away, information.expand_as(shift))

    found = fit_shifts(gaussian, gaussian, tree, offset[:0])
    return Intercepts(
        found.shift * unit,
        found.count * unit,
        found.centre * unit,
        found.sd * unit,
        found.tau_count * unit,
        found.tau_pattern * unit,
    )


def shifted(logits: Tensor, shift: Tensor) -> Tensor:
    """Add a shift to the probabilities of logits [n, K], clip them, and return logits.

    p + Δ is kept in [p/10, 1 − (1 − p)/10]. Clipped to 0 and 1 alone, risks below −Δ would all become 0: they would
    tie, and one event among them would cost more log loss than all shifts gain.
    """
    p, q = torch.sigmoid(logits.double()), torch.sigmoid(-logits.double())
    moved = torch.minimum(torch.maximum(p + shift, KEPT * p), 1 - KEPT * q)
    left = torch.minimum(torch.maximum(q - shift, KEPT * q), 1 - KEPT * p)
    return torch.where(shift == 0, logits, (moved.log() - left.log()).to(logits))
