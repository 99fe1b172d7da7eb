"""The words and the normal values that simulated records are written with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats


@dataclass(frozen=True)
class Terms:
    """The terms of one table.

    Args:
        term: What stands in the table's main column, String [V].
        detail: Its companion (a drug name, ICD codes, the value of a path), String [V], null where it has none.
        frequency: Share of stays with the term, [V].
        severity: Weight of the latent severity in it, [V].
    """

    term: pl.Series
    detail: pl.Series
    frequency: Floats
    severity: Floats

    def __len__(self) -> int:
        return len(self.term)


@cache
def terms(table: str) -> Terms:
    """Terms of a table, from ``terms.csv``.

    Raises:
        ValueError: If the table has none.
    """
    frame = _read("terms.csv").filter(pl.col("table") == table)
    if frame.is_empty():
        raise ValueError(f"terms.csv has no terms for the table {table!r}")
    return Terms(
        frame["term"],
        frame["detail"],
        frame["frequency"].cast(pl.Float64).to_numpy(),
        frame["severity"].cast(pl.Float64).to_numpy(),
    )


@dataclass(frozen=True)
class Labs:
    """Laboratory tests: how they are named and what is usual.

    Args:
        name: ``labname``, String [V].
        unit: ``labmeasurenamesystem``, String [V], null where there is none.
        panel: Tests of one panel are drawn together, String [V].
        median: In units of the test, [V].
        spread: Standard deviation over patients, of the value or (``log``) of its logarithm, [V].
        log: Whether values are spread on a logarithmic scale, bool [V].
        low: Smallest value a laboratory reports, [V].
        high: Largest value a laboratory reports, [V].
        decimals: Decimals that are reported, [V].
        severity: Weight of the latent severity in it, [V].
    """

    name: pl.Series
    unit: pl.Series
    panel: pl.Series
    median: Floats
    spread: Floats
    log: np.ndarray[tuple[int], np.dtype[np.bool_]]
    low: Floats
    high: Floats
    decimals: Floats
    severity: Floats

    def __len__(self) -> int:
        return len(self.name)

    def value(self, test: np.ndarray[tuple[int], np.dtype[np.int64]], score: Floats) -> Floats:
        """Values in units of the test, rounded as reported.

        Args:
            test: Index of the test, [n].
            score: Standardised value, [n].
        """
        spread = self.spread[test] * score
        raw = np.where(self.log[test], self.median[test] * np.exp(np.where(self.log[test], spread, 0.0)), spread)
        raw = np.where(self.log[test], raw, self.median[test] + spread)
        power = 10.0 ** self.decimals[test]
        return np.asarray(np.round(np.clip(raw, self.low[test], self.high[test]) * power) / power)


@cache
def labs() -> Labs:
    """Laboratory tests, from ``labs.csv``."""
    frame = _read("labs.csv")
    number = {name: frame[name].cast(pl.Float64).to_numpy() for name in ("median", "spread", "low", "high", "decimals")}
    severity = frame["severity"].cast(pl.Float64).to_numpy()
    log = (frame["scale"] == "log").to_numpy()
    return Labs(frame["name"], frame["unit"], frame["panel"], log=log, severity=severity, **number)


def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(files(__package__).joinpath(name).read_bytes(), infer_schema=False)
