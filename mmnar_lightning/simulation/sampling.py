"""Importance sampling of posteriors that no grid covers, from a mixture that learns from its own draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import chi2, norm, qmc

from mmnar_lightning.simulation.mechanism import Floats
from mmnar_lightning.simulation.posterior import LatentPosterior, Modes, Rows, log_volume

_FREEDOM = 5.0  # of the t proposal
_PRIOR_SHARE = 0.1  # of the draws, from the prior: what the modes do not cover shows in their weights
_CONCAVE, _DRAWS = 1 << 11, 1 << 14  # draws where the posterior is log-concave, and elsewhere
_LEARNING, _LEARNT = 1 << 11, 5  # draws of a round that the mixture learns from, and their number
_ROUNDS = 3  # of estimates, each with four times the draws of the one before
_COMPONENTS = 5  # that are kept, those of largest share, when one is added
_NEW = 0.1  # share of a component that is put where the mixture is most too low
_HELD = 20.0  # effective draws that a component's old covariance counts for


@dataclass(frozen=True)
class Weighted:
    """Draws of r rows, S each, with their weights.

    Args:
        point: u, [r, S, L].
        weight: Of sum 1, [r, S].
        part: Log of share times density of each component, [J + 1, r, S]; the last is the prior.
    """

    point: Floats
    weight: Floats
    part: Floats

    @property
    def effective(self) -> Floats:
        """Effective sample size (Σw)²/Σw², [r]."""
        size: Floats = 1.0 / np.square(self.weight).sum(1)
        return size


class Sampler:
    """Importance sampling from a mixture of t distributions, with quasi-random draws (Sobol, scrambled).

    The mixture starts at the posterior's modes, with a tenth of the draws from the prior. Where the posterior need not
    be log-concave, it learns in `_LEARNT` rounds: shares, centres and covariances become those of the weighted draws
    (one step of EM), and a new component is put at the draw of largest weight, where the mixture is most too low: a
    mode that was missed, or a bend. Rows whose effective sample size stays too low get four times the draws and learn
    from them, twice at most.

    Args:
        posterior: What is sampled.
        draws: Of a row's estimate; None takes 2,048 where the posterior is log-concave, else 16,384.
        effective: Effective sample size that is enough.
        seed: Of the draws.

    Source: Cappé, Douc, Guillin, Marin, Robert, *Adaptive importance sampling in general mixture classes*, Statistics
    and Computing 2008; new components as in Raftery, Bao, *Estimating and projecting trends in HIV/AIDS generalized
    epidemics using incremental mixture importance sampling*, Biometrics 2010.
    """

    def __init__(
        self, posterior: LatentPosterior, draws: int | None = None, effective: float = 500.0, seed: int = 0
    ) -> None:
        self.posterior, self.effective, self.seed = posterior, effective, seed
        self.draws = draws if draws is not None else _CONCAVE if posterior.concave else _DRAWS

    @property
    def most(self) -> int:
        """Draws of the last round."""
        return int(self.draws * 4 ** (_ROUNDS - 1))

    def __call__(self, rows: Rows, modes: Modes) -> tuple[Floats, Floats]:
        """Posterior mean of what is wanted [r, K], and effective sample size [r]."""
        found, reached = np.empty((len(rows), self.posterior.columns)), np.zeros(len(rows))
        if not self.posterior.concave:
            for k in range(_LEARNT):
                normal = self._normal(min(_LEARNING, self.draws), _ROUNDS + k)
                parts = self.posterior.chunks(np.arange(len(rows)), len(normal[0]))
                modes = _joined([_learnt(self._drawn(rows[p], modes.take(p), *normal), modes.take(p)) for p in parts])
        left = np.arange(len(rows))
        for attempt in range(_ROUNDS):
            normal, better = self._normal(self.draws * 4**attempt, attempt), []
            for part in self.posterior.chunks(np.arange(len(left)), len(normal[0])):
                drawn = self._drawn(rows[left[part]], modes.take(part), *normal)
                chance = self.posterior.wanted(drawn.point.reshape(-1, self.posterior.latent))
                chance = chance.reshape(*drawn.weight.shape, -1)
                found[left[part]] = np.einsum("rs,rsk->rk", drawn.weight, chance)
                reached[left[part]] = drawn.effective
                poor = drawn.effective < self.effective
                if poor.any() and attempt < _ROUNDS - 1:
                    kept = Weighted(drawn.point[poor], drawn.weight[poor], drawn.part[:, poor])
                    better.append(_learnt(kept, modes.take(part[poor])))
            left = left[reached[left] < self.effective]
            if not better:
                break
            modes = _joined(better)
        return found, reached

    def _normal(self, draws: int, key: int) -> tuple[Floats, Floats]:
        """Draws of a t distribution [S, L] and uniform draws that choose the component [S]."""
        latent = self.posterior.latent
        generator = np.random.default_rng((self.seed, 0, key))
        uniform = qmc.Sobol(latent + 2, rng=generator).random_base2(int(np.ceil(np.log2(draws))))
        uniform = np.clip(uniform, 1e-12, 1.0 - 1e-12)
        spread = np.sqrt(_FREEDOM / chi2.ppf(uniform[:, latent], _FREEDOM))
        return norm.ppf(uniform[:, :latent]) * spread[:, None], uniform[:, latent + 1]

    def _drawn(self, rows: Rows, modes: Modes, normal: Floats, uniform: Floats) -> Weighted:
        """Draw from the mixture of the modes and the prior, and weigh."""
        mixture = _with_prior(modes)
        share = np.exp(mixture.share)
        upper = np.cumsum(share, axis=1) / share.sum(1, keepdims=True)
        choice = np.minimum((uniform > upper[:, :, None]).sum(1), share.shape[1] - 1)
        point = np.zeros((len(rows), *normal.shape))
        for j in range(share.shape[1]):
            drawn = mixture.top[:, None, j] + normal @ mixture.root[:, j].swapaxes(-1, -2)
            point = np.where((choice == j)[..., None], drawn, point)
        part = log_parts(point, mixture, _FREEDOM)
        weight = self.posterior.log_density(rows, point) - log_sum(part)
        weight = np.exp(weight - weight.max(1, keepdims=True))
        return Weighted(point, weight / weight.sum(1, keepdims=True), part)


def log_parts(point: Floats, modes: Modes, freedom: float | None) -> Floats:
    """Log of each mode's share times its density, [J, r, S], at u of [r, S, L]: Gaussian, or t with some freedom."""
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
    return np.stack(parts)


