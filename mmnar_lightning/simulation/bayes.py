"""Bayes-optimal probabilities of a causal model's outcomes, given what was seen of each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2, norm, qmc

from mmnar_lightning.simulation.causal_model import CausalModel, Draw
from mmnar_lightning.simulation.mechanism import Floats
from mmnar_lightning.simulation.posterior import Evidence, LatentPosterior, Modes, Rows, ball, log_volume

_ROWS = 1 << 14  # rows whose modes are held at once
_RADIUS = 5.5  # of the quadrature's nodes, in standard deviations of the Laplace approximation
_STEPS = (0.75, 0.5, 0.35, 0.25, 0.18)  # between nodes
_EDGE = 1e-4  # share of a row's mass in the outermost shell of nodes above which the nodes do not cover it
_SHARED_STEPS = (0.01, 0.06, 0.25)  # between nodes that all rows share, for one, two and three axes
_AGREED = 1e-3  # difference between the two halves of those nodes, in probability and in log mass
_FREEDOM = 5.0  # of the t proposal
_PRIOR_SHARE = 0.1  # of the draws, from the prior: what the modes do not cover shows in their weights
_ROUNDS = 5  # of importance sampling, each with four times the draws of the one before


class BayesError(ValueError):
    """Importance sampling left rows with too few effective draws."""


def bayes_risk(
    model: CausalModel,
    draw: Draw,
    *,
    pattern: bool,
    views: Sequence[str] | None = None,
    evidence: Evidence | None = None,
    method: Literal["auto", "quadrature", "sampling"] = "auto",
    draws: int = 2048,
    effective: float = 500.0,
    noise_seed: int = 0,
) -> Floats:
    """P(y_k = 1 | x_O) or, with the pattern, P(y_k = 1 | x_O, δ) of each patient: the best that any method can do.

    ∫ P(y_k = 1 | u) p(u | x_O, δ) du with p(u | x_O, δ) ∝ N(u; 0, I) Π_{m ∈ O} N(x_m; f_m(u), σ_m²) P(δ | u).

    Without the pattern, availability is taken for ignorable: P(δ | u) is left out. Under ``mcar`` and ``mar`` both
    are the same, since P(δ | x) cancels.

    Up to L = 3 by quadrature. The linear form's posterior is log-concave: a regular grid in the coordinates of its
    Laplace approximation. The non-linear form's is not: a grid that all rows share; where the two halves of that grid
    differ, since the posterior is narrow, grids around each mode, joined by a partition of unity.

    Rows that no grid covers, and all above L = 3, by importance sampling from a mixture of t distributions at the
    modes (and a tenth from the prior), with four times the draws and a component fitted to the draws so far for rows
    whose effective sample size (Σw)²/Σw² is too low.

    Args:
        model: What the patients were drawn from.
        draw: Patients; values of a view are looked at where it is available.
        pattern: Whether to condition on availability δ (of all views) as well.
        views: Names of the views to condition on, or None for all.
        evidence: Further log likelihood of what else was seen, ``evidence(rows [r], u [r, S, L]) -> [r, S]``; rows
            number the draw's patients.
        method: ``quadrature`` (L ≤ 3), ``sampling``, or by L.
        draws: Importance draws a row in the first round.
        effective: Least effective sample size of every row that is sampled.
        noise_seed: Seed of the draws; quadrature has none.

    Returns:
        Probabilities, [n, K].

    Raises:
        BayesError: If rows stay below the effective sample size; counts them.
        ValueError: If a view is unknown or without noise, L > 3 with ``quadrature``, or the pattern is wanted under
            ``mar`` without the view that decides about it.
    """
    if method not in ("auto", "quadrature", "sampling"):
        raise ValueError(f"method {method!r} is not one of auto, quadrature, sampling")
    if method == "quadrature" and model.latent > 3:
        raise ValueError(f"a latent health of {model.latent} axes is too much for quadrature (3 at most)")
    posterior = LatentPosterior(model, draw, _chosen(model, views, pattern), pattern=pattern, evidence=evidence)
    by_nodes = method != "sampling" and model.latent <= 3
    risk, few = _integrate(posterior, by_nodes, _Sampler(posterior, draws, effective, noise_seed))
    if len(few):
        raise BayesError(
            f"{len(few)} of {len(draw)} rows have fewer than {effective:g} effective draws (lowest {few.min():.1f}) "
            f"after {draws * 4 ** (_ROUNDS - 1)} draws; give more draws"
        )
    return risk


def _integrate(posterior: LatentPosterior, by_nodes: bool, sampler: _Sampler) -> tuple[Floats, Floats]:
    """Risk [n, K], and the effective sample sizes that are too low."""
    risk, poor = np.empty((len(posterior.draw), len(posterior.model.outcomes))), [np.zeros(0)]
    for start in range(0, len(posterior.draw), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(posterior.draw)))
        if by_nodes and not posterior.concave:
            risk[rows], agreed = _on_shared_nodes(posterior, rows)
            rows = rows[~agreed]
        if not len(rows):
            continue
        modes = posterior.modes(rows, sampler.seed)
        covered = np.zeros(len(rows), dtype=bool)
        if by_nodes:
            risk[rows], covered = _quadrature(posterior, rows, modes)
        left = np.flatnonzero(~covered)
        if len(left):
            risk[rows[left]], reached = sampler(rows[left], modes.take(left))
            poor.append(reached[reached < sampler.effective])
    return risk, np.concatenate(poor)


def _chosen(model: CausalModel, views: Sequence[str] | None, pattern: bool) -> Sequence[str]:
    chosen = model.names if views is None else tuple(views)
    if strange := sorted(set(chosen) - set(model.names)):
        raise ValueError(f"view {', '.join(strange)} is not one of {', '.join(model.names)}")
    if pattern and model.mechanism.kind == "mar" and model.mechanism.strength > 0.0:
        always = next(view.name for view in model.views if view.rate == 1.0)
        if always not in chosen:
            raise ValueError(f"under mar the pattern can only be conditioned on together with view {always!r}")
    return chosen


def _quadrature(posterior: LatentPosterior, rows: Rows, modes: Modes) -> tuple[Floats, NDArray[np.bool_]]:
    """Risk [r, K] and whether the nodes cover the row [r]."""
    risk, covered = np.full((len(rows), len(posterior.model.outcomes)), np.nan), np.zeros(len(rows), dtype=bool)
    wanted = _wanted_step(posterior, modes)
    for k, step in enumerate(_STEPS):
        finer = wanted < step if k < len(_STEPS) - 1 else np.zeros(len(rows), dtype=bool)
        coarser = wanted >= _STEPS[k - 1] if k else np.zeros(len(rows), dtype=bool)
        chosen = np.flatnonzero(~finer & ~coarser)
        if len(chosen):
            risk[chosen], covered[chosen] = _on_nodes(posterior, rows[chosen], modes.take(chosen), step)
    return risk, covered


def _wanted_step(posterior: LatentPosterior, modes: Modes) -> Floats:
    """Step [r] at which a regular grid is exact to about 1e-8, or 1e-4 where the posterior is not even log-concave.

    σ(β·t) has its nearest pole at a distance d = π/β from the real line, which bounds the error by exp(−2πd / step)
    (Trefethen and Weideman, The Exponentially Convergent Trapezoidal Rule, 2014, section 5).
    """
    model = posterior.model
    steepest = max(outcome.strength for outcome in model.outcomes)
    if posterior.informative:
        steepest = max(steepest, model.mechanism.strength)
    widest = np.where(modes.share > -np.inf, np.linalg.norm(modes.root, ord=2, axis=(-2, -1)), 0.0).max(1)
    distance = np.pi / np.maximum(np.abs(steepest) * widest, 1e-9)
    step: Floats = 2.0 * np.pi * distance / np.log(1e8 if posterior.concave else 1e4)
    return step


def _on_nodes(posterior: LatentPosterior, rows: Rows, modes: Modes, step: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Sum over a grid around each mode, whitened by its Laplace covariance, and joined by a partition of unity."""
    latent = posterior.latent
    nodes = ball(_RADIUS, step, latent)
    outer = np.linalg.norm(nodes, axis=1) > _RADIUS - step
    height = posterior.log_density(rows, modes.top[np.arange(len(rows)), modes.share.argmax(1)][:, None])[:, 0]
    several = (modes.share > -np.inf).sum(1) > 1
    owner, which = np.nonzero(modes.share > -np.inf)
    total, squares, edge = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    risk = np.zeros((len(rows), len(posterior.model.outcomes)))
    for pair in posterior.chunks(np.arange(len(owner)), len(nodes)):
        row, mode = owner[pair], which[pair]
        root = modes.root[row, mode]
        point = modes.top[row, mode][:, None] + nodes @ root.swapaxes(-1, -2)
        weight = posterior.log_density(rows[row], point) - height[row, None]
        weight += log_volume(root)[:, None]
        joint = np.flatnonzero(several[row])
        if len(joint):
            part = _log_parts(point[joint], modes.take(row[joint]), None)
            own = np.take_along_axis(part, mode[joint][:, None, None], axis=2)[..., 0]
            weight[joint] += own - logsumexp(part, axis=2)
        weight = np.exp(np.minimum(weight, 600.0))
        chance = posterior.model.risk(point.reshape(-1, latent)).reshape(*weight.shape, -1)
        np.add.at(risk, row, np.einsum("rs,rsk->rk", weight, chance))
        np.add.at(total, row, weight.sum(1))
        np.add.at(squares, row, np.square(weight).sum(1))
        np.add.at(edge, row, weight[:, outer].sum(1))
    # a Gaussian has (4π)^(L/2) / step^L effective nodes
    resolved = total**2 / squares > 0.2 * (4.0 * np.pi) ** (latent / 2) / step**latent
    return risk / total[:, None], resolved & (edge < _EDGE * total)


