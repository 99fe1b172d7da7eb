"""One chunk of simulated persons: their episodes, what is available in them, and the rows that are written about it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.simulation import CausalModel, Floats
from mmnar_mimic4.simulated.columns import COLUMNS
from mmnar_mimic4.simulated.fates import Fates
from mmnar_mimic4.simulated.population import EPISODES, MODALITIES, PERSONS
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, NEVER, Bools, Episodes, Ints

Column = NDArray[Any] | pl.Series | Sequence[str]
Values = Column | str | int  # a column, or one value for all its rows
LAST_YEAR = {"2.2": 2019, "3.1": 2022}
GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019", "2020 - 2022")
SUBJECTS, _SUBJECT_STEP = 10_000_000, 9
MOST = (20_000_000 - SUBJECTS) // _SUBJECT_STEP  # subject ids have eight digits and begin with 1
FILMED = (2011, 2016)  # real years in which films of patients in the emergency department were collected
LAST_NOTES = 2019  # real year
LATE = 0.12  # share of the modalities of a long stay that are there only after the ICU landmark
_NINETY = 91  # an anchor age of over 89
_ROWS = 1 << 21  # room for the rows of one table and chunk in the numbering of row ids
_EPOCH = np.datetime64("1970-01-01", "D")


class Course:
    """One chunk of persons. Arrays of [P] hold persons, arrays of [E] the hospital episodes that took place.

    Args:
        model: The population.
        number: Of the chunk.
        release: Version of MIMIC-IV.
        filmed: Whether there are films at all.
    """

    def __init__(self, model: CausalModel, number: int, release: str, filmed: bool) -> None:
        self.number, self.model, self.release, self.filmed = number, model, release, filmed
        self._written: dict[str, int] = {}
        self.latent, values, available, propensity, urgency = self._health()
        rng = self.generator("course")
        self._calendar(rng, values["structured"][0::EPISODES])
        self.fates = self._fates(rng, urgency)
        self._real_years()
        kept = np.stack([np.ones(PERSONS, bool), self.fates.returns & ~self.cut_off], axis=1).ravel()
        # row of the unit of the model that each episode is, [E]
        self.unit: Ints = np.flatnonzero(kept)
        self.person: Ints = self.unit // EPISODES  # row in the chunk
        self.second: Bools = self.unit % EPISODES == 1
        self.values = {name: x[self.unit] for name, x in values.items()}
        self.propensity: Floats = propensity[self.unit]
        self.drawn: Bools = available[self.unit]
        self.episodes = _weave(self.fates.first, self.fates.second).take(self.unit)
        self.planned: Bools = np.where(self.second, self.fates.planned[self.person], self._first_planned(urgency))
        self._identify(rng)
        self._availability(rng)
        self._limits()

    def _health(self) -> tuple[Floats, dict[str, Floats], Bools, Floats, Floats]:
        """Latent health [P, L]; values, availability, propensity and urgency of both episodes of everyone, [2P, …]."""
        drawn = self.model.chunk(self.number)
        latent = drawn.latent[0::EPISODES]
        shared = np.repeat(latent, EPISODES, axis=0)
        # the second episode is of the same person: his health, with noise of its own
        values = {
            name: x + self.model.mean(name, shared) - self.model.mean(name, drawn.latent)
            for name, x in drawn.values.items()
        }
        values["structured"][1::EPISODES, 0] = values["structured"][0::EPISODES, 0]
        propensity = self.model.propensity(shared, values)
        available = drawn.available.copy()
        again = self.generator("available").random((PERSONS, available.shape[1])) < propensity[1::EPISODES]
        available[1::EPISODES] = again
        self._first_risk, self._first_outcomes = drawn.risk[0::EPISODES], drawn.outcomes[0::EPISODES]
        urgency = standardised(self.model, "structured", values["structured"])[:, 1]
        return latent, values, available, propensity, urgency

    def _calendar(self, rng: np.random.Generator, structured: Floats) -> None:
        """First admission, age, anchor year and group of everyone, [P]."""
        groups = 4 if self.release == "2.2" else 5
        day = rng.integers(np.datetime64("2112-01-01").astype(int), np.datetime64("2206-01-01").astype(int), PERSONS)
        self.first_admit: Ints = day * DAY + rng.integers(0, 1440, PERSONS) * MINUTE
        self.group: Ints = rng.integers(0, 5, PERSONS) % groups
        within = rng.integers(0, 3, PERSONS)
        apart = rng.choice([0, 1, 2, -1], PERSONS, p=[0.84, 0.07, 0.05, 0.04])
        minor = rng.random(PERSONS) < 0.007
        apart = np.where(minor, -1, apart)
        low = 2008 + 3 * self.group
        real = low + within + apart  # real year of the first admission
        apart = np.where((real < 2008) | (real > LAST_YEAR[self.release]), np.where(minor, -1, 0), apart)
        within = np.where((apart == -1) & (within == 0) & (low == 2008), 1, within)
        self.apart: Ints = apart
        # real minus shifted year, for all dates of a person
        self.shift: Ints = low + within + apart - year(self.first_admit)
        self.anchor_year: Ints = year(self.first_admit) - apart
        score = standardised(self.model, "structured", structured)[:, 0]
        age = np.clip(np.round(62 + 17 * score), 18, 101).astype(np.int64)
        anchor_age = np.where(minor, 18, np.maximum(age - apart, 18))
        self.anchor_age: Ints = np.where(anchor_age > 89, _NINETY, anchor_age)
        self.minor: Bools = self.anchor_age + apart < 18

    def _fates(self, rng: np.random.Generator, urgency: Floats) -> Fates:
        names = self.model.outcome_names
        happens = {name: self._first_outcomes[:, k] for k, name in enumerate(names)}
        risk = {name: self._first_risk[:, k] for k, name in enumerate(names)}
        for name in ("death", "early_death"):
            happens[f"second_{name}"] = rng.random(PERSONS) < risk[name]
        emergency = urgency.reshape(PERSONS, EPISODES) > -0.35
        return Fates(rng, self.first_admit, emergency, self.minor, happens, risk)

    def _first_planned(self, urgency: Floats) -> Bools:
        """Whether the first episode of each episode's person was planned, [E]."""
        rng = self.generator("planned")
        first = urgency[0::EPISODES]
        planned = np.where(first > -0.35, rng.random(PERSONS) < 0.12, (first < -1.0) | (rng.random(PERSONS) < 0.2))
        return np.asarray(planned[self.person])

    def _real_years(self) -> None:
        # what is after the last year of the release is in no table
        self.cut_off: Bools = year(self.fates.second.admit) + self.shift > LAST_YEAR[self.release]

    def _identify(self, rng: np.random.Generator) -> None:
        """Ids: persons in order, admissions and stays in none."""
        whole = self.number * PERSONS + np.arange(PERSONS)
        self.subject: Ints = SUBJECTS + _SUBJECT_STEP * whole + rng.integers(0, _SUBJECT_STEP, PERSONS)
        slots = rng.permuted(np.tile(np.arange(8), (PERSONS, 1)), axis=1)
        own = whole[self.person] * 8
        column = np.where(self.second, 2, 0)
        self.first_hadm: Ints = 20_000_000 + own + slots[self.person, column]
        self.last_hadm: Ints = np.where(
            self.episodes.chained, 20_000_000 + own + slots[self.person, column + 1], self.first_hadm
        )
        # of an account that is no admission
        self.spare_hadm: Ints = 20_000_000 + own + slots[self.person, 4 + self.second]
        own = whole[self.person] * _SUBJECT_STEP
        self.stay: Ints = 30_000_000 + own + slots[self.person, column]
        self.back_stay: Ints = 30_000_000 + own + slots[self.person, column + 1]
        self.real_year: Ints = year(self.episodes.start) + self.shift[self.person]

    def _availability(self, rng: np.random.Generator) -> None:
        """Which modality is there at each of the two prediction times, bool [E] by name.

        Nothing is there that is not collected. In a long stay, some of a modality is there only after the landmark.
        """
        episodes = self.episodes
        possible = {
            "vitals": episodes.icu,
            "cxr": episodes.emergency & (self.real_year >= FILMED[0]) & (self.real_year <= FILMED[1]) & self.filmed,
            "radiology": self.real_year <= LAST_NOTES,
            "discharge": self.real_year <= LAST_NOTES,
        }
        everyone = np.ones(len(self.unit), bool)
        self.collected = {name: possible.get(name, everyone) for name in MODALITIES}
        self.after_discharge = {name: self.drawn[:, m] & self.collected[name] for m, name in enumerate(MODALITIES)}
        stays_on = episodes.in_unit & (episodes.end - episodes.landmark_time > 10 * HOUR)
        in_unit = stays_on & (episodes.icu_out - episodes.landmark_time > 4 * HOUR)
        self.late = {
            name: (in_unit if name == "vitals" else stays_on) & (rng.random(len(self.unit)) < LATE)
            for name in MODALITIES
        }
        self.late["structured"] = ~everyone
        self.at_landmark = {name: self.after_discharge[name] & ~self.late[name] for name in MODALITIES}
        del self.at_landmark["discharge"]

    def _limits(self) -> None:
        """From when and until when nobody's prediction time is near, for rows that must not count, [E]."""
        episodes, fates = self.episodes, self.fates
        previous = fates.first.discharge_time[self.person] + 2 * HOUR
        self.quiet_from: Ints = np.where(self.second, previous, episodes.start - 20 * DAY)
        last = self.second | self.cut_off[self.person] | ~fates.returns[self.person]
        coming = np.where(last, NEVER, fates.second.start[self.person] - 2 * HOUR)
        # in the few days that someone lives on he writes no history
        day = fates.death_day[self.person]
        lives = np.where(day < NEVER, (np.where(day < NEVER, day, 0) - 1) * DAY, NEVER)
        self.quiet_until: Ints = np.minimum(coming, lives)

    def generator(self, *words: str) -> np.random.Generator:
        """A generator of its own for one purpose, so that tables don't depend on each other."""
        key = [zlib.crc32(word.encode()) for word in words]
        sequence = np.random.SeedSequence(self.model.seed, spawn_key=(9, self.number, *key))
        return np.random.Generator(np.random.Philox(sequence))

    def base(self, modality: str) -> Ints:
        """When the first row of a modality may be recorded, [E]."""
        begin = self.episodes.icu_in if modality == "vitals" else self.episodes.start
        return np.where(self.late[modality], self.episodes.landmark_time + 30 * MINUTE, begin)

    def admission(self, e: Ints, time: Ints) -> Ints:
        """``hadm_id`` of the admission that a moment lies in, 0 where it lies in none, [n]."""
        s = self.episodes
        first = (time >= s.admit[e]) & (time <= s.left[e])
        again = s.chained[e] & (time >= s.again[e]) & (time <= s.end[e])
        return np.select([first, again], [self.first_hadm[e], self.last_hadm[e]], 0)

    def unit_ids(self, e: Ints, time: Ints) -> dict[str, Values]:
        """``hadm_id`` and ``stay_id`` of rows that are written in an ICU, at moments of [n]."""
        back = time >= self.episodes.back_in[e]
        last = self.episodes.icu_in >= self.episodes.again
        hadm = np.where(last, self.last_hadm, self.first_hadm)
        return {"hadm_id": hadm[e], "stay_id": np.where(back, self.back_stay[e], self.stay[e])}

    def table(self, name: str, e: Ints, columns: dict[str, Values], key: str | None = None) -> pl.DataFrame:
        """Rows of one raw table about episodes, with all its columns; those not given are empty.

        Args:
            name: Of the raw file, with its folder.
            e: Row of the episode, [n].
            columns: A series or array of n, or one value for all; integers of ``hadm_id`` that are 0 are null.
            key: Column to number through.

        Raises:
            ValueError: If the chunk holds more rows than there are numbers for.
        """
        given = {"subject_id": self.subject[self.person[e]], **columns}
        return self.frame(name, len(e), given, key)

    def frame(self, name: str, n: int, given: dict[str, Values], key: str | None = None) -> pl.DataFrame:
        """Rows of one raw table, as `table`, with ``subject_id`` among the given columns."""
        if key is not None:
            written = self._written.get(name, 0)
            self._written[name] = written + n
            if self._written[name] > _ROWS:
                raise ValueError(f"{name}: {self._written[name]} rows in one chunk; numbers are kept for {_ROWS}")
            given = given | {key: 1 + self.number * _ROWS + written + np.arange(n)}
        empty = pl.lit(None, pl.String)
        frame = pl.select(pl.int_range(n, dtype=pl.Int64).alias("row"))
        columns = [_column(given[c], c) if c in given else empty.alias(c) for c in COLUMNS[name]]
        strange = set(given) - set(COLUMNS[name])
        assert not strange, f"{name} has no columns {strange}"
        return frame.with_columns(columns).select(COLUMNS[name])

    def cut(self, frame: pl.DataFrame, patients: int) -> pl.DataFrame:
        """Keep the rows of the first so many persons."""
        if (self.number + 1) * PERSONS <= patients:
            return frame
        return frame.filter((pl.col("subject_id") - SUBJECTS) // _SUBJECT_STEP < patients)


def _column(value: Values, name: str) -> pl.Expr | pl.Series:
    if isinstance(value, str | int):
        return pl.lit(value).alias(name)
    series = pl.Series(name, value)
    return series.replace(0, None) if name == "hadm_id" else series


def _weave(first: Episodes, second: Episodes) -> Episodes:
    """Both episodes of everyone, in turn."""
    names = Episodes.__dataclass_fields__
    return Episodes(**{name: np.stack([getattr(first, name), getattr(second, name)], axis=1).ravel() for name in names})


def standardised(model: CausalModel, modality: str, values: Floats) -> Floats:
    """Values of a modality scaled to variance 1."""
    view = next(v for v in model.views if v.name == modality)
    return np.asarray(values / np.sqrt(1.0 + view.noise**2))


def standard(course: Course, modality: str) -> Floats:
    """The values of a modality, scaled to variance 1, [E, F]."""
    return standardised(course.model, modality, course.values[modality])


def year(moment: Ints) -> Ints:
    """Calendar year of moments."""
    return (_EPOCH + moment // DAY).astype("datetime64[Y]").astype(np.int64) + 1970


def when(moment: Ints, known: Bools | None = None) -> pl.Series:
    """Moments as a column of times, null where not known."""
    series = pl.from_epoch(pl.Series(np.where(moment >= NEVER, 0, moment)), time_unit="s")
    return series if known is None else hide(series, ~known)


def date(moment: Ints, known: Bools | None = None) -> pl.Series:
    """Days of moments as a column of dates, null where not known."""
    return when(moment, known).dt.date()


def hide(values: Column, hidden: Bools) -> pl.Series:
    """A column that is null where hidden."""
    return pl.select(pl.when(pl.Series(~hidden)).then(pl.Series(values))).to_series()


def turns(count: Ints) -> tuple[Ints, Ints]:
    """For `count` rows of each of n things: which thing, and the how manieth of it, [sum of count] each."""
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