def log_sum(part: Floats) -> Floats:
    """log Σ_j exp(part_j) over the first axis; SciPy's does the same for any axis, several times slower."""
    peak = part.max(0)
    total: Floats = peak + np.log(np.exp(part - peak).sum(0))
    return total


def _learnt(drawn: Weighted, modes: Modes) -> Modes:
    """One step of EM for a mixture of t distributions from weighted draws, and a component at the largest weight."""
    latent = drawn.point.shape[-1]
    responsible = drawn.weight * np.exp(drawn.part - log_sum(drawn.part))
    tops, roots, shares = [], [], []
    for j in range(modes.share.shape[1]):
        own, old = responsible[j], modes.root[:, j] @ modes.root[:, j].swapaxes(-1, -2)
        white = (drawn.point - modes.top[:, None, j]) @ np.linalg.inv(modes.root[:, j]).swapaxes(-1, -2)
        pull = own * (_FREEDOM + latent) / (_FREEDOM + np.square(white).sum(-1))
        mass, pulled = own.sum(1), pull.sum(1)
        count = mass**2 / np.maximum(np.square(own).sum(1), 1e-300)
        centre = np.einsum("rs,rsl->rl", pull, drawn.point) / np.maximum(pulled, 1e-300)[:, None]
        held = (_HELD / (_HELD + count))[:, None]
        top = held * modes.top[:, j] + (1.0 - held) * centre
        gap = drawn.point - top[:, None]
        covariance = (gap * pull[..., None]).swapaxes(-1, -2) @ gap / np.maximum(mass, 1e-300)[:, None, None]
        tops.append(top)
        roots.append(np.linalg.cholesky(held[..., None] * old + (1.0 - held[..., None]) * covariance))
        shares.append(mass)
    total = np.maximum(np.sum(shares, axis=0), 1e-300)
    with np.errstate(divide="ignore"):
        share = np.log(np.stack(shares, axis=1) / total[:, None])
    learnt = Modes(np.stack(tops, axis=1), np.stack(roots, axis=1), share)
    row, most = np.arange(len(drawn.point)), drawn.weight.argmax(1)
    nearest = drawn.part[:-1, row, most].argmax(0)
    root = learnt.root[row, nearest]
    return learnt.strongest(_COMPONENTS).with_part(drawn.point[row, most], root, _NEW)


def _joined(modes: list[Modes]) -> Modes:
    return Modes(*(np.concatenate([getattr(m, name) for m in modes]) for name in ("top", "root", "share")))


def _with_prior(modes: Modes) -> Modes:
    rows, _, latent = modes.top.shape
    return modes.with_part(np.zeros((rows, latent)), np.tile(np.eye(latent), (rows, 1, 1)), _PRIOR_SHARE)