def _on_shared_nodes(posterior: LatentPosterior, rows: Rows) -> tuple[Floats, NDArray[np.bool_]]:
    """Sum over one grid for all rows, and whether its two halves (as on a chessboard) agree for the row.

    For posteriors that are wide and of no simple shape. The whole grid is far more exact than either half.
    """
    step = _SHARED_STEPS[posterior.latent - 1]
    nodes = ball(_RADIUS, step, posterior.latent)
    odd = np.rint(nodes / step).astype(np.int64).sum(-1) % 2 == 1
    nodes = np.concatenate([nodes[odd], nodes[~odd]])
    half, chance = int(odd.sum()), posterior.model.risk(nodes)
    log_density = posterior.at(nodes)
    risk, gap = np.empty((len(rows), chance.shape[1])), np.empty(len(rows))
    for part in posterior.shared_chunks(np.arange(len(rows)), len(nodes)):
        weight = log_density(rows[part])
        weight = np.exp(weight - weight.max(1, keepdims=True))
        parts = [(weight[:, cut] @ chance[cut], weight[:, cut].sum(1)) for cut in (slice(half), slice(half, None))]
        (one, one_mass), (other, other_mass) = parts
        risk[part] = (one + other) / (one_mass + other_mass)[:, None]
        mass = np.maximum(np.stack([one_mass, other_mass]), 1e-300)
        gap[part] = np.abs(one / mass[0, :, None] - other / mass[1, :, None]).max(1)
        gap[part] = np.maximum(gap[part], np.abs(np.log(mass[0] / mass[1])))
    return risk, gap < _AGREED


