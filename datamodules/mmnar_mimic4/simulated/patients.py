"""The tables of persons, admissions and moves of a simulated extract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated import distractors
from mmnar_mimic4.simulated.course import GROUPS, Course, Values, date, hide, standard, when
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, NEVER, Bools, Ints

SERVICES = ("MED", "CMED", "SURG", "OMED", "NMED", "NSURG", "CSURG", "ORTHO", "TRAUM", "VSURG")
_SERVICE_SHARES = (0.42, 0.12, 0.11, 0.08, 0.06, 0.05, 0.05, 0.05, 0.03, 0.03)
_UNITS = (
    "Medical Intensive Care Unit (MICU)", "Medical/Surgical Intensive Care Unit (MICU/SICU)",
    "Surgical Intensive Care Unit (SICU)", "Cardiac Vascular Intensive Care Unit (CVICU)",
    "Trauma SICU (TSICU)", "Coronary Care Unit (CCU)", "Neuro Surgical Intensive Care Unit (Neuro SICU)",
)  # fmt: skip
_UNIT_SHARES = (0.23, 0.19, 0.18, 0.17, 0.11, 0.1, 0.02)
_WARDS = ("Medicine", "Med/Surg", "Neurology", "Medicine/Cardiology", "Cardiac Surgery", "Med/Surg/Trauma",
          "Transplant", "Hematology/Oncology", "Vascular", "Discharge Lounge")  # fmt: skip
_RACES = ("WHITE", "BLACK/AFRICAN AMERICAN", "OTHER", "UNKNOWN", "HISPANIC/LATINO - PUERTO RICAN",
          "WHITE - OTHER EUROPEAN", "ASIAN", "ASIAN - CHINESE", "BLACK/CAPE VERDEAN", "WHITE - RUSSIAN")  # fmt: skip
_RACE_SHARES = (0.63, 0.14, 0.035, 0.045, 0.03, 0.03, 0.02, 0.02, 0.02, 0.03)
_MARITAL = ("MARRIED", "SINGLE", "WIDOWED", "DIVORCED", "")
_MARITAL_SHARES = (0.44, 0.37, 0.1, 0.07, 0.02)
_INSURANCE = {
    "2.2": (("Other", "Medicare", "Medicaid"), (0.53, 0.38, 0.09)),
    "3.1": (("Medicare", "Private", "Medicaid", "Other", "No charge", ""), (0.45, 0.32, 0.19, 0.025, 0.005, 0.01)),
}
_LANGUAGES = {
    "2.2": (("ENGLISH", "?"), (0.9, 0.1)),
    "3.1": (("English", "Spanish", "Russian", "Chinese", "Portuguese", ""), (0.9, 0.035, 0.025, 0.02, 0.015, 0.005)),
}
_HOMES = ("HOME", "HOME HEALTH CARE", "REHAB", "SKILLED NURSING FACILITY", "CHRONIC/LONG TERM ACUTE CARE", "HOSPICE")
_HOME_SHARES = (0.46, 0.28, 0.07, 0.14, 0.03, 0.02)


class Registry:
    """What the administration knows of one chunk.

    Args:
        course: The chunk.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        rng = course.generator("registry")
        persons, episodes = len(course.subject), len(course.unit)
        self.gender = rng.choice(["F", "M"], persons, p=[0.52, 0.48])
        self.race = rng.choice(_RACES, persons, p=_RACE_SHARES)
        self.language = rng.choice(_LANGUAGES[course.release][0], persons, p=_LANGUAGES[course.release][1])
        self.marital = rng.choice(_MARITAL, persons, p=_MARITAL_SHARES)
        # the third of the values that are always known: who pays
        words, shares = _INSURANCE[course.release]
        self.insurance = np.array(words)[by_score(standard(course, "structured")[:, 2], shares)]
        self.service = rng.choice(SERVICES, episodes, p=_SERVICE_SHARES)
        self.unit = rng.choice(_UNITS, episodes, p=_UNIT_SHARES)
        self.type = self._types(rng)

    def _types(self, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        """Kind of each episode's first admission."""
        course = self.course
        n = len(course.unit)
        emergency = course.episodes.emergency
        urgent = np.where(emergency, "EW EMER.", rng.choice(["URGENT", "DIRECT EMER."], n, p=[0.7, 0.3]))
        kinds = ["ELECTIVE", "SURGICAL SAME DAY ADMISSION", "DIRECT OBSERVATION", "AMBULATORY OBSERVATION"]
        # some observations became admissions
        observed = rng.choice(["EU OBSERVATION", "OBSERVATION ADMIT"], n)
        planned = np.where(emergency, observed, rng.choice(kinds, n, p=[0.4, 0.35, 0.15, 0.1]))
        return np.asarray(np.where(course.planned, planned, urgent))

    def facts(self) -> pl.DataFrame:
        """Age, sex and service of each episode."""
        course = self.course
        age = course.anchor_age[course.person] + course.apart[course.person]
        return pl.DataFrame({"age": np.minimum(age, 90), "sex": self.gender[course.person], "service": self.service})

    def patients(self) -> pl.DataFrame:
        """The table ``patients``."""
        course = self.course
        day = course.fates.death_day
        given: dict[str, Values] = {
            "subject_id": course.subject,
            "gender": self.gender,
            "anchor_age": course.anchor_age,
            "anchor_year": course.anchor_year,
            "anchor_year_group": np.array(GROUPS)[course.group],
            "dod": date(np.where(day < NEVER, day, 0) * DAY, day < NEVER),
        }
        return course.frame("hosp/patients", len(course.subject), given)

    def admissions(self) -> Iterator[pl.DataFrame]:
        """The table ``admissions``: one row or two an episode, and some that can't be."""
        course, s = self.course, self.course.episodes
        rng = course.generator("admissions")
        n = len(course.unit)
        e = np.concatenate([np.arange(n), np.flatnonzero(s.chained)])
        again = np.arange(len(e)) >= n
        ends = again | ~s.chained[e]  # the last admission of its episode
        died = ends & s.death[e]
        frailty = course.latent[course.person, 2][e] + rng.normal(0, 1, len(e))
        home = np.array(_HOMES)[by_score(frailty / np.sqrt(2), _HOME_SHARES)]
        onward = np.select([died, ~ends], ["DIED", "ACUTE HOSPITAL"], home)
        onward = np.where(~died & np.isin(self.type[e], ["EU OBSERVATION", "AMBULATORY OBSERVATION"]), "", onward)
        kind = np.where(again & ~course.planned[e], "URGENT", self.type[e])
        source = np.select(
            [again, s.emergency[e]],
            ["TRANSFER FROM HOSPITAL", "EMERGENCY ROOM"],
            rng.choice(["PHYSICIAN REFERRAL", "TRANSFER FROM HOSPITAL", "CLINIC REFERRAL", "PROCEDURE SITE"], len(e),
                       p=[0.6, 0.28, 0.08, 0.04]),
        )  # fmt: skip
        emergency = ~again & s.emergency[e]
        p = course.person[e]
        left_room = s.admit[e] + rng.integers(1, 90, len(e)) * MINUTE
        given: dict[str, Values] = {
            "hadm_id": np.where(again, course.last_hadm[e], course.first_hadm[e]),
            "admittime": when(np.where(again, s.again[e], s.admit[e])),
            "dischtime": when(np.where(ends, s.end[e], s.left[e])),
            "deathtime": when(s.died[e], died),
            "admission_type": kind,
            "admit_provider_id": providers(rng, len(e)),
            "admission_location": source,
            "discharge_location": hide(onward, onward == ""),
            "insurance": hide(self.insurance[e], self.insurance[e] == ""),
            "language": hide(self.language[p], self.language[p] == ""),
            "marital_status": hide(self.marital[p], self.marital[p] == ""),
            "race": self.race[p],
            "edregtime": when(s.start[e], emergency),
            "edouttime": when(left_room, emergency),
            "hospital_expire_flag": died.astype(np.int64),
        }
        yield course.table("hosp/admissions", e, given)
        yield self._impossible(rng)

    def _impossible(self, rng: np.random.Generator) -> pl.DataFrame:
        """Admissions that are none: accounts of organ donors, and stays that end before they begin."""
        course, s = self.course, self.course.episodes
        donors = np.flatnonzero(s.death & (rng.random(len(s)) < 0.08))
        odd = distractors.after(course, rng, 0.01)
        e = np.append(donors, odd.e)
        donor = np.arange(len(e)) < len(donors)
        begin = np.append(np.maximum(s.died, s.end)[donors] + rng.integers(5, 90, len(donors)) * MINUTE, odd.time)
        length = np.where(donor, rng.integers(-3 * 60, 12 * 60, len(e)), -rng.integers(1, 300, len(e))) * MINUTE
        given: dict[str, Values] = {
            "hadm_id": course.spare_hadm[e],
            "admittime": when(begin),
            "dischtime": when(begin + length),
            "deathtime": when(s.died[e], donor),
            "admission_type": np.where(donor, "URGENT", "EW EMER."),
            "admission_location": "PHYSICIAN REFERRAL",
            "discharge_location": hide(np.where(donor, "DIED", ""), ~donor),
            "insurance": "Other",
            "race": self.race[course.person[e]],
            "hospital_expire_flag": donor.astype(np.int64),
        }
        return course.table("hosp/admissions", e, given)

    def stays(self) -> pl.DataFrame:
        """The table ``icustays``."""
        course, s = self.course, self.course.episodes
        first, back = np.flatnonzero(s.icu), np.flatnonzero(s.back_in < NEVER)
        e = np.concatenate([first, back])
        begin, end = np.append(s.icu_in[first], s.back_in[back]), np.append(s.icu_out[first], s.back_out[back])
        given: dict[str, Values] = {
            **course.unit_ids(e, begin),
            "first_careunit": self.unit[e],
            "last_careunit": self.unit[e],
            "intime": when(begin),
            "outtime": when(end),
            "los": (end - begin) / DAY,
        }
        return course.table("icu/icustays", e, given)

    def transfers(self) -> Iterator[pl.DataFrame]:
        """The table ``transfers``: every bed; also visits to the emergency department that led to no admission."""
        course, s = self.course, self.course.episodes
        rng = course.generator("transfers")
        n = len(course.unit)
        later = s.icu_in >= s.again  # the ICU stay is in the second admission
        first_icu, last_icu = np.where(later, NEVER, s.icu_in), np.where(later, s.icu_in, NEVER)
        icu_left = np.where(later, s.end, s.left)  # end of the admission with the ICU stay
        ward = rng.choice(_WARDS, n)
        visit = course.quiet_from + (np.maximum(s.start - 2 * HOUR - course.quiet_from, 0) * rng.random(n)).astype(int)
        came = (rng.random(n) < 0.15) & (s.start - course.quiet_from > 12 * HOUR)
        emergency = np.full(n, "Emergency Department")
        # careunit, event, whether it is, begin, end; 0 stands for no end
        beds: list[tuple[Values, str, Bools, Ints, Ints]] = [
            (emergency, "ED", came, visit, np.minimum(visit + 5 * HOUR, s.start - HOUR)),
            (emergency, "ED", s.emergency, s.start, s.admit),
            (ward, "admit", np.ones(n, bool), s.admit, np.minimum(first_icu, s.left)),
            (ward, "admit", s.chained, s.again, np.minimum(last_icu, s.end)),
            (self.unit, "transfer", s.icu, s.icu_in, s.icu_out),
            (ward, "transfer", s.icu & (s.icu_out < icu_left), s.icu_out, np.minimum(icu_left, s.back_in)),
            (self.unit, "transfer", s.back_in < NEVER, s.back_in, s.back_out),
            (ward, "transfer", s.back_in < NEVER, s.back_out, s.end),
            (np.full(n, ""), "discharge", np.ones(n, bool), s.left, np.zeros(n, np.int64)),
            (np.full(n, ""), "discharge", s.chained, s.end, np.zeros(n, np.int64)),
        ]
        whole = course.number * len(course.subject) + course.person
        for k, (unit, event, there, begin, end) in enumerate(beds):
            e = np.flatnonzero(there)
            number = 40_000_000 + whole[e] * 32 + course.second[e] * 16 + k
            if k in (4, 6):  # the number of a stay is that of its first bed
                number = (course.stay if k == 4 else course.back_stay)[e]
            hadm = course.admission(e, begin[e])
            if event == "ED":
                # registered before the admission, and filed under it in most cases
                filed = (k == 1) & (rng.random(len(e)) < 0.8)
                hadm = np.where(filed, course.first_hadm[e], 0)
            elif event == "discharge":
                hadm = (course.first_hadm if k == 8 else course.last_hadm)[e]
            name = np.asarray(unit)[e]
            given: dict[str, Values] = {
                "hadm_id": hadm,
                "transfer_id": number,
                "eventtype": event,
                "careunit": hide(name, name == ""),
                "intime": when(begin[e]),
                "outtime": when(end[e], end[e] > 0),
            }
            yield course.table("hosp/transfers", e, given)

    def services(self) -> pl.DataFrame:
        """The table ``services``: who is in charge, from minutes after the admission."""
        course, s = self.course, self.course.episodes
        rng = course.generator("services")
        n = len(course.unit)
        e = np.concatenate([np.arange(n), np.flatnonzero(s.chained)])
        again = np.arange(len(e)) >= n
        given: dict[str, Values] = {
            "hadm_id": np.where(again, course.last_hadm[e], course.first_hadm[e]),
            "transfertime": when(np.where(again, s.again[e], s.admit[e]) + rng.integers(20, 120, len(e))),
            "curr_service": self.service[e],
        }
        return course.table("hosp/services", e, given)


def by_score(score: Floats, shares: tuple[float, ...]) -> Ints:
    """Category of each score, in order of the score, with about these shares; [n]."""
    # a logistic curve of scale 1/1.702 stands in for the normal distribution function
    rank = 1 / (1 + np.exp(-1.702 * score))
    return np.searchsorted(np.cumsum(shares)[:-1], rank)


PROVIDERS, CAREGIVERS = 400, 300


def provider_ids() -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """All ids of providers: P, two digits, three characters."""
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rng = np.random.Generator(np.random.Philox(7))
    numbers = np.sort(rng.choice(100 * 36**3, PROVIDERS, replace=False))
    return np.array(
        [f"P{k // 36**3:02d}{letters[k // 1296 % 36]}{letters[k // 36 % 36]}{letters[k % 36]}" for k in numbers]
    )


_PROVIDERS = provider_ids()


def providers(rng: np.random.Generator, n: int) -> pl.Series:
    """Ids of n providers; nobody is named in three of ten rows."""
    return hide(_PROVIDERS[rng.integers(0, PROVIDERS, n)], rng.random(n) < 0.3)


def caregivers(rng: np.random.Generator, n: int) -> Ints:
    """Ids of n caregivers."""
    return 101 + 331 * rng.integers(0, CAREGIVERS, n)
