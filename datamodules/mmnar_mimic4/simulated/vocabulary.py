"""The items that simulated records are written with, and their normal values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.simulation import Floats

NAMES = ("labs", "charts", "drugs", "inputs", "procedures")


@cache
def vocabulary(name: str) -> pl.DataFrame:
    """One of the tables of this folder: ``labs``, ``charts``, ``drugs``, ``inputs``, ``procedures``; all its columns
    are text."""
    return pl.read_csv(files(__package__).joinpath(f"{name}.csv").read_bytes(), infer_schema=False)


@cache
def numbers(name: str, column: str) -> Floats:
    """A column of a vocabulary as numbers, NaN where it is empty, [V]."""
    return vocabulary(name)[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def severity(*names: str) -> tuple[float, ...]:
    """Weight of the latent severity in every item of these vocabularies."""
    return tuple(float(w) for name in names for w in numbers(name, "severity"))


@dataclass(frozen=True)
class Scale:
    """How standardised values become values in units.

    Args:
        median: [V].
        spread: Standard deviation over patients, of the value or (``log``) of its logarithm, [V].
        log: Whether values are spread on a logarithmic scale, bool [V].
        low: Smallest value that is reported, [V].
        high: Largest value that is reported, [V].
        decimals: Decimals that are reported, [V].
    """

    median: Floats
    spread: Floats
    log: NDArray[np.bool_]
    low: Floats
    high: Floats
    decimals: Floats

    def value(self, item: NDArray[np.int64], score: Floats) -> Floats:
        """Values in units of the item, rounded as reported.

        Args:
            item: Index of the item, [n].
            score: Standardised value, [n].
        """
        spread = self.spread[item] * score
        growth = np.exp(np.where(self.log[item], spread, 0.0))
        raw = np.where(self.log[item], self.median[item] * growth, self.median[item] + spread)
        power = 10.0 ** self.decimals[item]
        return np.asarray(np.round(np.clip(raw, self.low[item], self.high[item]) * power) / power)


@cache
def scale(name: str) -> Scale:
    """Scale of the vocabulary ``labs`` or ``charts``."""
    frame = vocabulary(name)
    log = (frame["scale"] == "log").to_numpy() if "scale" in frame.columns else np.zeros(len(frame), bool)
    median, spread, low, high, decimals = (
        numbers(name, column) for column in ("median", "spread", "low", "high", "decimals")
    )
    return Scale(median, spread, log, low, high, decimals)