def _log_parts(point: Floats, modes: Modes, freedom: float | None) -> Floats:
    """Log of each mode's share times its density, [r, S, J], at u of [r, S, L]: Gaussian, or t with some freedom."""
    latent = point.shape[-1]
    parts = []
    for j in range(modes.share.shape[1]):
        white = (point - modes.top[:, None, j]) @ np.linalg.inv(modes.root[:, j]).swapaxes(-1, -2)
        square = np.einsum("rsl,rsl->rs", white, white)
        if freedom is None:
            density = -0.5 * square
        else:
            scale = gammaln(0.5 * (freedom + latent)) - gammaln(0.5 * freedom) - 0.5 * latent * np.log(freedom * np.pi)
            density = scale - 0.5 * (freedom + latent) * np.log1p(square / freedom)
        lift = modes.share[:, j] - log_volume(modes.root[:, j])
        parts.append(density + lift[:, None])
    return np.stack(parts, axis=2)


@dataclass(frozen=True)
class _Sampler:
    """Importance sampling from a mixture of t distributions, with quasi-random draws (Sobol, scrambled)."""

    posterior: LatentPosterior
    draws: int
    effective: float
    seed: int

    def __call__(self, rows: Rows, modes: Modes) -> tuple[Floats, Floats]:
        """Risk [r, K] and effective sample size [r]."""
        risk, reached = np.empty((len(rows), len(self.posterior.model.outcomes))), np.zeros(len(rows))
        left, mixture = np.arange(len(rows)), _with_prior(modes)
        for attempt in range(_ROUNDS):
            normal = self._normal(attempt)
            means, roots = np.empty((len(left), self.posterior.latent)), np.empty_like(mixture.root[:, 0])
            for part in self.posterior.chunks(np.arange(len(left)), len(normal[0])):
                chosen = left[part]
                found = self._round(rows[chosen], mixture.take(part), *normal)
                risk[chosen], reached[chosen], means[part], roots[part] = found
            poor = reached[left] < self.effective
            if not poor.any():
                break
            left, mixture = left[poor], mixture.take(poor).with_part(means[poor], roots[poor], 0.4)
        return risk, reached

    def _normal(self, attempt: int) -> tuple[Floats, Floats]:
        """Draws of a t distribution [S, L] and uniform draws that choose the component [S]."""
        latent = self.posterior.latent
        power = int(np.ceil(np.log2(self.draws))) + 2 * attempt
        generator = np.random.default_rng((self.seed, 0, attempt))
        uniform = qmc.Sobol(latent + 2, rng=generator).random_base2(power)
        uniform = np.clip(uniform, 1e-12, 1.0 - 1e-12)
        spread = np.sqrt(_FREEDOM / chi2.ppf(uniform[:, latent], _FREEDOM))
        return norm.ppf(uniform[:, :latent]) * spread[:, None], uniform[:, latent + 1]

    def _round(
        self, rows: Rows, mixture: Modes, normal: Floats, uniform: Floats
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Risk, effective sample size, and mean and root of the covariance of the weighted draws."""
        share = np.exp(mixture.share)
        upper = np.cumsum(share, axis=1) / share.sum(1, keepdims=True)
        choice = np.minimum((uniform > upper[:, :, None]).sum(1), share.shape[1] - 1)
        point = np.zeros((len(rows), *normal.shape))
        for j in range(share.shape[1]):
            drawn = mixture.top[:, None, j] + normal @ mixture.root[:, j].swapaxes(-1, -2)
            point = np.where((choice == j)[..., None], drawn, point)
        weight = self.posterior.log_density(rows, point)
        weight -= logsumexp(_log_parts(point, mixture, _FREEDOM), axis=2)
        weight = np.exp(weight - weight.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        chance = self.posterior.model.risk(point.reshape(-1, point.shape[-1])).reshape(*weight.shape, -1)
        mean = np.einsum("rs,rsl->rl", weight, point)
        gap = point - mean[:, None]
        covariance = np.einsum("rs,rsa,rsb->rab", weight, gap, gap) + 1e-8 * np.eye(point.shape[-1])
        risk = np.einsum("rs,rsk->rk", weight, chance)
        return risk, 1.0 / np.square(weight).sum(1), mean, np.linalg.cholesky(1.5 * covariance)


def _with_prior(modes: Modes) -> Modes:
    rows, _, latent = modes.top.shape
    return modes.with_part(np.zeros((rows, latent)), np.tile(np.eye(latent), (rows, 1, 1)), _PRIOR_SHARE)
