"""The tables of stays: patient, hospital and APACHE results of a simulated extract, and the truth behind them."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmnar_eicu.simulated.columns import COLUMNS
from mmnar_eicu.simulated.course import (
    BED_MOVE,
    DAY,
    ICU,
    POST_STEPDOWN,
    PRE_STEPDOWN,
    SECOND_ICU,
    Bools,
    Course,
    Ints,
    Values,
    standard,
)
from mmnar_eicu.simulated.vocabulary import terms

HOSPITALS = 60
_UNITS = ("Med-Surg ICU", "MICU", "Cardiac ICU", "CCU-CTICU", "SICU", "CSICU", "Neuro ICU", "CTICU")
_UNIT_SHARES = (0.7, 0.07, 0.06, 0.04, 0.04, 0.03, 0.03, 0.03)
_SOURCES = ("Emergency Department", "Floor", "Operating Room", "Direct Admit", "Recovery Room", "Other Hospital")
_SOURCE_SHARES = (0.55, 0.17, 0.12, 0.08, 0.05, 0.03)
_RACES = ("Caucasian", "African American", "Hispanic", "Other/Unknown", "Asian", "Native American")
_RACE_SHARES = (0.79, 0.1, 0.05, 0.035, 0.015, 0.01)
_HOMES = ("Home", "Skilled Nursing Facility", "Other Hospital", "Rehabilitation", "Other", "Other External")
_HOME_SHARES = (0.66, 0.14, 0.06, 0.05, 0.045, 0.045)
_SPECIALTIES = ("internal medicine", "hospitalist", "Specialty Not Specified", "family practice", "cardiology")


def hospitals(seed: int) -> pl.DataFrame:
    """The table ``hospital``: always the same number, however many patients there are."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(8,))))
    ids = np.arange(56, 56 + 7 * HOSPITALS, 7)
    beds = rng.choice(["<100", "100 - 249", "250 - 499", ">= 500", ""], HOSPITALS, p=[0.2, 0.35, 0.2, 0.12, 0.13])
    regions = rng.choice(["Midwest", "South", "West", "Northeast", ""], HOSPITALS, p=[0.35, 0.3, 0.2, 0.07, 0.08])
    columns = {
        "hospitalid": ids,
        "numbedscategory": beds,
        "teachingstatus": np.where(rng.random(HOSPITALS) < 0.1, "t", "f"),
        "region": regions,
    }
    frame = pl.DataFrame(columns).with_columns(pl.col(pl.String).replace("", None))
    return frame.select(COLUMNS["hospital"])


