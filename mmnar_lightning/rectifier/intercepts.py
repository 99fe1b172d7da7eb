"""Shrunk pattern intercepts: nested random intercepts of a logistic model with an offset, by Laplace's method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmnar_lightning.rectifier.likelihood import Likelihood, LikelihoodTable, Rows, Sums, pattern_sums
from mmnar_lightning.rectifier.patterns import PatternTree, Reduce, keep

COARSE = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
TAU_SD = 0.5
"""Scale of the half-normal prior of τ, on the logit scale: from a few events the likelihood alone can say anything."""
REFINE = ((-0.5, -0.25, 0.0, 0.25, 0.5), (-0.12, -0.06, 0.0, 0.06, 0.12))


@dataclass(frozen=True)
class Intercepts:
    """Shifts on the logit scale, and how sure they are.

    Args:
        shift: a_p [P, K], pattern shifts.
        count: a_c [C, K], shifts of the modality counts; what an unseen pattern gets.
        centre: μ [K], the global shift; what an unseen count gets.
        sd: [P, K], posterior standard deviation of a_p given the variances.
        tau_count: τ₁ [K], sd of a_c around μ.
        tau_pattern: τ₂ [K], sd of a_p around a_c.
    """

    shift: Tensor
    count: Tensor
    centre: Tensor
    sd: Tensor
    tau_count: Tensor
    tau_pattern: Tensor


@dataclass(frozen=True)
class _Mode:
    shift: Tensor  # [G, P, K]
    count: Tensor  # [G, C, K]
    centre: Tensor  # [G, K]
    sums: Sums


def fit_intercepts(rows: Rows, offset: Tensor, tree: PatternTree) -> Intercepts:
    """Fit y ~ Bernoulli(σ(offset + a_p)), a_p ~ N(a_c, τ₂²), a_c ~ N(μ, τ₁²), μ flat.

    The variances maximise the restricted Laplace likelihood (Breslow and Clayton, *Approximate inference in
    generalized linear mixed models*, JASA 1993): the random effects and μ are integrated out around their joint mode,
    so a pattern without events still counts with its model-based information Σ f(1 − f). A moment estimate would give
    it a variance near 0 and not shrink it. Given the variances the shifts are the joint mode.

    What the levels need follows from the one joint model: a child's prior mean is its parent's estimate from the
    *other* children; a group with one child passes through, so that this child's prior is N(μ, τ₁² + τ₂²). A level
    that the data cannot tell apart has variance 0.

    Args:
        rows: Calibration rows of this device.
        offset: [n, K], recalibrated logits.
        tree: Patterns over all devices.

    Returns:
        Shifts, equal on every device.
    """
    table = LikelihoodTable(rows, offset, len(tree.pattern))
    return fit_shifts(table, lambda shift: pattern_sums(rows, offset, shift), tree, offset[:0], rows.reduce)


def fit_shifts(
    table: Likelihood, exact: Likelihood, tree: PatternTree, like: Tensor, reduce: Reduce = keep
) -> Intercepts:
    """Find variances by `table`, which costs little and is equal on every device, then shifts by `exact`.

    Args:
        table: Likelihood by pattern for the search.
        exact: The likelihood itself, summed over devices.
        tree: Patterns over all devices.
        like: [any, K], a tensor of the type and device to compute in.
        reduce: Sum over devices.
    """
    K = like.shape[1]
    tau = _variances(table, tree, K, like)
    start = _mode(table, tree, tau, tau[0].new_zeros(1, len(tree.pattern), K), 60, keep)
    mode = _mode(exact, tree, tau, start.shift, 60, reduce)
    return Intercepts(
        mode.shift[0], mode.count[0], mode.centre[0], _sd(mode.sums, tree, tau)[0], tau[0][0, 0], tau[1][0, 0]
    )


def identified(information: Tensor, tree: PatternTree) -> tuple[Tensor, Tensor]:
    """Which tasks can tell τ₁ (≥ 2 counts, one with ≥ 2 patterns) and τ₂ (≥ 2 patterns): bool [K] each."""
    children = tree.by_group((information > 0).to(information.dtype))[0]
    two_counts = ((children > 0).sum(0) >= 2) & (children >= 2).any(0)
    return two_counts, children.sum(0) >= 2


def _variances(table: Likelihood, tree: PatternTree, K: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Search (τ₁, τ₂) on a grid of pairs, then on finer ones around the best: two tensors [1, 1, K].

    A grid has no stopping rule that could part devices, and finds τ = 0, where the optimum often is.
    """
    coarse = torch.tensor(COARSE, dtype=like.dtype, device=like.device)
    pairs = torch.cartesian_prod(coarse, coarse)
    first, second = (pairs[:, j, None, None].expand(-1, 1, K) for j in (0, 1))
    start = like.new_zeros(1, len(tree.pattern), K)
    allowed = identified(table(start).information, tree)
    for factors in (None, *REFINE):
        if factors is not None:
            power = 2.0 ** torch.tensor(factors, dtype=like.dtype, device=like.device)
            grown = torch.cartesian_prod(power, power)[:, :, None, None]
            first, second = grown[:, 0] * first, grown[:, 1] * second
        tau = (torch.where(allowed[0], first, 0.0), torch.where(allowed[1], second, 0.0))
        mode = _mode(table, tree, tau, start.expand(first.shape[0], -1, -1), 60, keep)
        best = _criterion(mode, tree, tau).argmax(0)[None, None]
        first, second = (t.gather(0, best) for t in tau)
        start = mode.shift.gather(0, best.expand(1, start.shape[1], K))
    return first, second


