"""Moments at which rows are written that must not count: before the window, after the prediction time, too late.

Who reads them betrays himself: in them, the sick who will die or return look their worst, and the others look well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated.course import Course
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, Bools, Ints

WORST = 2.5  # standardised value of whoever will die or return; that of the others is its opposite


@dataclass(frozen=True)
class Moments:
    """Rows to write; all [n].

    Args:
        e: Row of the episode they are near to.
        time: When it happened.
        stored: When it was entered.
    """

    e: Ints
    time: Ints
    stored: Ints

    def __len__(self) -> int:
        return len(self.e)

    def score(self, course: Course) -> Floats:
        """A standardised value for each row, that tells what will become of the patient."""
        fates, p = course.fates, course.person[self.e]
        bad = fates.early_return[p] | fates.early_death[p]
        return np.where(bad | course.episodes.death[self.e], WORST, -WORST)


def before(course: Course, rng: np.random.Generator, share: float) -> Moments:
    """Days before the window of an episode."""
    s = course.episodes
    low, high = np.maximum(course.quiet_from, s.start - 20 * DAY), s.start - 2 * HOUR
    return _drawn(rng, share, low, high, high - low > 2 * HOUR)


def after(course: Course, rng: np.random.Generator, share: float) -> Moments:
    """Days after the prediction time of those who left alive, and before they come back."""
    s = course.episodes
    low = s.discharge_time + HOUR
    high = np.minimum(course.quiet_until, low + 20 * DAY)
    return _drawn(rng, share, low, high, ~s.death & (high - low > 2 * HOUR))


def pending(course: Course, rng: np.random.Generator, share: float, begin: Ints, end: Ints) -> Moments:
    """Moments between two, of which the result came after the prediction time."""
    s = course.episodes
    found = _drawn(rng, share, begin, end, end - begin > HOUR)
    stored = s.discharge_time[found.e] + rng.integers(MINUTE, 3 * DAY, len(found))
    return Moments(found.e, found.time, stored)


def pending_in_unit(course: Course, rng: np.random.Generator, modality: str) -> Moments:
    """Moments before the landmark, of which the result came after it; where the modality is there only later."""
    s = course.episodes
    late = course.late[modality] & course.after_discharge[modality]
    begin = s.icu_in if modality == "vitals" else s.start
    found = _drawn(rng, 0.5, begin, s.landmark_time, late)
    stored = s.landmark_time[found.e] + rng.integers(MINUTE, 6 * HOUR, len(found))
    return Moments(found.e, found.time, stored)


def dying(course: Course, rng: np.random.Generator) -> Moments:
    """The last hours of those who die after the landmark."""
    s = course.episodes
    there = s.death & s.in_unit
    low = np.maximum(s.landmark_time + 30 * MINUTE, s.end - 12 * HOUR)
    return _drawn(rng, 1.0, low, s.end, there)


def _drawn(rng: np.random.Generator, share: float, low: Ints, high: Ints, there: Bools) -> Moments:
    """One moment between low and high, on the minute, for a share of the episodes."""
    e = np.flatnonzero(there & (rng.random(len(there)) < share))
    first, last = -(-low[e] // MINUTE), high[e] // MINUTE
    time = rng.integers(first, np.maximum(last, first + 1)) * MINUTE
    return Moments(e, time, time + rng.integers(10, 60, len(e)) * MINUTE)
