"""The course of simulated hospital stays: when they were where, and how it ended."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_eicu.simulated.columns import COLUMNS
from mmnar_eicu.simulated.population import ADMISSIONS, PERSONS, persons
from mmnar_lightning.simulation import CausalModel, Draw, Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Values = NDArray[Any] | pl.Series | Sequence[str] | str  # a column, or one text for all its rows
DAY = 1440
PRE_STEPDOWN, ICU, BED_MOVE, POST_STEPDOWN, SECOND_ICU = range(5)
_KINDS = 8  # room for unit stays of one hospital stay in the numbering of ids
_SPAN = 1 << 22  # more minutes than any stay: keys of (stay, minute) never overlap
_ROWS = 250_000  # room for the rows of one table and chunk in the numbering of row ids


@dataclass(frozen=True)
class UnitStays:
    """Unit stays, ordered by hospital stay and start; times in minutes from the first ICU admission. All are [S].

    Args:
        hospital: Row of the hospital stay.
        start: Unit admission.
        end: Unit discharge.
        kind: ``PRE_STEPDOWN`` … ``SECOND_ICU``.
        id: ``patientunitstayid``.
    """

    hospital: Ints
    start: Ints
    end: Ints
    kind: Ints
    id: Ints


class Course:
    """One chunk of hospital stays, with their timeline. Times are minutes from the first ICU admission of the stay.

    Args:
        model: The population.
        number: Of the chunk.
    """

    def __init__(self, model: CausalModel, number: int) -> None:
        self.number = number
        self._seed = model.seed
        self.model = model
        self._written: dict[str, int] = {}
        drawn = model.chunk(number)
        rng = self.generator("course")
        first = drawn.index % ADMISSIONS == 0
        kept = np.flatnonzero(first | (rng.random(len(drawn)) < 0.12))
        self.draw = _take(drawn, kept)
        n = len(kept)
        # index numbers stays over all chunks, `hospital` is the row in this one
        self.index: Ints = self.draw.index
        self.person: Ints = persons(self.index)
        self.death, self.long_stay, readmission = (self.draw.outcomes[:, k].copy() for k in range(3))
        self.end = self._lengths(rng, n)
        self.unit_death = self.death & (rng.random(n) < 0.6)
        self.direct = ~self.death & (rng.random(n) < 0.1)
        self.readmitted = readmission & ~self.unit_death & ~self.direct
        self._later(rng, n)
        self.stays = self._unit_stays(rng, n)
        self._keys = self.stays.hospital * _SPAN + self.stays.start + _SPAN // 2

    def _lengths(self, rng: np.random.Generator, n: int) -> Ints:
        """Length of the first ICU episode: one in eight under a day, whoever the patient is."""
        usual = np.clip(np.exp(rng.normal(np.log(2.1 * DAY), 0.55, n)), 1500, 6.9 * DAY)
        usual = np.where(self.long_stay, rng.uniform(7.05 * DAY, 14 * DAY, n), usual)
        return np.where(rng.random(n) < 0.12, rng.integers(180, 1431, n), usual).astype(np.int64)

    def _later(self, rng: np.random.Generator, n: int) -> None:
        """What follows the first episode: stepdown unit, second episode, ward, end of the hospital stay."""
        self.lead = np.where(rng.random(n) < 0.3, rng.integers(0, 30, n), np.exp(rng.normal(5.3, 1.2, n)).astype(int))
        self.stepdown = ~self.unit_death & ~self.direct & (rng.random(n) < 0.12)
        self.stepdown_start = self.end + rng.integers(0, 20, n)
        self.stepdown_end = self.stepdown_start + rng.integers(300, 3000, n)
        left = np.where(self.stepdown, self.stepdown_end, self.end)
        # 61 minutes apart is the shortest gap that makes two episodes of it
        self.second_start = left + np.maximum(61, np.exp(rng.normal(np.log(DAY), 1.0, n)).astype(np.int64))
        self.second_end = self.second_start + rng.integers(DAY // 2, 5 * DAY, n)
        self.second_death = self.readmitted & self.death & (rng.random(n) < 0.5)
        last = np.where(self.readmitted, self.second_end, left)
        ward = 61 + np.exp(rng.normal(np.log(2.5 * DAY), 0.8, n)).astype(np.int64)
        at_once = np.where(rng.random(n) < 0.3, 0, rng.integers(1, 61, n))
        self.left_icu: Ints = np.where(self.readmitted, self.second_end, self.end)
        self.died_in_icu: Bools = self.unit_death | self.second_death
        self.hospital_end: Ints = np.where(self.died_in_icu, self.left_icu, last + np.where(self.direct, at_once, ward))

    def _unit_stays(self, rng: np.random.Generator, n: int) -> UnitStays:
        every, zero = np.arange(n), np.zeros(n, np.int64)
        moved = rng.random(n) < 0.15
        move = (self.end * rng.uniform(0.2, 0.8, n)).astype(np.int64)
        # bed moves: most leave no gap, and 60 minutes are still one episode
        gap = np.where(rng.random(n) < 0.7, 0, np.where(rng.random(n) < 0.2, 60, rng.integers(1, 60, n)))
        gap = np.minimum(gap, (self.end - move) // 2)
        before = rng.random(n) < 0.02
        pre_end = -rng.integers(0, 20, n)
        pre_start = pre_end - rng.integers(200, 2000, n)
        self.lead = np.where(before, self.lead - pre_start, self.lead)
        parts = [
            (PRE_STEPDOWN, before, pre_start, pre_end),
            (ICU, np.ones(n, bool), zero, np.where(moved, move, self.end)),
            (BED_MOVE, moved, move + gap, self.end),
            (POST_STEPDOWN, self.stepdown, self.stepdown_start, self.stepdown_end),
            (SECOND_ICU, self.readmitted, self.second_start, self.second_end),
        ]
        hospital = np.concatenate([every[mask] for _, mask, _, _ in parts])
        start = np.concatenate([begin[mask] for _, mask, begin, _ in parts])
        end = np.concatenate([stop[mask] for _, mask, _, stop in parts])
        kind = np.concatenate([np.full(mask.sum(), code) for code, mask, _, _ in parts])
        order = np.lexsort((start, hospital))
        hospital, start, end, kind = hospital[order], start[order], end[order], kind[order]
        # ids don't tell the order of the stays in one hospital stay of five
        shown = np.where(rng.random(n)[hospital] < 0.2, _KINDS - 1 - kind, kind)
        return UnitStays(hospital, start, end, kind, 141_000 + self.index[hospital] * _KINDS + shown)

    def generator(self, *words: str) -> np.random.Generator:
        """A generator of its own for one purpose, so that tables don't depend on each other."""
        key = [zlib.crc32(word.encode()) for word in words]
        sequence = np.random.SeedSequence(self._seed, spawn_key=(9, self.number, *key))
        return np.random.Generator(np.random.Philox(sequence))

    def available(self, modality: str) -> Bools:
        """Whether each hospital stay has the modality, [H]."""
        return self.draw.available[:, self.model.names.index(modality)]

    def visits(self, modality: str | None = None) -> tuple[Ints, Ints, Ints]:
        """ICU episodes of the hospital stays that have the modality: hospital row, start, minutes recorded, each [E].

        Ordinary records are written in the first three days of an episode.
        """
        has = np.ones(len(self.index), bool) if modality is None else self.available(modality)
        first, second = np.flatnonzero(has), np.flatnonzero(has & self.readmitted)
        hospital = np.concatenate([first, second])
        start = np.concatenate([np.zeros(len(first), np.int64), self.second_start[second]])
        stop = np.concatenate([self.end[first], self.second_end[second]])
        return hospital, start, np.minimum(stop - start, 3 * DAY)

    def locate(self, hospital: Ints, time: Ints) -> Ints:
        """Unit stay that a moment belongs to, [n]: the last one begun by then, or the first of the hospital stay."""
        found = np.searchsorted(self._keys, hospital * _SPAN + time + _SPAN // 2, side="right") - 1
        return np.maximum(found, np.searchsorted(self.stays.hospital, hospital, side="left"))

    def table(
        self,
        name: str,
        hospital: Ints,
        time: Ints,
        times: dict[str, Ints],
        columns: dict[str, Values],
        duplicates: float = 0.0,
    ) -> pl.DataFrame:
        """Rows of one raw table, with all its columns; those not given are empty.

        Args:
            name: Of the raw file.
            hospital: Row of the hospital stay, [n].
            time: When it happened; decides which unit stay the row is filed under, [n].
            times: Columns that hold times, [n] each; written as offsets from that unit stay's admission.
            columns: Other columns: a series or array of n, or one value for all.
            duplicates: Share of rows that stand there twice, with another row id.

        Raises:
            ValueError: If the chunk holds more rows than there are ids for.
        """
        stay = self.locate(hospital, time)
        start = self.stays.start[stay]
        given: dict[str, Values] = {column: when - start for column, when in times.items()} | columns
        given["patientunitstayid"] = self.stays.id[stay]
        frame = pl.select(pl.int_range(len(hospital), dtype=pl.Int64).alias("row")).with_columns(
            pl.lit(value).alias(column) if isinstance(value, str) else pl.Series(column, value)
            for column, value in given.items()
        )
        written = self._written.get(name, 0)
        rng = self.generator(name, f"ids from {written}")
        if duplicates:
            again = np.flatnonzero(rng.random(len(frame)) < duplicates)
            frame = pl.concat([frame, frame[again]])
        self._written[name] = written + len(frame)
        if self._written[name] > _ROWS:
            raise ValueError(f"{name}: {self._written[name]} rows in one chunk; ids are kept for {_ROWS}")
        ids = 1_000_000 + self.number * _ROWS + written + rng.permutation(len(frame))
        key = COLUMNS[name][0]
        missing = [pl.lit(None, pl.String).alias(c) for c in COLUMNS[name] if c not in frame.columns and c != key]
        return frame.with_columns(pl.Series(key, ids), *missing).select(COLUMNS[name])

    def cut(self, frame: pl.DataFrame, patients: int) -> pl.DataFrame:
        """Keep the rows of the first so many persons."""
        if (self.number + 1) * PERSONS <= patients:
            return frame
        return frame.filter((pl.col("patientunitstayid") - 141_000) // (_KINDS * ADMISSIONS) < patients)


def _take(draw: Draw, rows: Ints) -> Draw:
    return Draw(
        draw.index[rows],
        draw.latent[rows],
        {name: x[rows] for name, x in draw.values.items()},
        draw.available[rows],
        draw.propensity[rows],
        draw.outcomes[rows],
        draw.risk[rows],
    )


def standard(course: Course, modality: str) -> Floats:
    """The values of a modality, scaled to variance 1, [H, F]."""
    view = next(v for v in course.model.views if v.name == modality)
    scaled: Floats = course.draw.values[modality] / float(np.sqrt(1.0 + view.noise**2))
    return scaled
