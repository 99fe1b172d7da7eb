"""Posterior of the latent health of a causal model, given what was seen of a patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.simulation.causal_model import CausalModel, Draw
from mmnar_lightning.simulation.mechanism import Floats

Rows = NDArray[np.int64]
Evidence = Callable[[Rows, Floats], Floats]

_REACH, _SPACING = 5.0, 0.5  # of the points at which modes are looked for, in standard deviations of the prior
_SCATTERED = 4096  # their number where u has more than three axes
_STARTS, _STEPS = 4, 30
_APART = 1.0  # distance of one start from the next
_DIFFERENCE = 1e-3
_SHALLOW = 25.0  # a mode this far (in log density) below the best holds no mass that could show
_STRIDES = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.0])
_BUDGET = 1 << 19  # floats of the largest array: a little more than a cache holds


@dataclass(frozen=True)
class Modes:
    """Modes of the posterior of r rows, J each at most; parts of a mixture.

    Args:
        top: Modes μ_j, [r, J, L].
        root: C_j with C_j C_jᵀ the covariance of the Laplace approximation, [r, J, L, L].
        share: Logarithm of each mode's share of the mass, [r, J]; −∞ for one that does not count.
    """

    top: Floats
    root: Floats
    share: Floats

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Modes:
        """Keep some of the rows."""
        return Modes(self.top[rows], self.root[rows], self.share[rows])

    def strongest(self, count: int) -> Modes:
        """Keep the parts of largest share, at most so many; their shares make up the whole again."""
        if self.share.shape[1] <= count:
            return self
        kept = np.argsort(-self.share, axis=1, kind="stable")[:, :count]
        row, share = np.arange(len(kept))[:, None], np.take_along_axis(self.share, kept, axis=1)
        share = share - np.log(np.exp(share).sum(1, keepdims=True))
        return Modes(self.top[row, kept], self.root[row, kept], share)

    def with_part(self, top: Floats, root: Floats, share: float) -> Modes:
        """Add a part of [r, L] and [r, L, L] that takes a share between 0 and 1 from the others."""
        return Modes(
            np.concatenate([self.top, top[:, None]], axis=1),
            np.concatenate([self.root, root[:, None]], axis=1),
            np.pad(self.share + np.log1p(-share), ((0, 0), (0, 1)), constant_values=np.log(share)),
        )


class LatentPosterior:
    """log p(u | x_O, δ) of each row = log N(u; 0, I) + Σ_{m ∈ O} log N(x_m; f_m(u), σ_m²) + log P(δ | u) + constant.

    Args:
        model: What the patients were drawn from.
        draw: Patients.
        views: Names of the views that are conditioned on where they are available.
        pattern: Whether availability itself is conditioned on.
        evidence: Further log likelihood, ``evidence(rows [r], u [r, S, L]) -> [r, S]``; rows number the patients.

    Attributes:
        wanted: Function of u [S, L] whose posterior mean is looked for, [S, K]; the outcomes' risks unless it is set.

    Raises:
        ValueError: If an available view has no noise (it has no density).
    """

    def __init__(
        self, model: CausalModel, draw: Draw, views: Sequence[str], *, pattern: bool, evidence: Evidence | None = None
    ) -> None:
        self.model, self.draw, self.evidence = model, draw, evidence
        self.latent = model.latent
        self.views = [(m, view) for m, view in enumerate(model.views) if view.name in views]
        # under mcar and mar P(δ | u, x) does not depend on u and drops out
        self.informative = pattern and model.mechanism.kind == "mnar" and model.mechanism.strength > 0.0
        self.linear = model.form == "linear"
        # the logarithm of σ(c + γ·s) is concave in s, that of σ(c + b·tanh(γ·s/b)) is not
        self.concave = self.linear and evidence is None and not (self.informative and model.mechanism.bound is not None)
        self.wanted: Callable[[Floats], Floats] = model.risk
        for _, view in self.views:
            if view.noise == 0.0:
                raise ValueError(f"view {view.name!r}: without noise it has no density; give it noise above 0")
        self.score, self.precision = self._gaussian() if self.linear else (np.zeros((0, 0)), np.zeros((0, 0, 0)))

    @property
    def columns(self) -> int:
        """K, how many numbers are wanted."""
        return int(self.wanted(np.zeros((1, self.latent))).shape[1])

    def _gaussian(self) -> tuple[Floats, Floats]:
        """h [n, L] and Λ [n, L, L] of log p(u | x_O) = h·u − ½ uᵀΛu, where the views are affine in u."""
        n, latent = len(self.draw), self.latent
        score, precision = np.zeros((n, latent)), np.tile(np.eye(latent), (n, 1, 1))
        for m, view in self.views:
            there = self.draw.available[:, m]
            centre = self.model.mean(view.name, np.zeros((1, latent)))[0]
            slope = self.model.mean(view.name, np.eye(latent)) - centre
            score[there] += (self.draw.values[view.name][there] - centre) @ slope.T / view.noise**2
            precision[there] += slope @ slope.T / view.noise**2
        return score, precision

    def chunks(self, rows: Rows, points: int) -> list[Rows]:
        """Divide rows so that ``points`` points for each of them fit into bounded memory."""
        widest = 1 if self.linear else max((view.width for _, view in self.views), default=1)
        size = max(1, _BUDGET // (points * max(widest, self.latent**2, 4)))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def log_density(self, rows: Rows, latent: Floats) -> Floats:
        """log p(u | x_O, δ) + constant, [r, S], at u of [r, S, L] for r rows of the draw."""
        shape, flat = latent.shape[:2], latent.reshape(-1, self.latent)
        total: Floats
        if self.linear:
            total = np.einsum("rsl,rl->rs", latent, self.score[rows])
            total -= 0.5 * np.einsum("rsl,rsl->rs", latent @ self.precision[rows], latent)
        else:
            total = -0.5 * np.square(latent).sum(-1)
            for m, view in self.views:
                there = np.flatnonzero(self.draw.available[rows, m])
                if len(there):
                    mean = self.model.mean(view.name, latent[there].reshape(-1, self.latent))
                    gap = mean.reshape(len(there), shape[1], view.width)
                    gap -= self.draw.values[view.name][rows[there], None]
                    total[there] -= np.einsum("rsf,rsf->rs", gap, gap) / (2.0 * view.noise**2)
        if self.informative:
            chance = self.model.propensity(flat, {}).reshape(*shape, -1)
            seen = self.draw.available[rows, None]
            total += np.log(np.maximum(np.where(seen, chance, 1.0 - chance), 1e-300)).sum(-1)
        if self.evidence is not None:
            total += self.evidence(rows, latent)
        return total

    def at(self, points: Floats) -> Callable[[Rows], Floats]:
        """The same at points [G, L] that all rows share, as a function from r rows to [r, G].

        What depends on the points alone is computed once, and matrix products take the place of residuals.
        """
        prior = -0.5 * np.square(points).sum(-1)
        tables = []
        for m, view in self.views:
            mean = self.model.mean(view.name, points) / view.noise**2
            tables.append((m, view.name, mean.T.copy(), 0.5 * view.noise**2 * np.square(mean).sum(-1)))
        chance = self.model.propensity(points, {}).T if self.informative else np.zeros((0, 0))
        seen, unseen = np.log(np.maximum(chance, 1e-300)), np.log(np.maximum(1.0 - chance, 1e-300))

        def log_density(rows: Rows) -> Floats:
            available = self.draw.available[rows]
            total: Floats = np.tile(prior, (len(rows), 1))
            for m, name, mean, square in tables:
                there = np.flatnonzero(available[:, m])
                total[there] += self.draw.values[name][rows[there]] @ mean - square
            if self.informative:
                total += available.astype(float) @ seen + (~available).astype(float) @ unseen
            if self.evidence is not None:
                total += self.evidence(rows, np.broadcast_to(points, (len(rows), *points.shape)))
            return total

        return log_density

    def shared_chunks(self, rows: Rows, points: int) -> list[Rows]:
        """Divide rows so that one number for each row and each of the shared points fits into bounded memory."""
        size = max(1, 8 * _BUDGET // points)
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def modes(self, rows: Rows, seed: int) -> Modes:
        """Find the posterior's modes, climbing from several starts; a mode that two starts reach counts once.

        Args:
            rows: r rows of the draw.
            seed: Decides about the points at which starts are looked for where u has more than three axes.
        """
        start = self._starts(rows, seed)
        n, count, latent = start.shape
        owner = np.repeat(rows, count)
        top: Floats = start.reshape(-1, latent).copy()
        height: Floats = np.zeros(n * count)
        root: Floats = np.zeros((n * count, latent, latent))
        for part in self.chunks(np.arange(n * count), 1 + 2 * latent * latent):
            top[part], height[part], root[part] = self._climb(owner[part], top[part])
        top, root, height = top.reshape(start.shape), root.reshape(*start.shape, latent), height.reshape(n, count)
        low = height < height.max(1, keepdims=True) - _SHALLOW
        mass: Floats = np.where(low, -np.inf, height + log_volume(root))
        for j in range(1, count):
            for i in range(j):
                step = np.linalg.solve(root[:, i], (top[:, j] - top[:, i])[..., None])[..., 0]
                mass[(np.square(step).sum(-1) < 0.25) & (mass[:, i] > -np.inf), j] = -np.inf
        peak = mass.max(1, keepdims=True)
        return Modes(top, root, mass - peak - np.log(np.exp(mass - peak).sum(1, keepdims=True)))

    def _starts(self, rows: Rows, seed: int) -> Floats:
        """Points of high density, at least `_APART` from each other: [r, J, L]."""
        if self.concave:
            centre = np.linalg.solve(self.precision[rows], self.score[rows][..., None])
            return centre[:, None, :, 0].astype(np.float64)
        points = ball(_REACH, _SPACING, self.latent) if self.latent <= 3 else _scattered(self.latent, seed)
        squares = np.square(points).sum(-1)
        found, log_density = [], self.at(points)
        for part in self.shared_chunks(rows, len(points)):
            density, chosen = log_density(part), []
            for _ in range(_STARTS):
                best = density.argmax(1)
                chosen.append(points[best])
                near = squares[best, None] + squares - 2.0 * (points[best] @ points.T) < _APART**2
                density[near] = -np.inf
            found.append(np.stack(chosen, axis=1))
        return np.concatenate(found)

    def _climb(self, rows: Rows, start: Floats) -> tuple[Floats, Floats, Floats]:
        """Newton's method with curvatures made positive, and the best of a few strides: (mode, height, C)."""
        point, active = start.copy(), np.arange(len(rows))
        for _ in range(_STEPS):
            slope, curvature = self._derivatives(rows[active], point[active])
            value, axes = np.linalg.eigh(curvature)
            value = np.maximum(np.abs(value), 0.3)
            step = np.einsum("rab,rb,rcb,rc->ra", axes, 1.0 / value, axes, slope)
            step *= np.minimum(1.0, 2.0 / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12))
            tried = point[active][:, None] + _STRIDES[:, None] * step[:, None]
            best = self.log_density(rows[active], tried).argmax(1)
            point[active] = tried[np.arange(len(active)), best]
            active = active[(np.linalg.norm(step, axis=-1) > 1e-3) & (_STRIDES[best] > 0.0)]
            if not len(active):
                break
        _, curvature = self._derivatives(rows, point)
        value, axes = np.linalg.eigh(curvature)
        root = axes / np.sqrt(np.maximum(value, 0.25))[:, None, :]
        return point, self.log_density(rows, point[:, None])[:, 0], root

    def _derivatives(self, rows: Rows, point: Floats) -> tuple[Floats, Floats]:
        """Slope [r, L] and minus the curvature [r, L, L] of the log density, by central differences."""
        latent, h = self.latent, _DIFFERENCE
        unit = h * np.eye(latent)
        pairs = [(a, b) for a in range(latent) for b in range(a)]
        cross = [s * unit[a] + s * t * unit[b] for a, b in pairs for s in (1, -1) for t in (1, -1)]
        moves = np.concatenate([np.zeros((1, latent)), unit, -unit, np.array(cross).reshape(-1, latent)])
        density = self.log_density(rows, point[:, None] + moves)
        here, up, down = density[:, :1], density[:, 1 : latent + 1], density[:, latent + 1 : 2 * latent + 1]
        curvature = np.zeros((len(rows), latent, latent))
        curvature[:, np.arange(latent), np.arange(latent)] = (2.0 * here - up - down) / h**2
        for k, (a, b) in enumerate(pairs):
            # moves + +, + −, − −, − +
            one, two, three, four = density[:, 2 * latent + 1 + 4 * k : 2 * latent + 5 + 4 * k].T
            curvature[:, a, b] = curvature[:, b, a] = (two + four - one - three) / (4.0 * h**2)
        return (up - down) / (2.0 * h), curvature


def ball(radius: float, step: float, dimensions: int) -> Floats:
    """Points of a regular grid inside a ball around 0: [S, L]."""
    half = np.arange(0, radius + 1e-9, step)
    axis = np.concatenate([-half[:0:-1], half])
    grid = np.stack(np.meshgrid(*[axis] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    inside: Floats = grid[np.linalg.norm(grid, axis=1) <= radius + 1e-9]
    return inside


def log_volume(root: Floats) -> Floats:
    """log |det C| of square matrices [..., L, L]."""
    volume: Floats = np.linalg.slogdet(root)[1]
    return volume


def _scattered(latent: int, seed: int) -> Floats:
    return 1.2 * np.random.default_rng((seed, 1)).standard_normal((_SCATTERED, latent))
