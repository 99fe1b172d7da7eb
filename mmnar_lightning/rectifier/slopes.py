"""Shrunk pattern intercepts and slopes: nested random effects (a, b) of a logistic model, by Laplace's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmnar_lightning.rectifier.intercepts import COARSE, REFINE, TAU_SD, Intercepts, divided, identified
from mmnar_lightning.rectifier.likelihood import CHUNK, Rows
from mmnar_lightning.rectifier.patterns import PatternTree, Reduce, keep

REACH = 10.0
"""A slope acts on logits this far from the centre; beyond, its effect stays what it is there."""
WIDTH = 0.2
"""Width of the logit bins in which variances are searched: an error of at most 5e-4 (1 + b)² a row."""
COARSE_SLOPE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
TAU_SLOPE_SD = 0.3
"""Scale of the half-normal prior of τ of the slopes, which are relative to the global one: 0.3 is 30 % steeper."""
CENTRE_SLOPE_SD = 2.0
"""Prior sd of the slope that all patterns share, around the global one: else separable labels know no end."""
STEPS = 60
ROUGH, FINE = 1e-4, 1e-9
"""Where Newton steps end, in logits: the criterion is flat at its mode, so that its error is the square."""


@dataclass(frozen=True)
class Slopes:
    """Shifts and relative slopes: logit' = logit + a + b·clip(logit − c, ±10).

    Args:
        effect: (a, b) [P + C + 1, 2, K] of the patterns, the modality counts and globally.
        centre: c [K], the mean of the recalibrated logits, where a is the shift.
        sd: [P, 2, K], posterior standard deviations given the variances.
        tau_count: [2, K], sd of the effects of counts around the global ones.
        tau_pattern: [2, K], sd of the effects of patterns around their count's.
    """

    effect: Tensor
    centre: Tensor
    sd: Tensor
    tau_count: Tensor
    tau_pattern: Tensor


@dataclass(frozen=True)
class _Points:
    """Weighted logits of one task: rows, or the bins that stand for them.

    Args:
        node: int64 [n], pattern of each.
        offset: [n], recalibrated logits.
        x: [n], clip(offset − c, ±10).
        weight: [n].
        events: [P, 2], Σ w y and Σ w y x of all rows on all devices: exact, and linear in (a, b).
    """

    node: Tensor
    offset: Tensor
    x: Tensor
    weight: Tensor
    events: Tensor


class _Sums(NamedTuple):
    """Log likelihood [G, P], score [G, P, 2] and information [G, P, 2, 2]."""

    likelihood: Tensor
    score: Tensor
    information: Tensor


class _Solved(NamedTuple):
    """Of a Newton system: effects [G, P, 2], of counts [G, C, 2], of all [G, 2]; informations of counts and of all."""

    effect: Tensor
    of_count: Tensor
    centre: Tensor
    group: Tensor
    total: Tensor


class _Mode(NamedTuple):
    solved: _Solved
    effect: Tensor
    sums: _Sums


def centred(rows: Rows, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return x = clip(offset − c, ±10) [n, K] and c [K], the mean offset of the labelled rows of all devices."""
    total = rows.reduce(torch.stack([rows.weights.sum(0), (rows.weights * offset).sum(0)]))
    centre = divided(total[1], total[0])
    return (offset - centre).clamp(-REACH, REACH), centre


