"""How well outcomes can be foretold from what simulated notes and films say, by whoever knows the model.

A note says of each number in which interval it lies, for the grades of its mentions are shifted against each other
(`texts`). A film shows each number up to an error that pixel noise and the place, brightness and ribs of the patient
leave (`films`). From there it is Bayes' rule over the latent health u, on a grid:

    P(y = 1 | words, pixels, δ) = Σ_u P(y = 1 | u) w(u | words, pixels, δ),
    w ∝ N(u; 0, I) P(in the cohort | u) Π_m P(δ_m | u) Π_{m: δ_m = 1} Π_k P(number k of m as it was said | u).

All AUROC are at most that of these predictions, but for chance in a finite sample and for what stands beside the
numbers and is not in them: how long the stay was, and in one summary of three the age.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from mmnar_lightning.simulation import CausalModel, Floats
from mmnar_mimic4.simulated import films, texts
from mmnar_mimic4.simulated.course import standardised
from mmnar_mimic4.simulated.fates import PLANNED, POST_TASKS
from mmnar_mimic4.simulated.timeline import Bools, Ints

# shifts of the grades of the mentions of each number, see `texts`
SHIFTS = {"radiology": (0.25, -0.25), "discharge": (0.0, -1 / 6, 1 / 3, -1 / 3)}
REACH, APART = 4.6, 0.4  # of the grid; a posterior is never narrower than 0.35, so that the sum is exact to 1e-6
URGENT = -0.35  # who is more urgent comes through the emergency department, and only he is filmed
WARD = 0.15  # share of the deaths drawn that happen outside of an ICU
_ROWS = 256  # samples at once
_DIALS = 8  # uniform numbers drawn for a frontal film


@dataclass(frozen=True)
class Reading:
    """What one modality says of its numbers: in which interval each of them lies.

    Args:
        modality: ``radiology``, ``discharge`` or ``cxr``.
        borders: Between the intervals, ascending, in standard deviations, [C − 1].
        error: Standard deviation of what is read about what was said, in standard deviations, one a number.
    """

    modality: str
    borders: Floats
    error: tuple[float, ...] = (0.0,) * texts.WIDTH

    def cells(self, values: Floats) -> Ints:
        """Interval of each value, [n, F], for standardised values with the error already in them."""
        return np.searchsorted(self.borders, values, side="right").astype(np.int64)


def of_words(modality: str) -> Reading:
    """What the mentions in a note say together."""
    borders = [
        texts.STEP * (grade - texts.GRADES / 2 - shift)
        for shift in SHIFTS[modality]
        for grade in range(1, texts.GRADES)
    ]
    return Reading(modality, np.unique(np.round(borders, 12)))


def of_numbers(modality: str, error: Sequence[float] = (0.0,) * texts.WIDTH) -> Reading:
    """The numbers themselves, but for an error: what an eye of that sharpness sees on a film, or more than words say.

    Beyond ± 2.5 a film doesn't tell numbers apart.
    """
    most = films.CUT if modality == "cxr" else 5.0
    return Reading(modality, np.linspace(-most, most, round(most / 0.02) + 1), tuple(error))


class Bayes:
    """Predictions of the outcomes after discharge, given what was said and what was missing.

    Args:
        model: The population.
        readings: What the modalities say; one that isn't listed is not seen, nor whether it is there.
        filmed: Share of the episodes in the years in which films were collected.

    Raises:
        ValueError: If availability depends on observed values (``mar``): it would have to be averaged over them.
    """

    def __init__(self, model: CausalModel, readings: Sequence[Reading], filmed: float) -> None:
        if model.mechanism.kind == "mar":
            raise ValueError("attainable: under mar, availability is no function of the latent health")
        self.model, self.readings = model, tuple(readings)
        self.nodes = _grid(model.latent)
        self.outcomes = dict(zip(model.outcome_names, model.risk(self.nodes).T, strict=True))
        self.risk = risks(self.outcomes)
        self._prior = -0.5 * np.square(self.nodes).sum(1) + np.log(_stays_in(self.outcomes))
        self._observed = self._rates(filmed)
        self._tables = {reading.modality: self._table(reading) for reading in self.readings}

    def predict(
        self, values: Mapping[str, Floats], observed: Mapping[str, Bools], events: Mapping[str, Bools] | None = None
    ) -> dict[str, Floats]:
        """P(y = 1 | what is said), [n] by task.

        Args:
            values: Standardised numbers by modality, [n, F], errors of reading included; not read where not observed.
            observed: δ by modality, [n].
            events: Outcomes of the model that are known besides, such as ``icu``, [n] by name.
        """
        events = events or {}
        cells = {reading.modality: reading.cells(values[reading.modality]) for reading in self.readings}
        n = len(next(iter(observed.values())))
        parts = []
        for start in range(0, n, _ROWS):
            rows = slice(start, start + _ROWS)
            log = np.repeat(self._prior[None, :], len(range(n)[rows]), axis=0)
            for modality, table in self._tables.items():
                there = observed[modality][rows]
                rate = self._observed[modality]
                log += np.log(np.where(there[:, None], rate, 1 - rate))
                for k, column in enumerate(table):
                    log[there] += column[cells[modality][rows][there, k]]
            for name, happened in events.items():
                log += np.log(np.where(happened[rows, None], self.outcomes[name], 1 - self.outcomes[name]))
            weight = np.exp(log - log.max(1, keepdims=True))
            parts.append((weight / weight.sum(1, keepdims=True)) @ self.risk)
        return dict(zip(POST_TASKS, np.concatenate(parts).T, strict=True))

    def _rates(self, filmed: float) -> dict[str, Floats]:
        """P(δ_m = 1 | u) after discharge, [G] by modality."""
        rates = self.model.propensity(self.nodes, {})
        found = {reading.modality: rates[:, self.model.names.index(reading.modality)] for reading in self.readings}
        if "cxr" in found:
            view = next(v for v in self.model.views if v.name == "structured")
            urgency = self.model.mean("structured", self.nodes)[:, 1]
            emergency = ndtr((urgency - URGENT * np.sqrt(1 + view.noise**2)) / view.noise)
            found["cxr"] = found["cxr"] * emergency * filmed
        return found

    def _table(self, reading: Reading) -> list[Floats]:
        """log P(interval | u) of each number, [C, G] each."""
        view = next(v for v in self.model.views if v.name == reading.modality)
        scale = np.sqrt(1 + view.noise**2)
        means = self.model.mean(reading.modality, self.nodes) / scale
        tables = []
        for k, error in enumerate(reading.error):
            spread = np.sqrt((view.noise / scale) ** 2 + error**2)
            distance = (reading.borders[:, None] - means[None, :, k]) / spread
            # upper tails as lower ones of the mirror image: differences near 1 would lose all digits
            edges = np.concatenate([np.full((1, len(means)), -np.inf), distance, np.full((1, len(means)), np.inf)])
            low, high = edges[:-1], edges[1:]
            mirrored = low > 0
            inside = np.where(mirrored, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
            tables.append(np.log(np.maximum(inside, 1e-300)))
        return tables


def standardised_values(model: CausalModel, modality: str, columns: ArrayLike) -> Floats:
    """Numbers of a modality as notes and films express them, from the columns ``value/<modality>/<k>`` of the truth."""
    return standardised(model, modality, np.asarray(columns, dtype=np.float64))


def risks(chances: Mapping[str, Floats]) -> Floats:
    """P(label = 1 | u, in the cohort ``post_discharge``), [G, tasks in the order of `POST_TASKS`].

    Args:
        chances: Risks of the model's outcomes, [G] by name.
    """
    early, death = chances["early_return"], chances["early_death"]
    back = early + (1 - early) * chances["late_return"] * (1 - death)
    found = {
        "readmission_30d_any": early,
        "readmission_30d_unplanned": early * (1 - PLANNED),
        "readmission_90d": back,
        "icu_90d": back * chances["icu_return"],
        "mortality_30d": death,
        "mortality_180d": death + (1 - death) * chances["late_death"],
        "death_or_readmission_30d": 1 - (1 - early) * (1 - death),
    }
    return np.stack([found[task] for task in POST_TASKS], axis=1)


def _stays_in(chances: Mapping[str, Floats]) -> Floats:
    """P(left the hospital alive | u), [G]; all else that decides about the cohort is chance."""
    return np.asarray(1 - chances["death"] * (chances["icu"] + (1 - chances["icu"]) * WARD))


def _grid(axes: int) -> Floats:
    line = np.arange(-REACH, REACH + APART / 2, APART)
    nodes = np.stack(np.meshgrid(*[line] * axes, indexing="ij"), axis=-1).reshape(-1, axes)
    kept: Floats = nodes[np.linalg.norm(nodes, axis=1) <= REACH]
    return kept


def film_error(size: int, draws: int = 40, seed: int = 0) -> Floats:
    """Standard deviation of the best unbiased reading of each number of a film, [4]: the Cramér-Rao bound.

    The mean over films of (JᵀJ / s² + Λ)⁻¹, J the derivatives of all pixels by the four numbers and by whatever else is
    drawn for a film (place, width, ribs, pattern, gain, offset), s the noise of a pixel, Λ what is known of the latter
    beforehand: the precision of a uniform number.

    Args:
        size: Pixels a side.
        draws: Films over which the bound is averaged.
        seed: Of those films.
    """
    rng = np.random.default_rng(seed)
    step, bounds = 0.01, []
    for _ in range(draws):
        values = np.clip(rng.standard_normal(films.WIDTH), -2.0, 2.0)
        start = np.concatenate([values, rng.uniform(0.1, 0.9, _DIALS)])
        columns = [
            (_picture(start + d, size) - _picture(start - d, size)) / (2 * step) for d in step * np.eye(len(start))
        ]
        picture = _picture(start, size)
        # by gain and offset, per width of the range they are drawn from
        jacobian = np.stack([*columns, 0.12 * picture, np.full_like(picture, 0.06)], axis=1)
        information = jacobian.T @ jacobian / films.NOISE**2
        information[films.WIDTH :, films.WIDTH :] += 12 * np.eye(_DIALS + 2)
        bounds.append(np.diag(np.linalg.inv(information))[: films.WIDTH])
    return np.asarray(np.sqrt(np.mean(bounds, axis=0)))


def _picture(dials: Floats, size: int) -> Floats:
    """Brightness of one film, [size²], by its numbers and by where each other thing lies in its range, 0 to 1."""
    turned = _Dials(dials[films.WIDTH :])
    values = dials[None, : films.WIDTH].astype(np.float32)
    picture = films.frontal(values, cast(np.random.Generator, turned), size)
    assert not turned.left, "a film draws fewer numbers than there are dials"
    return np.asarray(picture, dtype=np.float64).ravel()


class _Dials:
    """Stands in for a generator: uniform numbers in the order in which they are asked for."""

    def __init__(self, dials: Floats) -> None:
        self.left = dials.tolist()

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Floats:
        return np.full(shape, low + (high - low) * self.left.pop(0))