class Registry:
    """What the administration knows of the hospital stays of one chunk.

    Args:
        course: The chunk.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        rng = course.generator("registry")
        n = len(course.index)
        # facts about a person repeat with his second hospital stay
        row_of_person = np.searchsorted(course.person, course.person)
        self.gender = rng.choice(["Male", "Female"], n, p=[0.58, 0.42])[row_of_person]
        self.race = rng.choice(_RACES, n, p=_RACE_SHARES)[row_of_person]
        structured = standard(course, "structured")
        years = np.round(64 + 16 * structured[row_of_person, 0]).astype(np.int64)
        self.age: Ints = np.where(rng.random(n) < 0.01, rng.integers(15, 18, n), np.clip(years, 18, 104))[row_of_person]
        self.age_unknown: Bools = (rng.random(n) < 0.002)[row_of_person]
        self.weight = np.round(np.clip(82 + 22 * structured[:, 2], 35, 250), 1)
        self.source = np.array(_SOURCES)[_by_score(structured[:, 1], _SOURCE_SHARES)]
        shares = 1.0 / np.arange(1, HOSPITALS + 1)
        site = rng.choice(HOSPITALS, n, p=shares / shares.sum())
        moved = rng.random(n) < 0.2
        self.hospital: Ints = 56 + 7 * np.where(moved, site, site[row_of_person])
        self.year = rng.choice([2014, 2015], n)
        self.status_unknown: Bools = rng.random(n) < 0.012
        odd = rng.random(n)
        self.discharged_before_admission: Bools = odd < 0.002
        self.lost_admission: Bools = odd > 0.995
        diagnoses = terms("admissionDx")
        score = course.draw.values["diagnosis"][:, len(terms("diagnosis")) :][:, : len(diagnoses)]
        gumbel = rng.gumbel(size=score.shape) + 0.6 * score + np.log(diagnoses.frequency)
        self.diagnosis: Ints = gumbel.argmax(axis=1)
        self.diagnosis_known: Bools = course.available("diagnosis") & (rng.random(n) < 0.92)

    def uniquepid(self) -> pl.Series:
        """Id of the person each hospital stay belongs to, String [H]."""
        person = pl.Series(self.course.person)
        return pl.select(
            pl.format("{}-{}", (2 + person % 33).cast(pl.String).str.zfill(3), 1000 + person).alias("uniquepid")
        ).to_series()

    def patient(self) -> pl.DataFrame:
        """The table ``patient``: one row a unit stay."""
        course, stays = self.course, self.course.stays
        rng = course.generator("patient")
        h, count = stays.hospital, len(stays.hospital)
        expired = np.where(stays.kind == SECOND_ICU, course.second_death[h], course.unit_death[h])
        last_of_episode = np.append(stays.kind[1:] != BED_MOVE, True)
        expired &= last_of_episode & ((stays.kind == ICU) | (stays.kind == BED_MOVE) | (stays.kind == SECOND_ICU))
        died, unknown = course.death[h], self.status_unknown[h]
        end = np.where(self.discharged_before_admission[h], -5, stays.end - stays.start)
        home = rng.choice(_HOMES, len(course.index), p=_HOME_SHARES)[h]
        lead = np.where(self.lost_admission, 480_446, course.lead)[h]
        clock = rng.integers(0, DAY, len(course.index))[h]
        source, onward = self._ways(rng, home)
        icu = (stays.kind == ICU) | (stays.kind == SECOND_ICU)
        kinds = np.array(["stepdown/other", "admit", "transfer", "stepdown/other", "readmit"])
        diagnosis = terms("admissionDx").term.str.split("|").list.last()
        weight = self.weight[h]
        columns: dict[str, Values] = {
            "patientunitstayid": stays.id,
            "patienthealthsystemstayid": 128_000 + course.index[h],
            "gender": _hide(self.gender[h], rng.random(len(course.index))[h] < 0.002),
            "age": _hide(np.where(self.age > 89, "> 89", self.age.astype(str))[h], self.age_unknown[h]),
            "ethnicity": _hide(self.race[h], rng.random(len(course.index))[h] < 0.015),
            "hospitalid": self.hospital[h],
            "wardid": self.hospital[h] * 3 + (stays.kind == BED_MOVE),
            "apacheadmissiondx": _hide(diagnosis.gather(self.diagnosis[h]), ~(icu & self.diagnosis_known[h])),
            "admissionheight": _hide(
                np.round(np.where(self.gender == "Male", 176.0, 162.0) + rng.normal(0, 8, len(course.index)), 1)[h],
                rng.random(count) < 0.04,
            ),
            "hospitaladmittime24": _time(clock - lead),
            "hospitaladmitoffset": -lead - stays.start,
            "hospitaladmitsource": _hide(self.source[h], rng.random(len(course.index))[h] < 0.23),
            "hospitaldischargeyear": self.year[h],
            "hospitaldischargetime24": _time(clock + course.hospital_end[h]),
            "hospitaldischargeoffset": np.where(
                self.discharged_before_admission[h], -5, course.hospital_end[h] - stays.start
            ),
            "hospitaldischargelocation": _hide(np.where(died, "Death", home), unknown),
            "hospitaldischargestatus": _hide(np.where(died, "Expired", "Alive"), unknown),
            "unittype": np.array(_UNITS)[rng.choice(len(_UNITS), len(course.index), p=_UNIT_SHARES)[h]],
            "unitadmittime24": _time(clock + stays.start),
            "unitadmitsource": source,
            "unitvisitnumber": self._visit_numbers(rng),
            "unitstaytype": kinds[stays.kind],
            "admissionweight": _hide(weight, rng.random(count) < 0.05),
            "dischargeweight": _hide(np.round(weight + rng.normal(0, 2, count), 1), died | (rng.random(count) < 0.4)),
            "unitdischargetime24": _time(clock + stays.end),
            "unitdischargeoffset": end,
            "unitdischargelocation": _hide(np.where(expired, "Death", onward), unknown & expired),
            "unitdischargestatus": _hide(np.where(expired, "Expired", "Alive"), unknown & expired),
            "uniquepid": self.uniquepid().gather(h),
        }
        return pl.DataFrame(columns).select(COLUMNS["patient"])

    def _ways(self, rng: np.random.Generator, home: Values) -> tuple[Values, Values]:
        """Where each unit stay came from and went to, [S] each."""
        course, stays = self.course, self.course.stays
        h, count = stays.hospital, len(stays.hospital)
        onward = rng.choice(["Floor", "Telemetry", "Acute Care/Floor"], count, p=[0.75, 0.1, 0.15])
        follows = np.append(stays.kind[1:], -1)
        onward = np.where(follows == BED_MOVE, rng.choice(["Other ICU", "ICU"], count), onward)
        onward = np.where(follows == POST_STEPDOWN, "Step-Down Unit (SDU)", onward)
        onward = np.where(stays.kind == PRE_STEPDOWN, "ICU", onward)
        onward = np.where(course.direct[h] & (follows != BED_MOVE), home, onward)
        source = np.select(
            [stays.kind == PRE_STEPDOWN, stays.kind == BED_MOVE, stays.kind == POST_STEPDOWN, stays.kind == SECOND_ICU],
            ["Emergency Department", "Other ICU", "ICU to SDU", "Floor"],
            self.source[h],
        )
        return source, onward

    def _visit_numbers(self, rng: np.random.Generator) -> Ints:
        """Order of the unit stays in a hospital stay; reversed in a few, as in the real table."""
        h = self.course.stays.hospital
        position = np.arange(len(h)) - np.searchsorted(h, h)
        total = np.bincount(h, minlength=len(self.course.index))[h]
        flipped = (rng.random(len(self.course.index)) < 0.04)[h]
        return np.where(flipped, total - position, position + 1)

    def apache(self) -> pl.DataFrame:
        """The table ``apachePatientResult``: two rows for most first ICU stays, a yardstick and never a feature."""
        course = self.course
        rng = course.generator("apache")
        n = len(course.index)
        scored = np.flatnonzero(rng.random(n) < 0.88)
        risk = course.draw.risk[scored, 0]
        logit = 0.8 * np.log(risk / (1 - risk)) - 0.2 + rng.normal(0, 0.6, len(scored))
        unscorable = rng.random(len(scored)) < 0.08
        count = 2 * len(scored)
        h = np.repeat(scored, 2)
        predicted = 1 / (1 + np.exp(-(np.repeat(logit, 2) + rng.normal(0, 0.1, count))))
        hidden = np.repeat(unscorable, 2)
        score = np.clip(np.round(55 + 18 * np.repeat(logit + 2.2, 2)), 5, 190).astype(np.int64)
        unit, hospital = np.round(course.end / DAY, 4), np.round((course.hospital_end + course.lead) / DAY, 4)
        ventilated = np.repeat(rng.random(len(scored)) < 0.3, 2)
        days = rng.integers(1, 8, count)
        columns: dict[str, Values] = {
            "physicianspeciality": np.array(_SPECIALTIES)[rng.integers(0, len(_SPECIALTIES), len(scored)).repeat(2)],
            "physicianinterventioncategory": rng.choice(["Unknown", "I", "II", "III", "IV"], len(scored)).repeat(2),
            "acutephysiologyscore": np.where(hidden, -1, np.maximum(score - 12, 1)),
            "apachescore": np.where(hidden, -1, score),
            "apacheversion": np.tile(["IV", "IVa"], len(scored)),
            "predictedicumortality": _scientific(np.where(hidden, -1.0, 0.6 * predicted)),
            "actualicumortality": np.where(course.unit_death, "EXPIRED", "ALIVE")[h],
            "predictediculos": _scientific(np.where(hidden, -1.0, np.exp(rng.normal(1.2, 0.4, count)))),
            "actualiculos": unit[h],
            "predictedhospitalmortality": _scientific(np.where(hidden, -1.0, predicted)),
            "actualhospitalmortality": np.where(course.death, "EXPIRED", "ALIVE")[h],
            "predictedhospitallos": _scientific(np.where(hidden, -1.0, np.exp(rng.normal(2.1, 0.4, count)))),
            "actualhospitallos": hospital[h],
            "preopmi": np.zeros(count, np.int64),
            "preopcardiaccath": np.zeros(count, np.int64),
            "ptcawithin24h": (rng.random(len(scored)) < 0.04).astype(np.int64).repeat(2),
            "unabridgedunitlos": unit[h],
            "unabridgedhosplos": hospital[h],
            "actualventdays": _hide(days, ~ventilated),
            "predventdays": _hide(np.round(np.exp(rng.normal(1.1, 0.3, count)), 6), ~ventilated),
            "unabridgedactualventdays": _hide(days, ~ventilated),
        }
        return course.table("apachePatientResult", h, np.zeros(count, np.int64), {}, columns)

    def truth(self) -> pl.DataFrame:
        """What really was, one row a hospital stay: health, availability, risks, outcomes, and who is in which cohort.

        ``risk/…`` is P(y | u). It is the risk of ``label/…`` inside the landmark cohort, too, since who leaves within a
        day doesn't depend on y given u. ``label/…`` is null where the extract doesn't tell.
        """
        course = self.course
        model, draw = course.model, course.draw
        first = np.flatnonzero(course.stays.kind == ICU)
        usable = ~self.age_unknown & (self.age >= 18) & ~self.discharged_before_admission & ~self.lost_admission
        known = ~self.status_unknown
        landmark = usable & (course.end > DAY)
        left_alive = usable & ~course.unit_death & (course.hospital_end - course.end > 60)
        mortality = _hide(course.death, ~known)
        columns: dict[str, Values] = {
            "uniquepid": self.uniquepid(),
            "patienthealthsystemstayid": 128_000 + course.index,
            "patientunitstayid": course.stays.id[first],
            "cohort/landmark": landmark,
            "cohort/unit_discharge": left_alive,
            **{f"latent/{axis}": draw.latent[:, axis] for axis in range(model.latent)},
            **{f"propensity/{name}": draw.propensity[:, m] for m, name in enumerate(model.names)},
            **{f"available/{name}": draw.available[:, m] for m, name in enumerate(model.names)},
            **{f"risk/{name}": draw.risk[:, k] for k, name in enumerate(model.outcome_names)},
            **{f"outcome/{name}": draw.outcomes[:, k] for k, name in enumerate(model.outcome_names)},
            "label/mortality_hospital": mortality,
            "label/mortality_unit": _hide(course.unit_death, ~known & course.unit_death),
            "label/los_7d": course.end > 7 * DAY,
            "label/readmission_icu": course.readmitted,
        }
        return pl.DataFrame(columns)


def _by_score(score: np.ndarray[tuple[int], np.dtype[np.float64]], shares: tuple[float, ...]) -> Ints:
    """Category of each score, in order of the score, with about these shares; [n]."""
    # a logistic curve of scale 1/1.702 stands in for the normal distribution function
    rank = 1 / (1 + np.exp(-1.702 * score))
    return np.searchsorted(np.cumsum(shares)[:-1], rank)


def _hide(values: Values, hidden: Bools) -> pl.Series:
    """Null where hidden."""
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    return pl.select(pl.when(pl.Series(~hidden)).then(series)).to_series()


def _time(minute: Ints) -> pl.Series:
    """Time of day as HH:MM:SS of minutes since some midnight."""
    of_day = pl.Series(minute % DAY)
    return pl.select(
        pl.format("{}:{}:00", (of_day // 60).cast(pl.String).str.zfill(2), (of_day % 60).cast(pl.String).str.zfill(2))
    ).to_series()


def _scientific(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    """Numbers as text, the small ones with an exponent, as in the real table."""
    return ["-1" if v == -1.0 else f"{v:.16E}".replace("E-0", "E-") if v < 0.01 else repr(float(v)) for v in values]