def shared_slope(rows: Rows, offset: Tensor, x: Tensor) -> Tensor:
    """Fit y ~ Bernoulli(σ(offset + m + ν·x)) with ν ~ N(0, 2²), m flat, and return ν [K].

    Shifts that differ between patterns make the slope that is fitted without them too flat: what holds inside a
    pattern is steeper than what holds over all of them (Neuhaus, Jewell, *A geometric approach to assess bias due to
    omitted covariates in generalized linear models*, Biometrika 1993). So it is fitted again once they are known.

    Args:
        rows: Calibration rows of this device.
        offset: [n, K], logits with their pattern's shift.
        x: [n, K], as `centred` returns them.
    """
    K = offset.shape[1]
    theta = offset.new_zeros(2, K)
    for _ in range(STEPS):
        total = offset.new_zeros(5, K)
        for part in rows.chunks(1):
            near, eta = x[part], offset[part] + theta[0] + theta[1] * x[part]
            residual = rows.weights[part] * (rows.targets[part] - torch.sigmoid(eta))
            h = rows.weights[part] * torch.sigmoid(eta) * torch.sigmoid(-eta)
            total += torch.stack([t.sum(0) for t in (residual, residual * near, h, h * near, h * near**2)])
        s0, s1, h00, h01, h11 = rows.reduce(total)
        s1, h11 = s1 - theta[1] / CENTRE_SLOPE_SD**2, h11 + CENTRE_SLOPE_SD**-2
        move = divided(torch.stack([h11 * s0 - h01 * s1, h00 * s1 - h01 * s0]), (h00 * h11 - h01**2).expand(2, K))
        longest = move[0].abs() + REACH * move[1].abs()
        theta = theta + move / longest.clamp(min=1.0)
        # every device must take the same number of steps, or the next reduce would wait for ever
        if not bool(rows.reduce((longest.max() > FINE).double()) > 0):
            break
    return theta[1]


def fit_slopes(rows: Rows, offset: Tensor, tree: PatternTree, start: Intercepts, wanted: Tensor) -> Slopes:
    """Fit y ~ Bernoulli(σ(offset + a_p + b_p·x)), x = clip(offset − c, ±10), with nested priors on both.

    a_p ~ N(a_c, τ₂²), a_c ~ N(μ, τ₁²), μ flat, and the same for b with its own two variances and ν ~ N(0, 2²). The
    four variances maximise the restricted Laplace likelihood as in `fit_intercepts`, with half-normal priors (scale
    0.5 of the shifts, 0.3 of the slopes). The search reads the logits from bins of width 0.2; the effects, given the
    variances, are the joint mode over the rows themselves.

    Args:
        rows: Calibration rows of this device.
        offset: [n, K], recalibrated logits.
        tree: Patterns over all devices.
        start: The intercepts alone, where the search begins.
        wanted: bool [K], equal on every device; effects of the other tasks are 0.

    Returns:
        Effects, equal on every device.
    """
    P, C, K = len(tree.pattern), len(tree.count), offset.shape[1]
    found = Slopes(
        offset.new_zeros(P + C + 1, 2, K),
        offset.new_zeros(K),
        offset.new_zeros(P, 2, K),
        offset.new_zeros(2, K),
        offset.new_zeros(2, K),
    )
    x, found_centre = centred(rows, offset)
    for k in torch.nonzero(wanted).flatten().tolist():
        points = _points(rows, offset, x, k, P)
        bins = _binned(points, P, rows.reduce)
        reach = bins.x.abs().max()
        tau = _variances(bins, tree, torch.stack([start.tau_count[k], start.tau_pattern[k]]), reach)
        near = _mode(bins, tree, tau, offset.new_zeros(1, P, 2), reach, ROUGH, keep)
        mode = _mode(points, tree, tau, near.effect, reach, FINE, rows.reduce)
        found.effect[:, :, k] = torch.cat([mode.effect[0], mode.solved.of_count[0], mode.solved.centre])
        found.centre[k], found.sd[:, :, k] = found_centre[k], _sd(mode, tree, tau)[0]
        found.tau_count[:, k], found.tau_pattern[:, k] = tau[0, 0], tau[0, 1]
    return found


def _points(rows: Rows, offset: Tensor, x: Tensor, k: int, patterns: int) -> _Points:
    weight, target, own = rows.weights[:, k], rows.targets[:, k], x[:, k]
    events = offset.new_zeros(patterns, 2)
    events.index_add_(0, rows.node, (weight * target)[:, None] * torch.stack([torch.ones_like(own), own], 1))
    return _Points(rows.node, offset[:, k], own, weight, rows.reduce(events))


