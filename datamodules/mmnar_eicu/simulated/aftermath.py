"""Records that only the future holds: they carry the outcome, so that whoever reads them betrays himself.

None of them is known at a prediction time (24 h after admission, or the end of the first ICU episode). Who uses an
event time where the entry time counts, or forgets the prediction time altogether, gets an AUROC near 1.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from mmnar_eicu.simulated.course import DAY, Bools, Course, Ints, Values
from mmnar_eicu.simulated.entries import (
    Entries,
    care_plan_rows,
    history_rows,
    home_drug_rows,
    infusion_rows,
    medication_rows,
    note_rows,
)
from mmnar_eicu.simulated.measurements import cuff_rows, lab_rows, vital_rows
from mmnar_eicu.simulated.vocabulary import labs, terms

_DYING = {"lactate": 19.0, "pH": 6.91, "creatinine": 6.3, "potassium": 7.4, "bicarbonate": 6.0}
_WELL = {"lactate": 0.9, "pH": 7.41, "creatinine": 0.8, "potassium": 4.1, "bicarbonate": 25.0}
# of the dying, and of the others
_SIGNS = {
    "heartrate": (0.0, 72.0),
    "sao2": (40.0, 99.0),
    "respiration": (3.0, 14.0),
    "temperature": (33.0, 36.8),
    "systolic": (0.0, 124.0),
    "cvp": (20.0, 8.0),
}
_ARREST = ("cardiovascular|cardiac arrest|cardiac arrest", "427.5, I46.9")
_HYPERTENSION = ("cardiovascular|vascular disorders|hypertension", "401.9, I10")
_LATE_NOTE = "notes/Progress Notes/Interventions/Major/"


class Aftermath:
    """The rows of each table that are written after the prediction times of both cohorts.

    Args:
        course: The chunk.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self.rng = course.generator("aftermath")
        # who dies in the unit: after 24 h, or in the second episode if it is that; the others: after the last episode
        self.low = np.where(course.unit_death, DAY, np.where(course.second_death, course.second_start, course.left_icu))
        self.high = np.where(course.died_in_icu, course.left_icu, course.hospital_end)
        self.with_future = np.flatnonzero(self.high > self.low)

    def tables(self) -> dict[str, pl.DataFrame]:
        """Rows to append, by raw table."""
        course = self.course
        h, time, died = self._moments(3)
        diagnosis: dict[str, Values] = {
            "activeupondischarge": "True",
            "diagnosisstring": np.where(died, _ARREST[0], _HYPERTENSION[0]),
            "icd9code": np.where(died, _ARREST[1], _HYPERTENSION[1]),
            "diagnosispriority": "Major",
        }
        comfort = np.where(
            died,
            "general|quality measures|palliative care consultation",
            "general|support services|physical therapy consult",
        )
        treatment: dict[str, Values] = {"activeupondischarge": "True", "treatmentstring": comfort}
        signs = {name: np.where(died, dying, well) for name, (dying, well) in _SIGNS.items()}
        signs["diastolic"] = signs["systolic"] / 2
        no, yes = np.zeros(len(h), bool), np.ones(len(h), bool)
        lost = np.zeros((len(h), 4), bool)
        return {
            "lab": pl.concat([self._labs(late=False), self._labs(late=True)]),
            "vitalPeriodic": vital_rows(course, h, time, signs, lost, yes, no, no),
            "vitalAperiodic": cuff_rows(course, h, time, signs, no),
            "diagnosis": course.table("diagnosis", h, time, {"diagnosisoffset": time}, diagnosis),
            "treatment": course.table("treatment", h, time, {"treatmentoffset": time}, treatment),
            "medication": self._medication(),
            "infusionDrug": self._infusion(),
            "note": self._notes(),
            "pastHistory": self._entered_late("pastHistory"),
            "admissionDrug": self._entered_late("admissionDrug"),
            "carePlanGeneral": self._care_plan(),
            "carePlanEOL": self._end_of_life(),
        }

    def _moments(self, count: int) -> tuple[Ints, Ints, Bools]:
        """Hospital stay, a moment in its future, and whether the patient dies, for `count` rows a stay."""
        h = np.repeat(self.with_future, count)
        return h, self.rng.integers(self.low[h] + 1, self.high[h] + 1), self.course.death[h]

    def _early(self, h: Ints) -> Ints:
        """A moment in the first ten hours, for rows that are entered late."""
        return self.rng.integers(5, np.minimum(600, self.course.end[h]))

    def _labs(self, late: bool) -> pl.DataFrame:
        """Results of the future; or (late) of the first hours, but revised in the future."""
        names = labs().name.to_list()
        h, time, died = self._moments(len(_DYING))
        test = np.tile([names.index(name) for name in _DYING], len(self.with_future))
        value = np.where(
            died,
            np.tile(list(_DYING.values()), len(self.with_future)),
            np.tile(list(_WELL.values()), len(self.with_future)),
        )
        result = self._early(h) if late else time
        return lab_rows(self.course, self.rng, h, test, result, time, value)

    def _entries(self, dying: Ints, well: Ints) -> Entries:
        """One entry a stay, of a term that the dying have or one that the others have."""
        h, time, died = self._moments(1)
        term = np.where(died, self.rng.choice(dying, len(h)), self.rng.choice(well, len(h)))
        return Entries(h, term, time, np.ones(len(h), bool), self.high[h])

    def _ends(self, table: str) -> tuple[Ints, Ints]:
        """Terms of the sickest and of the least sick."""
        order = np.argsort(terms(table).severity, kind="stable")
        return order[-3:], order[:3]

    def _medication(self) -> pl.DataFrame:
        e = self._entries(*self._ends("medication"))
        return medication_rows(self.course, self.rng, e, e.time, terms("medication"))

    def _infusion(self) -> pl.DataFrame:
        e = self._entries(*self._ends("infusionDrug"))
        rate = np.where(self.course.death[e.hospital], 99.0, 1.0)
        return infusion_rows(self.course, self.rng, e, rate, terms("infusionDrug"))

    def _notes(self) -> pl.DataFrame:
        """Notes about the first hours that are entered in the future."""
        h, entered, died = self._moments(1)
        value = pl.Series(np.where(died, "Shock - evaluation and management", "Pain - evaluation and management"))
        path = pl.select(pl.format("{}{}", pl.lit(_LATE_NOTE), value)).to_series()
        e = Entries(h, h, self._early(h), np.ones(len(h), bool), entered)
        return note_rows(self.course, self.rng, e, entered, path, value)

    def _entered_late(self, table: str) -> pl.DataFrame:
        """History and home drugs of the first hours that are entered in the future."""
        e = self._entries(*self._ends(table))
        early = Entries(e.hospital, e.term, self._early(e.hospital), e.first, e.latest)
        rows = history_rows if table == "pastHistory" else home_drug_rows
        return rows(self.course, self.rng, early, e.time)

    def _care_plan(self) -> pl.DataFrame:
        h, time, died = self._moments(1)
        group = np.where(died, "Care Limitation", "Critical Care Discharge/Transfer Planning")
        value = np.where(died, "Comfort measures only", "Floor bed")
        return care_plan_rows(self.course, self.rng, h, time, pl.Series(group), pl.Series(value))

    def _end_of_life(self) -> pl.DataFrame:
        """Talks about the end of life, for two in five of those who die."""
        h, time, died = self._moments(1)
        talked = np.flatnonzero(died & (self.rng.random(len(h)) < 0.4))
        columns: dict[str, Values] = {
            "cpleoldiscussionoffset": np.zeros(len(talked), np.int64),
            "activeupondischarge": "True",
        }
        return self.course.table("carePlanEOL", h[talked], time[talked], {"cpleolsaveoffset": time[talked]}, columns)
