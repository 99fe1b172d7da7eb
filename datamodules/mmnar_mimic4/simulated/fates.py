"""What becomes of simulated patients: who comes back when, who dies when, and how likely that was."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated.timeline import DAY, GRACE, HOUR, MINUTE, NEVER, Bools, Ints, Plan, draw

PLANNED = 0.2  # share of the returns that were planned, whoever the patient is
IN_HOSPITAL_EARLY, IN_HOSPITAL_LATE = 0.6, 0.3  # who returned and dies within 30 or 180 days: dies there
# shares of those who leave alive that die or come back within the grace, whoever they are
IN_GRACE, AT_ONCE = 0.015, 0.01
GAP = 0.15  # of the deaths within 30 days of discharge: not within 30 days of the ICU landmark
POST_TASKS = (
    "readmission_30d_any", "readmission_30d_unplanned", "readmission_90d", "icu_90d", "mortality_30d",
    "mortality_180d", "death_or_readmission_30d",
)  # fmt: skip
ICU_TASKS = ("mortality_hospital", "mortality_30d")


def _day(moment: Ints) -> Ints:
    return moment // DAY


class Fates:
    """Both episodes of each of P persons, and their deaths. What could not happen to him does not.

    Args:
        rng: Where chance comes from.
        admit: First admission, [P].
        emergency: Whether each episode would begin in the emergency department, [P, 2].
        minor: Whether he is under age; he then does not come back, [P].
        happens: What the model drew, bool [P] by name.
        risk: How likely it was, [P] by name.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        admit: Ints,
        emergency: Bools,
        minor: Bools,
        happens: dict[str, Bools],
        risk: dict[str, Floats],
    ) -> None:
        n = len(admit)
        self.chances = risk
        # outside of an ICU one in seven of those deaths happens
        death = happens["death"] & (happens["icu"] | (rng.random(n) < 0.15))
        long_ago = np.zeros(n, np.int64)
        self.first = draw(
            rng,
            Plan(admit, long_ago, emergency[:, 0], happens["icu"], long_ago, long_ago + NEVER, death, long_ago > 0),
        )
        hurried = rng.random(n)
        self.in_grace: Bools = ~death & (hurried < IN_GRACE)
        self.at_once: Bools = ~death & ~minor & (hurried > 1 - AT_ONCE)
        alive = ~death & ~self.in_grace & ~minor & ~self.at_once
        self.early_return = alive & happens["early_return"]
        self.early_death = alive & happens["early_death"]
        self.late_return = alive & happens["late_return"] & ~self.early_return & ~self.early_death
        self.late_death = alive & happens["late_death"] & ~self.early_death
        calm = alive & ~(self.early_return | self.early_death | self.late_return | self.late_death)
        odd = rng.random(n)
        # months later, long after all windows; and one minute after the window of 90 days
        self.distant: Bools = calm & (odd < 0.15)
        self.just_out: Bools = calm & (odd > 0.96)
        # and death after them
        self.outlives: Bools = calm & (odd > 0.93) & ~self.just_out
        self.returns: Bools = self.early_return | self.late_return | self.distant | self.just_out | self.at_once
        self._second(rng, emergency[:, 1], happens)
        self._deaths(rng)

    def _second(self, rng: np.random.Generator, emergency: Bools, happens: dict[str, Bools]) -> None:
        n = len(emergency)
        base = self.first.discharge_time
        doomed = self.early_return & self.early_death
        since = np.select(
            [self.early_return, self.late_return, self.distant],
            [
                _within(rng, 0, np.where(doomed, 6 * DAY, 30 * DAY)),
                _within(rng, 30 * DAY, np.full(n, 90 * DAY)),
                rng.integers(182 * DAY, 600 * DAY, n),
            ],
            90 * DAY + MINUTE,
        )
        admit = base + since // MINUTE * MINUTE
        # registered before the end of the grace, admitted after it
        admit = np.where(self.at_once, base + rng.integers(2, 50, n) * MINUTE, admit)
        self.planned: Bools = rng.random(n) < PLANNED
        self.icu_return: Bools = self.returns & happens["icu_return"] & ~self.just_out & ~self.at_once
        # back before day 90, but in the ICU only after it
        too_late = self.late_return & ~self.icu_return & (since > 85 * DAY) & (rng.random(n) < 0.5)
        until = np.where(self.late_return & ~too_late, base + 90 * DAY - 30, NEVER)
        begin = np.where(too_late, base + 90 * DAY + MINUTE + rng.integers(0, 2 * HOUR, n), 0)
        coin = rng.random(n)
        death = (doomed & (coin < IN_HOSPITAL_EARLY)) | (self.late_return & self.late_death & (coin < IN_HOSPITAL_LATE))
        death |= self.distant & happens["second_death"] & (self.icu_return | (rng.random(n) < 0.15))
        self.distant_death: Bools = self.distant & ~death & happens["second_early_death"]
        icu = self.icu_return | too_late
        earliest = np.where(self.at_once, 0, base + MINUTE)
        arrives = emergency | self.at_once
        self.second = draw(rng, Plan(admit, earliest, arrives, icu, begin, until, death, np.ones(n, bool)))

    def _deaths(self, rng: np.random.Generator) -> None:
        """Day of death of everyone, in days since 1970, and ``NEVER``; in hospital it is that of the time of death."""
        first, second = self.first, self.second
        base, n = first.discharge_time, len(first)
        self.dies_back: Bools = self.returns & second.death
        at_home = ~self.dies_back
        low, high = np.zeros(n, np.int64), np.full(n, -1)

        def place(who: Bools, begin: Ints, stop: Ints) -> None:
            np.copyto(low, begin, where=who)
            np.copyto(high, stop, where=who)

        # who dies on a day is dead at its end: the day of a moment still ends after it
        today, month, half = _day(base), _day(base + 30 * DAY), _day(base + 180 * DAY)
        landmark = _day(first.icu_in + 31 * DAY)
        soon = np.where(first.in_unit, np.minimum(landmark, month), month)
        self.room: Bools = first.in_unit & (month > landmark)
        alone = self.early_death & ~self.early_return
        place(alone, today, soon - 1)
        place(alone & self.room & (rng.random(n) < GAP), landmark, month - 1)
        # who returned soon enough dies within both windows
        place(self.early_death & self.early_return & at_home, _day(second.end) + 1, soon - 1)
        place(self.late_death & ~self.returns, month, half - 1)
        place(self.late_death & self.early_return, today + 68, half - 1)
        place(self.late_death & self.late_return & at_home, today + 128, half - 1)
        place(self.outlives, half, half + 200)
        left, landmark = _day(second.end + GRACE), _day(second.icu_in + 31 * DAY)
        month = _day(second.end + GRACE + 30 * DAY)
        soon = np.where(second.in_unit, np.minimum(landmark, month), month)
        self.later_room: Bools = second.in_unit & (month > landmark)
        place(self.distant_death, left, soon - 1)
        place(self.distant_death & self.later_room & (rng.random(n) < GAP), landmark, month - 1)
        # the day of discharge: over before the grace is
        place(self.in_grace, _day(first.end), _day(first.end))
        odd = rng.random(n)
        drawn = low + (rng.random(n) * (np.maximum(high, low) - low + 1)).astype(np.int64)
        drawn = np.select([odd < 0.08, odd > 0.92], [low, np.maximum(high, low)], drawn)
        self.death_day: Ints = np.select(
            [first.death, self.dies_back, high >= 0], [_day(first.died), _day(second.died), drawn], NEVER
        )

    def labels(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Labels and risks after discharge from the first episode: columns `POST_TASKS`, P rows each."""
        p = self.chances
        early, death = p["early_return"], p["early_death"]
        late_return = (1 - early) * p["late_return"] * (1 - death)
        returned = self.early_return | self.late_return
        labels = {
            "readmission_30d_any": self.early_return,
            "readmission_30d_unplanned": self.early_return & ~self.planned,
            "readmission_90d": returned,
            "icu_90d": returned & self.icu_return,
            "mortality_30d": self.early_death,
            "mortality_180d": self.early_death | self.late_death,
            "death_or_readmission_30d": self.early_return | self.early_death,
        }
        risks = {
            "readmission_30d_any": early,
            "readmission_30d_unplanned": early * (1 - PLANNED),
            "readmission_90d": early + late_return,
            "icu_90d": (early + late_return) * p["icu_return"],
            "mortality_30d": death,
            "mortality_180d": death + (1 - death) * p["late_death"],
            "death_or_readmission_30d": 1 - (1 - early) * (1 - death),
        }
        return pl.DataFrame(labels), pl.DataFrame(risks)

    def landmark_labels(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Labels and risks in the ICU of the first, then of the second episode: columns `ICU_TASKS`, P rows each."""
        p = self.chances
        first, second = self.first, self.second
        month = _day(first.icu_in + 31 * DAY)
        labels = {"mortality_hospital": first.death, "mortality_30d": self.death_day < month}
        gap = np.where(self.room, GAP, 0.0)
        # a return within 30 days puts an early death after it, and so does not leave it to chance when it comes
        soon = p["early_death"] * (1 - (1 - p["early_return"]) * gap)
        soon = IN_GRACE + (1 - IN_GRACE - AT_ONCE) * soon
        risks = {"mortality_hospital": p["death"], "mortality_30d": p["death"] + (1 - p["death"]) * soon}
        month = _day(second.icu_in + 31 * DAY)
        later_labels = {"mortality_hospital": second.death, "mortality_30d": self.death_day < month}
        gap = np.where(self.later_room, GAP, 0.0)
        distant = p["death"] + (1 - p["death"]) * p["early_death"] * (1 - gap)
        kinds = [self.early_return, self.late_return]
        later_risks = {
            "mortality_hospital": np.select(
                kinds, [p["early_death"] * IN_HOSPITAL_EARLY, p["late_death"] * IN_HOSPITAL_LATE], p["death"]
            ),
            "mortality_30d": np.select(kinds, [p["early_death"], p["late_death"] * IN_HOSPITAL_LATE], distant),
        }
        return pl.DataFrame(labels), pl.DataFrame(risks), pl.DataFrame(later_labels), pl.DataFrame(later_risks)


def _within(rng: np.random.Generator, low: int, high: Ints) -> Ints:
    """Moments strictly within a window, some of them a minute from its ends."""
    n = len(high)
    drawn = rng.integers(low + MINUTE, high - MINUTE, n)
    odd = rng.random(n)
    return np.select([odd < 0.04, odd > 0.96], [np.full(n, low + MINUTE), high - MINUTE], drawn)