def divided(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, 0 where bottom is 0."""
    return torch.where(bottom > 0, top / bottom.clamp(min=torch.finfo(top.dtype).tiny), 0.0)


def _update(shift: Tensor, sums: Sums, tree: PatternTree, tau: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the Newton system: exact for the quadratic model of the likelihood at `shift`, O(P), safe at τ = 0."""
    h = sums.information
    r = h * shift + sums.score
    weight = 1 + tau[1] ** 2 * h
    R, S = tree.by_group(r / weight), tree.by_group(h / weight)
    group_weight = 1 + tau[0] ** 2 * S
    centre = divided((R / group_weight).sum(1), (S / group_weight).sum(1))
    count = (tau[0] ** 2 * R + centre[:, None]) / group_weight
    return (tau[1] ** 2 * r + count[:, tree.group]) / weight, count, centre


def _mode(
    likelihood: Likelihood, tree: PatternTree, tau: tuple[Tensor, Tensor], shift: Tensor, steps: int, reduce: Reduce
) -> _Mode:
    """Find the joint mode by Newton steps of at most 1 on the logit scale.

    Inside a step of length ≤ 1 the information of a Bernoulli grows at most e-fold, so that such a step always
    raises the objective (Bach, *Self-concordant analysis for logistic regression*, 2010): no line search is needed.
    """
    sums = likelihood(shift)
    for _ in range(steps):
        move = _update(shift, sums, tree, tau)[0] - shift
        longest = move.abs().amax(1, keepdim=True)
        shift = shift + move / longest.clamp(min=1.0)
        sums = likelihood(shift)
        # every device must take the same number of steps, or the next reduce would wait for ever
        if not bool(reduce((longest.max() > 1e-10).double()) > 0):
            break
    _, count, centre = _update(shift, sums, tree, tau)
    return _Mode(shift, count, centre, sums)


def _criterion(mode: _Mode, tree: PatternTree, tau: tuple[Tensor, Tensor]) -> Tensor:
    """Restricted Laplace log likelihood of the variances with their prior, up to a constant: [G, K]."""
    h = mode.sums.information
    weight = 1 + tau[1] ** 2 * h
    S = tree.by_group(h / weight)
    group_weight = 1 + tau[0] ** 2 * S
    within = divided((mode.shift - mode.count[:, tree.group]) ** 2, (tau[1] ** 2).expand_as(mode.shift))
    between = divided((mode.count - mode.centre[:, None]) ** 2, (tau[0] ** 2).expand_as(mode.count))
    fit = mode.sums.likelihood.sum(1) - within.sum(1) / 2 - between.sum(1) / 2
    volume = weight.log().sum(1) + group_weight.log().sum(1) + (S / group_weight).sum(1).clamp(min=1e-300).log()
    prior = (tau[0] ** 2 + tau[1] ** 2)[:, 0] / (2 * TAU_SD**2)
    return fit - volume / 2 - prior


def _sd(sums: Sums, tree: PatternTree, tau: tuple[Tensor, Tensor]) -> Tensor:
    """Posterior sd of a_p, from the levels downward: Var(a_p) = E Var(a_p | a_c) + Var E(a_p | a_c)."""
    weight = 1 + tau[1] ** 2 * sums.information
    S = tree.by_group(sums.information / weight)
    group_weight = 1 + tau[0] ** 2 * S
    precision = (S / group_weight).sum(1, keepdim=True)
    centre = divided(torch.ones_like(precision), precision)
    count = tau[0] ** 2 / group_weight + centre / group_weight**2
    return (tau[1] ** 2 / weight + count[:, tree.group] / weight**2).sqrt()
