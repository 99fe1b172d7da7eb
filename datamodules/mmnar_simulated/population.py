"""Patients of a causal model at sites that may decide differently about what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.simulation import CausalModel, Draw, Mechanism, MechanismKind, Outcome, View

# one view alone tells little: of four numbers' worth of information about u, the structured view holds a fifth
VIEWS = (
    View("structured", 12, noise=2.0, rate=1.0),
    View("labs", 16, noise=2.0, rate=0.7),
    View("notes", 24, noise=2.0, rate=0.5),
    View("film", 16, noise=2.0, rate=0.4),
)
OUTCOMES = (Outcome("death", 0.1, 2.0), Outcome("long_stay", 0.3, 1.5), Outcome("readmission", 0.15, 1.2))
_SITE = 1729  # key of the generators that send patients to sites


@dataclass(frozen=True)
class Site:
    """A site and its policy: the same patients as elsewhere, another way to decide what is measured.

    Args:
        name: Word that names it.
        share: Share of patients it has, relative to the other sites'.
        kind: ``mcar``, ``mar`` or ``mnar``; None is the datamodule's mechanism.
        strength: Log odds per standard deviation of the score; None is the datamodule's mechanism.
        shift: Log odds added to every availability: above 0 more is measured here than `View.rate` says.
        bound: Largest log odds that the score can add or take; None is the datamodule's mechanism.

    Raises:
        ValueError: If the share is not above 0.
    """

    name: str
    share: float = 1.0
    kind: MechanismKind | None = None
    strength: float | None = None
    shift: float = 0.0
    bound: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.share) and self.share > 0.0):
            raise ValueError(f"site {self.name!r}: share {self.share} must be above 0")

    def mechanism(self, usual: Mechanism) -> Mechanism:
        """What decides about availability here."""
        strength = usual.strength if self.strength is None else self.strength
        bound = usual.bound if self.bound is None else self.bound
        return Mechanism(self.kind or usual.kind, strength, usual.shift + self.shift, bound)


@dataclass(frozen=True)
class Population:
    """The first patients of a causal model, each at a site drawn by chance.

    Patient i is the same however many are drawn; a site's policy moves no patient, no value and no outcome.

    Args:
        model: What patients are drawn from.
        samples: Number of patients.
        sites: Sites; empty is one place without a name.

    Raises:
        ValueError: If there are no patients, or site names repeat.
    """

    model: CausalModel
    samples: int
    sites: tuple[Site, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples {self.samples}: at least 1 is needed")
        names = [site.name for site in self.sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"site name occurs twice: {', '.join(twice)}")
        for site in self.sites:
            self.model_of(site)

    def model_of(self, site: Site) -> CausalModel:
        """The causal model with a site's policy."""
        return replace(self.model, mechanism=site.mechanism(self.model.mechanism))

    def stream(self) -> Iterator[tuple[Draw, NDArray[np.int64]]]:
        """Draw a chunk of patients at a time, with the index of each one's site (0 where there are none)."""
        models = [self.model_of(site) for site in self.sites] or [self.model]
        size = self.model.chunk_size
        for number in range(-(-self.samples // size)):
            draws = [model.chunk(number).head(self.samples - number * size) for model in models]
            site = self._sites_of(number)[: len(draws[0])]
            available, propensity = draws[0].available, draws[0].propensity
            for k, draw in enumerate(draws[1:], start=1):
                here = (site == k)[:, None]
                available = np.where(here, draw.available, available)
                propensity = np.where(here, draw.propensity, propensity)
            yield replace(draws[0], available=available, propensity=propensity), site

    def _sites_of(self, chunk: int) -> NDArray[np.int64]:
        share = np.array([site.share for site in self.sites] or [1.0])
        sequence = np.random.SeedSequence(self.model.seed, spawn_key=(_SITE, chunk))
        uniform = np.random.Generator(np.random.Philox(sequence)).random(self.model.chunk_size)
        found: NDArray[np.int64] = np.searchsorted(np.cumsum(share / share.sum())[:-1], uniform, side="right")
        return found.astype(np.int64)
