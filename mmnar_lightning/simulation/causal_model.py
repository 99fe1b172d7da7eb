"""A structural causal model of patients: latent health, what is measured of it, what follows, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.simulation.mechanism import Floats, Mechanism, intercept, sigmoid

# Streams of one chunk. Each has its own generator, so that changing the mechanism moves no patient and no outcome.
_LATENT, _NOISE, _OUTCOME, _AVAILABILITY = range(4)
_PILOT = 1 << 15  # draws that set scales and intercepts; a share of 0.1 is then met to about ±0.002


@dataclass(frozen=True)
class View:
    """One modality as the model draws it: x_m = f_m(u) + noise.

    Args:
        name: Word that names it.
        width: F_m, how many numbers it holds.
        noise: Standard deviation of the noise; every f_m has variance 1.
        rate: Share of patients for whom it is observed; 1 means always.
        loadings: Weight of the first latent axis ("severity") in each of the F_m numbers, or empty to draw it. The
            other axes get drawn weights.
        direction: Weights of the latent axes in the score that decides about its availability under MNAR, or empty to
            draw them around +severity. A shorter tuple is filled up with zeros.
    """

    name: str
    width: int
    noise: float = 1.0
    rate: float = 0.7
    loadings: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1 or self.noise < 0.0 or not 0.0 < self.rate <= 1.0:
            raise ValueError(f"view {self.name!r}: width ≥ 1, noise ≥ 0 and 0 < rate ≤ 1 are needed")
        if self.loadings and len(self.loadings) != self.width:
            raise ValueError(f"view {self.name!r}: {len(self.loadings)} loadings for a width of {self.width}")


@dataclass(frozen=True)
class Outcome:
    """One binary outcome: y_k ~ Bernoulli(σ(a_k + β_k·g_k(u))), g_k with mean 0 and variance 1.

    Args:
        name: Word that names it.
        prevalence: Share of positives.
        strength: β_k, log odds per standard deviation of g_k.
        direction: Weights of the latent axes in g_k, or empty to draw them around +severity.
    """

    name: str
    prevalence: float = 0.1
    strength: float = 1.5
    direction: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.prevalence < 1.0:
            raise ValueError(f"outcome {self.name!r}: prevalence {self.prevalence} must lie strictly between 0 and 1")


@dataclass(frozen=True)
class Draw:
    """Patients with everything known about them.

    Args:
        index: Number of each patient, int64 [n]; patient i is the same in every draw of the model that holds it.
        latent: u, [n, L].
        values: x_m of each view, [n, F_m], also where it is not observed.
        available: δ, bool [n, M].
        propensity: P(δ_m = 1 | u, x), [n, M].
        outcomes: y, bool [n, K].
        risk: P(y_k = 1 | u), [n, K].
    """

    index: NDArray[np.int64]
    latent: Floats
    values: dict[str, Floats]
    available: NDArray[np.bool_]
    propensity: Floats
    outcomes: NDArray[np.bool_]
    risk: Floats

    def __len__(self) -> int:
        return len(self.index)

    def head(self, n: int) -> Draw:
        """Keep the first n patients."""
        return Draw(
            self.index[:n],
            self.latent[:n],
            {name: x[:n] for name, x in self.values.items()},
            self.available[:n],
            self.propensity[:n],
            self.outcomes[:n],
            self.risk[:n],
        )


def concatenate(draws: list[Draw]) -> Draw:
    """Put draws one after the other.

    Raises:
        ValueError: If there is none.
    """
    if not draws:
        raise ValueError("no draws to concatenate")
    return Draw(
        np.concatenate([d.index for d in draws]),
        np.concatenate([d.latent for d in draws]),
        {name: np.concatenate([d.values[name] for d in draws]) for name in draws[0].values},
        np.concatenate([d.available for d in draws]),
        np.concatenate([d.propensity for d in draws]),
        np.concatenate([d.outcomes for d in draws]),
        np.concatenate([d.risk for d in draws]),
    )


@dataclass(frozen=True)
class CausalModel:
    """u → (x_1 … x_M, y_1 … y_K) and, by the mechanism, (u or x_1) → δ.

    u ~ N(0, I_L). Linear: f_m(u) = W_m u and g_k(u) = b_k·u. Non-linear: f_m(u) = tanh(1.5 W_m u) + ½((V_m u)² − 1) and
    g_k(u) = b_k·u + ½(b_k·u)(c_k·u), each scaled to variance 1. Given u, views, outcomes and availability are
    independent of each other, save that under ``mar`` availability depends on the values of the view that is observed
    for everyone.

    Drawn in chunks of a fixed size, each with generators of its own, keyed by (seed, chunk, stream): patient i never
    depends on how many are drawn, a chunk can be drawn alone, and a draw of any length needs the memory of one chunk.

    Args:
        views: The M modalities; at least one.
        outcomes: The K outcomes; at least one.
        mechanism: What decides about availability.
        latent: L, dimension of the latent health.
        form: ``linear`` or ``nonlinear``.
        seed: Decides about the parameters and the patients.
        chunk_size: Patients drawn at once. Another size is another draw.

    Raises:
        ValueError: If names repeat, there is no view or outcome, a direction is longer than L, or the mechanism is
            ``mar`` and no view has rate 1.
    """

    views: tuple[View, ...]
    outcomes: tuple[Outcome, ...]
    mechanism: Mechanism = field(default_factory=Mechanism)
    latent: int = 3
    form: Literal["linear", "nonlinear"] = "linear"
    seed: int = 0
    chunk_size: int = 1024

    def __post_init__(self) -> None:
        names = [v.name for v in self.views] + [o.name for o in self.outcomes]
        if not self.views or not self.outcomes or len(set(names)) < len(names):
            raise ValueError("a causal model needs at least one view and one outcome, with distinct names")
        if self.form not in ("linear", "nonlinear"):
            raise ValueError(f"form {self.form!r} is not one of linear, nonlinear")
        if self.latent < 1 or self.chunk_size < 1 or self.seed < 0:
            raise ValueError("latent and chunk_size must be at least 1, and seed at least 0")
        directions = {v.name: v.direction for v in self.views} | {o.name: o.direction for o in self.outcomes}
        for name, direction in directions.items():
            if len(direction) > self.latent:
                raise ValueError(f"{name!r}: a direction of {len(direction)} axes for a latent health of {self.latent}")
        if self.mechanism.kind == "mar" and all(view.rate < 1.0 for view in self.views):
            raise ValueError("mar needs a view that is always observed (rate 1)")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views, in order."""
        return tuple(view.name for view in self.views)

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Names of the outcomes, in order."""
        return tuple(outcome.name for outcome in self.outcomes)

    def mean(self, view: str, latent: Floats) -> Floats:
        """f_m(u), [n, F_m].

        Args:
            view: Name of the modality.
            latent: u, [n, L].
        """
        part = self._parameters[view]
        return (self._raw_mean(part, latent) - part["centre"]) / part["scale"]

    def risk(self, latent: Floats) -> Floats:
        """P(y_k = 1 | u), [n, K], for u of [n, L]."""
        columns = []
        for outcome in self.outcomes:
            part = self._parameters[outcome.name]
            score = (self._raw_score(part, latent) - part["centre"]) / part["scale"]
            columns.append(sigmoid(part["intercept"] + outcome.strength * score))
        return np.stack(columns, axis=1)

    def propensity(self, latent: Floats, values: dict[str, Floats]) -> Floats:
        """P(δ_m = 1 | u, x), [n, M], for u of [n, L] and x_m of [n, F_m]."""
        columns = []
        for view in self.views:
            if view.rate == 1.0:
                columns.append(np.ones(len(latent)))
                continue
            logit = self.mechanism.log_odds(self._availability_score(view, latent, values))
            columns.append(sigmoid(self._availability_intercepts[view.name] + self.mechanism.shift + logit))
        return np.stack(columns, axis=1)

    def chunk(self, number: int) -> Draw:
        """Draw the patients ``number · chunk_size`` … ``(number + 1) · chunk_size − 1``."""
        n = self.chunk_size
        latent = self._generator(1, number, _LATENT).standard_normal((n, self.latent))
        noise = self._generator(1, number, _NOISE)
        values = {v.name: self.mean(v.name, latent) + v.noise * noise.standard_normal((n, v.width)) for v in self.views}
        risk = self.risk(latent)
        outcomes = self._generator(1, number, _OUTCOME).random((n, len(self.outcomes))) < risk
        propensity = self.propensity(latent, values)
        available = self._generator(1, number, _AVAILABILITY).random((n, len(self.views))) < propensity
        index = np.arange(number * n, (number + 1) * n, dtype=np.int64)
        return Draw(index, latent, values, available, propensity, outcomes, risk)

    def stream(self, n: int) -> Iterator[Draw]:
        """Draw the first n patients, a chunk at a time."""
        for number in range(-(-n // self.chunk_size)):
            yield self.chunk(number).head(n - number * self.chunk_size)

    def draw(self, n: int) -> Draw:
        """Draw the first n patients at once.

        Raises:
            ValueError: If n is below 1.
        """
        if n < 1:
            raise ValueError(f"{n} patients; at least 1 is needed")
        return concatenate(list(self.stream(n)))

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _raw_mean(self, part: dict[str, Floats], latent: Floats) -> Floats:
        linear = latent @ part["weights"].T
        if self.form == "linear":
            return linear
        return np.tanh(1.5 * linear) + 0.5 * (np.square(latent @ part["bends"].T) - 1.0)

    def _raw_score(self, part: dict[str, Floats], latent: Floats) -> Floats:
        linear = latent @ part["direction"]
        return linear if self.form == "linear" else linear + 0.5 * linear * (latent @ part["bend"])

    def _availability_score(self, view: View, latent: Floats, values: dict[str, Floats]) -> Floats:
        """s_m, [n], mean 0 and variance 1 over patients."""
        part = self._parameters[view.name]
        if self.mechanism.kind == "mnar":
            return latent @ part["mnar"]
        if self.mechanism.kind == "mar":
            always = next(v for v in self.views if v.rate == 1.0)
            # any unit mixture of standardised numbers would do; the moments are those of the pilot
            centre, scale = self._mar_moments[view.name]
            return (values[always.name] @ part["mar"] - centre) / scale
        return np.zeros(len(latent))

    @cached_property
    def _pilot(self) -> tuple[Floats, dict[str, Floats]]:
        """u and x of draws that are used for nothing but scales and intercepts."""
        generator = self._generator(2)
        latent = generator.standard_normal((_PILOT, self.latent))
        always = [v for v in self.views if v.rate == 1.0][:1]
        return latent, {
            v.name: self.mean(v.name, latent) + v.noise * generator.standard_normal((_PILOT, v.width)) for v in always
        }

    @cached_property
    def _mar_moments(self) -> dict[str, tuple[float, float]]:
        (always,) = self._pilot[1].values()
        scores = {v.name: always @ self._parameters[v.name]["mar"] for v in self.views}
        return {name: (float(score.mean()), float(score.std())) for name, score in scores.items()}

    @cached_property
    def _availability_intercepts(self) -> dict[str, float]:
        latent, values = self._pilot
        return {
            v.name: intercept(self.mechanism.log_odds(self._availability_score(v, latent, values)), v.rate)
            for v in self.views
            if v.rate < 1.0
        }

    @cached_property
    def _parameters(self) -> dict[str, dict[str, Floats]]:
        """Weights of every view and outcome. Each part has its own generator: adding one leaves the others alone."""
        pilot = self._generator(3).standard_normal((_PILOT, self.latent))
        always = next((v.width for v in self.views if v.rate == 1.0), 1)
        parameters: dict[str, dict[str, Floats]] = {}
        for m, view in enumerate(self.views):
            generator = self._generator(0, 0, m)
            weights = generator.standard_normal((view.width, self.latent)) * 0.5
            if view.loadings:
                weights[:, 0] = view.loadings
            part = {
                "weights": _unit_rows(weights),
                "bends": _unit_rows(generator.standard_normal((view.width, self.latent))),
                "mnar": self._direction(view.direction, generator),
                "mar": _unit_rows(generator.standard_normal((1, always)))[0],
            }
            raw = self._raw_mean(part, pilot)
            parameters[view.name] = part | {"centre": raw.mean(0), "scale": raw.std(0)}
        for k, outcome in enumerate(self.outcomes):
            generator = self._generator(0, 1, k)
            part = {"direction": self._direction(outcome.direction, generator)}
            part["bend"] = _unit_rows(generator.standard_normal((1, self.latent)))[0]
            raw = self._raw_score(part, pilot)
            part |= {"centre": raw.mean(), "scale": raw.std()}
            score = outcome.strength * (raw - part["centre"]) / part["scale"]
            parameters[outcome.name] = part | {"intercept": np.float64(intercept(score, outcome.prevalence))}
        return parameters

    def _direction(self, given: tuple[float, ...], generator: np.random.Generator) -> Floats:
        """A unit vector of latent axes: the given one, or one drawn around the first axis."""
        drawn = generator.standard_normal(self.latent) * 0.7
        drawn[0] += 1.0
        chosen = np.array(given + (0.0,) * (self.latent - len(given))) if given else drawn
        unit: Floats = _unit_rows(chosen[None, :])[0]
        return unit


def _unit_rows(weights: Floats) -> Floats:
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    unit: Floats = np.divide(weights, np.where(length > 0.0, length, 1.0))
    return unit
