"""When simulated hospital episodes begin and end, and what happens in them; all times in seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MINUTE, HOUR, DAY = 60, 3600, 86_400
GRACE = DAY  # prediction time after discharge
SHORT = 0.12  # share of ICU stays that end within a day, whoever the patient is
NEVER = np.iinfo(np.int64).max // 4  # later than anything


@dataclass(frozen=True)
class Plan:
    """What is decided about an episode before its times are drawn; all [n].

    Args:
        admit: Admission.
        earliest: Registration in the emergency department is not before it.
        emergency: Whether the patient comes through the emergency department.
        icu: Whether there is an ICU stay.
        icu_from: The ICU stay begins at or after it.
        icu_until: The ICU stay begins at or before it.
        death: Whether the patient dies in hospital.
        slow: Whether he then doesn't die within thirty hours.
    """

    admit: Ints
    earliest: Ints
    emergency: Bools
    icu: Bools
    icu_from: Ints
    icu_until: Ints
    death: Bools
    slow: Bools


@dataclass(frozen=True)
class Episodes:
    """Hospital episodes: one or two admissions, at most a day apart; all [n].

    Args:
        start: Registration in the emergency department, or admission.
        admit: First admission.
        left: When the first admission ended: ``end`` where there is only one.
        again: Second admission; ``NEVER`` where there is none.
        end: Discharge from the last admission.
        chained: Whether there are two admissions.
        emergency: Whether the episode began in the emergency department.
        icu: Whether there is an ICU stay.
        icu_in: It began; ``NEVER`` where there is none.
        icu_out: It ended; ``NEVER`` where there is none.
        back_in: A second ICU stay began; ``NEVER`` where there is none.
        back_out: The second ICU stay ended; ``NEVER`` where there is none.
        death: Whether the patient died in hospital.
        died: When he did; ``NEVER`` where he did not. It may follow the discharge by some minutes.
        short: Whether the ICU stay was over within a day.
    """

    start: Ints
    admit: Ints
    left: Ints
    again: Ints
    end: Ints
    chained: Bools
    emergency: Bools
    icu: Bools
    icu_in: Ints
    icu_out: Ints
    back_in: Ints
    back_out: Ints
    death: Bools
    died: Ints
    short: Bools

    def __len__(self) -> int:
        return len(self.start)

    @property
    def discharge_time(self) -> Ints:
        """Prediction time after discharge."""
        return self.end + GRACE

    @property
    def landmark_time(self) -> Ints:
        """Prediction time in the ICU; late beyond everything where there is no stay."""
        return np.where(self.icu, self.icu_in + DAY, NEVER)

    @property
    def in_unit(self) -> Bools:
        """Whether the patient was alive and in the ICU a day after he came there."""
        return self.icu & ~self.short

    def take(self, rows: Ints) -> Self:
        """Some of them, in the given order."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw(rng: np.random.Generator, plan: Plan) -> Episodes:
    """Draw the times of episodes.

    Lengths do not depend on how the patient is, so that who is still in the ICU after a day doesn't tell about it. The
    longest episode takes twelve days.
    """
    n = len(plan.admit)
    registered = np.maximum(plan.admit - rng.integers(60, 720, n) * MINUTE, plan.earliest)
    start = np.where(plan.emergency, np.minimum(registered, plan.admit - MINUTE), plan.admit)
    start = np.where(plan.emergency & (start >= plan.earliest), start, plan.admit)
    emergency = start < plan.admit
    at_once = rng.integers(5 * MINUTE, HOUR, n)
    delay = np.where(rng.random(n) < 0.55, at_once, rng.integers(3 * HOUR, 60 * HOUR, n))
    icu_in = np.clip(plan.admit + delay, plan.icu_from, np.maximum(plan.icu_until, plan.icu_from))
    short = rng.random(n) < SHORT
    stay = np.clip(np.exp(rng.normal(np.log(32 * HOUR), 0.9, n)), 2 * HOUR, 5 * DAY).astype(np.int64)
    icu_out = icu_in + np.where(short, rng.integers(3 * HOUR, 23 * HOUR, n), DAY + stay)
    in_icu = plan.death & (rng.random(n) < 0.6) & ~(short & plan.slow)
    ward = rng.integers(10 * HOUR, 3 * DAY, n)
    ward = np.where(plan.death & short & plan.slow, np.maximum(ward, 30 * HOUR), ward)
    # a few go home from the ICU
    ward = np.where(in_icu | (~plan.death & (rng.random(n) < 0.04)), 0, ward)
    usual = np.clip(np.exp(rng.normal(np.log(2.9 * DAY), 0.7, n)), 14 * HOUR, 11 * DAY).astype(np.int64)
    usual = np.where(plan.death, np.maximum(usual, 30 * HOUR), usual)
    end = np.where(plan.icu, icu_out + ward, plan.admit + usual)
    end = -(-end // MINUTE) * MINUTE  # moves in and out of an ICU are known to the second, admissions to the minute
    icu_in, icu_out = np.where(plan.icu, icu_in, NEVER), np.where(plan.icu, icu_out, NEVER)
    left, again = _chain(rng, plan, icu_in, icu_out, end)
    back_in, back_out = _back(rng, icu_out, end, again)
    # in four of ten the death is recorded after the discharge
    after = np.where(rng.random(n) < 0.4, rng.integers(MINUTE, 40 * MINUTE, n), -rng.integers(0, 20 * MINUTE, n))
    died = np.where(plan.death, end + after // MINUTE * MINUTE, NEVER)
    return Episodes(
        start, plan.admit, left, again, end, again < NEVER, emergency, plan.icu, icu_in, icu_out, back_in, back_out,
        plan.death, died, short & plan.icu,
    )  # fmt: skip


def _chain(rng: np.random.Generator, plan: Plan, icu_in: Ints, icu_out: Ints, end: Ints) -> tuple[Ints, Ints]:
    """When the first admission ended and the second began: transfers, re-registrations, never within an ICU stay."""
    n = len(end)
    before = plan.icu & (icu_in - plan.admit > 5 * HOUR) & (rng.random(n) < 0.5)
    low = np.where(plan.icu & ~before, icu_out, plan.admit) + HOUR
    high = np.where(before, icu_in, end) - HOUR
    room = high - low
    chained = (rng.random(n) < 0.13) & (room > 3 * HOUR)
    split = low + (np.maximum(room, 1) * rng.uniform(0.1, 0.5, n)).astype(np.int64)
    wide = rng.random(n)
    gap = rng.integers(0, 16, n) * MINUTE  # of most: none to a quarter of an hour
    # 24 hours are still one episode
    gap = np.where((wide < 0.15) & (high - split > DAY + HOUR), DAY, gap)
    gap = np.where((wide > 0.85) & (high - split > 8 * HOUR), rng.integers(HOUR, 7 * HOUR, n), gap)
    split = split // MINUTE * MINUTE
    return np.where(chained, split, end), np.where(chained, split + gap, NEVER)


def _back(rng: np.random.Generator, icu_out: Ints, end: Ints, again: Ints) -> tuple[Ints, Ints]:
    """A second ICU stay in the same admission, of a few."""
    n = len(end)
    room = end - np.where(icu_out < NEVER, icu_out, end)
    comes = (room > 30 * HOUR) & (again == NEVER) & (rng.random(n) < 0.15)
    begin = np.where(comes, icu_out, 0) + rng.integers(4 * HOUR, 8 * HOUR, n)
    return np.where(comes, begin, NEVER), np.where(comes, begin + rng.integers(6 * HOUR, 18 * HOUR, n), NEVER)