def _binned(points: _Points, patterns: int, reduce: Reduce) -> _Points:
    """Sum the rows of all devices by pattern and bin of x; a bin stands at the mean of its rows."""
    bins = int(2 * REACH / WIDTH) + 1
    place = points.node * bins + ((points.x + REACH) / WIDTH).long()
    sums = points.x.new_zeros(patterns * bins, 3)
    sums.index_add_(
        0, place, points.weight[:, None] * torch.stack([torch.ones_like(points.x), points.x, points.offset], 1)
    )
    sums = reduce(sums)
    full = torch.nonzero(sums[:, 0] > 0).flatten()
    weight = sums[full, 0]
    return _Points(full // bins, sums[full, 2] / weight, sums[full, 1] / weight, weight, points.events)


def _sums(points: _Points, effect: Tensor, reduce: Reduce) -> _Sums:
    """Likelihood, score and information at effects [G, P, 2], over all devices."""
    G, P, _ = effect.shape
    total = effect.new_zeros(G, P, 6)
    size = max(1, CHUNK // (8 * G))
    for first in range(0, len(points.node), size):
        part = slice(first, first + size)
        node, x, w = points.node[part], points.x[part], points.weight[part]
        eta = points.offset[part] + effect[:, node, 0] + effect[:, node, 1] * x
        f = torch.sigmoid(eta)
        mean, h = w * f, w * f * torch.sigmoid(-eta)
        values = (-w * softplus(eta), -mean, -mean * x, h, h * x, h * x**2)
        total.index_add_(1, node, torch.stack(values, 2))
    total = reduce(total)
    value = total[..., 0] + (points.events * effect).sum(2)
    return _Sums(value, total[..., 1:3] + points.events, total[..., [3, 4, 4, 5]].reshape(G, P, 2, 2))


def _by_group(tree: PatternTree, values: Tensor) -> Tensor:
    """Sum values [G, P, …] over the patterns of each group."""
    summed = tree.by_group(values.flatten(2))
    return summed.reshape(*summed.shape[:2], *values.shape[2:])


def _weight(information: Tensor, tau: Tensor) -> Tensor:
    """I + H diag(τ²): information [G, Q, 2, 2] and τ [G, 2] give [G, Q, 2, 2]. Its determinant is ≥ 1."""
    return torch.eye(2, dtype=tau.dtype, device=tau.device) + information * (tau**2)[:, None, None, :]


def _solved(matrix: Tensor, vector: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve(matrix, vector[..., None])
    return found[..., 0]


def _solve(effect: Tensor, sums: _Sums, tree: PatternTree, tau: Tensor) -> _Solved:
    """Solve the Newton system exactly for the quadratic model of the likelihood at `effect`: O(P), safe at τ = 0."""
    h = sums.information
    r = (h @ effect[..., None])[..., 0] + sums.score
    prior = torch.diag(effect.new_tensor([0.0, CENTRE_SLOPE_SD**-2]))
    pattern_weight = _weight(h, tau[:, 1])
    R = _by_group(tree, _solved(pattern_weight, r))
    S = _by_group(tree, torch.linalg.solve(pattern_weight, h))
    group_weight = _weight(S, tau[:, 0])
    total = torch.linalg.solve(group_weight, S).sum(1) + prior
    centre = _solved(total, _solved(group_weight, R).sum(1))
    away = _solved(group_weight, R - (S @ centre[:, None, :, None])[..., 0])
    count = centre[:, None] + tau[:, :1] ** 2 * away
    parent = count[:, tree.group]
    away = _solved(pattern_weight, r - (h @ parent[..., None])[..., 0])
    return _Solved(parent + tau[:, 1:] ** 2 * away, count, centre, S, total)


def _mode(
    points: _Points, tree: PatternTree, tau: Tensor, effect: Tensor, reach: Tensor, end: float, reduce: Reduce
) -> _Mode:
    """Find the joint mode by Newton steps that move no logit by more than 1 (see `intercepts`): no line search.

    Args:
        points: Rows or bins.
        tree: Patterns.
        tau: [G, 2, 2], sd of (count, pattern) × (a, b).
        effect: [G, P, 2], where to start.
        reach: Largest |x|.
        end: Largest step that is small enough to stop.
        reduce: Sum over devices.
    """
    sums = _sums(points, effect, reduce)
    for _ in range(STEPS):
        move = _solve(effect, sums, tree, tau).effect - effect
        longest = (move[..., 0].abs() + reach * move[..., 1].abs()).amax(1)
        effect = effect + move / longest.clamp(min=1.0)[:, None, None]
        sums = _sums(points, effect, reduce)
        # every device must take the same number of steps, or the next reduce would wait for ever
        if not bool(reduce((longest.max() > end).double()) > 0):
            break
    return _Mode(_solve(effect, sums, tree, tau), effect, sums)


def _variances(points: _Points, tree: PatternTree, tau_shift: Tensor, reach: Tensor) -> Tensor:
    """Search the four τ, a pair at a time: [1, 2, 2]. As in `intercepts`, a grid can't part devices and finds 0."""
    P = len(tree.pattern)
    like = points.x
    start = like.new_zeros(1, P, 2)
    information = _sums(points, start, keep).information[..., 0, 0]
    allowed = torch.stack(identified(information[..., None], tree))[:, 0]
    tau = like.new_zeros(1, 2, 2)
    tau[0, :, 0] = tau_shift
    stages: list[tuple[int, tuple[float, ...], bool]] = [(1, COARSE_SLOPE, True), (0, COARSE, True)]
    stages += [(column, factors, False) for factors in REFINE for column in (1, 0)]
    for column, values, absolute in stages:
        grid = torch.tensor(values, dtype=like.dtype, device=like.device)
        grid = grid if absolute else 2.0**grid
        pairs = torch.cartesian_prod(grid, grid)
        tried = tau.repeat(len(pairs), 1, 1)
        tried[:, :, column] = pairs if absolute else pairs * tau[:, :, column]
        tried = torch.unique(torch.where(allowed[:, None], tried, 0.0), dim=0)
        mode = _mode(points, tree, tried, start.expand(len(tried), -1, -1), reach, ROUGH, keep)
        best = int(_criterion(mode, tree, tried).argmax())
        tau, start = tried[best : best + 1], mode.effect[best : best + 1]
    return tau


def _criterion(mode: _Mode, tree: PatternTree, tau: Tensor) -> Tensor:
    """Restricted Laplace log likelihood of the variances with their priors, up to a constant: [G]."""
    solved, width = mode.solved, tau**2
    within = divided((mode.effect - solved.of_count[:, tree.group]) ** 2, width[:, 1:].expand_as(mode.effect))
    between = divided((solved.of_count - solved.centre[:, None]) ** 2, width[:, :1].expand_as(solved.of_count))
    shared = (solved.centre[:, 1] / CENTRE_SLOPE_SD) ** 2
    fit = mode.sums.likelihood.sum(1) - within.sum((1, 2)) / 2 - between.sum((1, 2)) / 2 - shared / 2
    volume = _log_determinant(_weight(mode.sums.information, tau[:, 1])).sum(1)
    volume = volume + _log_determinant(_weight(solved.group, tau[:, 0])).sum(1) + _log_determinant(solved.total)
    prior = (width.sum(1) / tau.new_tensor([2 * TAU_SD**2, 2 * TAU_SLOPE_SD**2])).sum(1)
    return fit - volume / 2 - prior


def _log_determinant(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.slogdet(matrix)[1]
    return found


def _sd(mode: _Mode, tree: PatternTree, tau: Tensor) -> Tensor:
    """Posterior sd of (a_p, b_p) [G, P, 2], from the levels downward: E Var(· | parent) + Var E(· | parent)."""

    def below(above: Tensor, information: Tensor, width: Tensor) -> Tensor:
        shrink: Tensor = torch.linalg.inv(_weight(information, width))
        own = torch.diag_embed(width**2)[:, None] @ shrink
        return shrink.mT @ above @ shrink + own

    count = below(torch.linalg.inv(mode.solved.total)[:, None], mode.solved.group, tau[:, 0])
    pattern = below(count[:, tree.group], mode.sums.information, tau[:, 1])
    return pattern.diagonal(dim1=-2, dim2=-1).sqrt()
