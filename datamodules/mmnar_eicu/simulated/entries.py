"""What is ordered and written down: drugs, treatments, diagnoses, history, notes and care plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from mmnar_eicu.simulated.course import Bools, Course, Ints, Values, standard
from mmnar_eicu.simulated.patients import Registry
from mmnar_eicu.simulated.vocabulary import Terms, terms
from mmnar_lightning.simulation import Floats

_ROUTES = ("IV", "PO", "Oral", "IVPB", "SC", "INH")
_FREQUENCIES = ("Once", "Daily", "BID", "PRN", "Q6H", "Q12H", "Continuous")
_DOSES = ("40 mg", "20 MG", "1,000 mL", "5 MG", "650 mg", "PYXIS", "40 3", "1 g")
_NOTE_TYPES = ("Admission", "Comprehensive Progress", "Brief Progress", "Daily Progress")
_USERS = ("THC Nurse", "THC Physician", "Attending Physician", "Resident", "Nurse")
_SLOPE = 1.3  # log odds of a term per standard deviation of its latent value


@dataclass(frozen=True)
class Entries:
    """Which term stands in which episode, and when.

    Args:
        hospital: Row of the hospital stay, [n].
        term: Index of the term, [n].
        time: Of the entry, [n].
        first: Whether it is the entry that makes the modality observed early on, bool [n].
        latest: Minute up to which the episode is recorded, [n].
    """

    hospital: Ints
    term: Ints
    time: Ints
    first: Bools
    latest: Ints

    def __len__(self) -> int:
        return len(self.term)


def entries(
    course: Course,
    rng: np.random.Generator,
    modality: str,
    vocabulary: Terms,
    columns: slice,
    boost: float = 1.0,
    repeats: float = 0.0,
    share: float = 1.0,
) -> Entries:
    """Draw the terms of every episode that has the modality.

    A term is there where logit(frequency) + slope · x + logistic noise > 0; if none is, the likeliest. The likeliest is
    entered within the first hour.

    Args:
        course: The chunk.
        rng: Where chance comes from.
        modality: Whose values decide.
        vocabulary: The V terms.
        columns: Which V of the modality's values.
        boost: Factor on the frequencies.
        repeats: Mean number of further entries of a term.
        share: Share of the episodes with the modality that have anything in this table. Those without are the same in
            all tables of the modality that ask for the complement.
    """
    hospital, start, span = course.visits(modality)
    if share < 1.0:
        kept = np.flatnonzero(course.generator(modality, "tables").random(len(hospital)) < share)
        hospital, start, span = hospital[kept], start[kept], span[kept]
    score = standard(course, modality)[hospital, columns]
    frequency = np.clip(vocabulary.frequency * boost, 0.01, 0.7)
    latent = np.log(frequency / (1 - frequency)) + _SLOPE * score + rng.logistic(size=score.shape)
    likeliest = latent.argmax(axis=1) if len(hospital) else np.zeros(0, np.int64)
    present = latent > 0
    present[np.arange(len(hospital)), likeliest] = True
    row, term = np.nonzero(present)
    first = term == likeliest[row]
    again = rng.poisson(repeats, len(row)) if repeats else np.zeros(len(row), np.int64)
    row, term = np.repeat(row, 1 + again), np.repeat(term, 1 + again)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(1 + again) - (1 + again), 1 + again)
    first = np.repeat(first, 1 + again) & (copy == 0)
    # most is written early
    later = start[row] + (np.maximum(span[row] - 60, 61) * rng.random(len(row)) ** 1.8).astype(np.int64)
    time = np.where(first, start[row] + rng.integers(5, 46, len(row)), np.maximum(later, start[row] + 5))
    return Entries(hospital[row], term, time, first, (start + span)[row])


def medication(course: Course) -> pl.DataFrame:
    """The table ``medication``: names missing in two of five, codes in a few; some orders are cancelled."""
    rng = course.generator("medication")
    words = terms("medication")
    e = entries(course, rng, "medication", words, slice(None), repeats=0.6)
    # some had the drug ordered before they came to the unit
    before = np.where((rng.random(len(e)) < 0.1) & ~e.first, rng.integers(0, 700, len(e)), 0)
    begin = e.time + np.where(e.first, rng.integers(0, 15, len(e)), rng.integers(0, 240, len(e))) - before
    return medication_rows(course, rng, e, begin, words)


def medication_rows(course: Course, rng: np.random.Generator, e: Entries, begin: Ints, words: Terms) -> pl.DataFrame:
    """Rows of the table ``medication``.

    Args:
        course: The chunk.
        rng: Where chance comes from.
        e: The orders, n of them.
        begin: When each starts, [n].
        words: The vocabulary.
    """
    n = len(e)
    drug = words.detail.gather(e.term)
    # the demo's interface sends names in whatever case the hospital writes them
    shown = pl.select(pl.when(pl.Series(rng.random(n) < 0.5)).then(drug.str.to_uppercase()).otherwise(drug)).to_series()
    stop = np.minimum(begin + rng.integers(60, 6000, n), course.hospital_end[e.hospital])
    columns: dict[str, Values] = {
        "drugivadmixture": np.where(rng.random(n) < 0.2, "Yes", "No"),
        "drugordercancelled": np.where((rng.random(n) < 0.04) & ~e.first, "Yes", "No"),
        "drugname": null(shown, rng.random(n) < 0.4),
        "drughiclseqno": null(words.term.gather(e.term), (rng.random(n) < 0.06) & ~e.first),
        "dosage": null(np.array(_DOSES)[rng.integers(0, len(_DOSES), n)], rng.random(n) < 0.12),
        "routeadmin": np.array(_ROUTES)[rng.integers(0, len(_ROUTES), n)],
        "frequency": null(np.array(_FREQUENCIES)[rng.integers(0, len(_FREQUENCIES), n)], rng.random(n) < 0.16),
        "prn": np.where(rng.random(n) < 0.27, "Yes", "No"),
        "gtc": rng.choice([0, 2, 59, 65, 41, 19, 36], n),
    }
    times = {"drugorderoffset": e.time, "drugstartoffset": begin, "drugstopoffset": stop}
    return course.table("medication", e.hospital, e.time, times, columns, duplicates=0.01)


def infusion(course: Course) -> pl.DataFrame:
    """The table ``infusionDrug``: rates are text, not all of them numbers."""
    rng = course.generator("infusion")
    words = terms("infusionDrug")
    e = entries(course, rng, "infusion", words, slice(None), repeats=7.0)
    score = standard(course, "infusion")[e.hospital, e.term]
    rate = np.maximum(np.round(12 * np.exp(0.6 * score + 0.3 * rng.standard_normal(len(e))), 1), 0.1)
    return infusion_rows(course, rng, e, rate, words)


def infusion_rows(course: Course, rng: np.random.Generator, e: Entries, rate: Floats, words: Terms) -> pl.DataFrame:
    """Rows of the table ``infusionDrug``, with rates of [n]."""
    n = len(e)
    odd = np.where(e.first, 0.5, rng.random(n))
    text = pl.Series(rate).cast(pl.String).str.strip_suffix(".0")
    shown = pl.select(
        pl.when(pl.Series(odd < 0.06)).then(pl.lit("0")).when(pl.Series(odd > 0.995)).then(pl.lit("ERROR"))
        .when(pl.Series(odd > 0.99)).then(pl.lit("OFF")).otherwise(text)
    ).to_series()  # fmt: skip
    hidden = rng.random(n) < 0.6
    weight = np.round(82 + 22 * standard(course, "structured")[e.hospital, 2], 1)
    columns: dict[str, Values] = {
        "drugname": words.term.gather(e.term),
        "drugrate": shown,
        "infusionrate": null(text, hidden),
        "drugamount": null(rng.choice(["50", "100", "250", "400", "25000"], n), hidden),
        "volumeoffluid": null(rng.choice(["50", "100", "250", "500"], n), hidden),
        "patientweight": null(weight, rng.random(n) < 0.8),
    }
    return course.table("infusionDrug", e.hospital, e.time, {"infusionoffset": e.time}, columns, duplicates=0.01)


def home_drugs(course: Course) -> pl.DataFrame:
    """The table ``admissionDrug``."""
    rng = course.generator("home_drugs")
    e = entries(course, rng, "home_drugs", terms("admissionDrug"), slice(None), boost=2.0)
    return home_drug_rows(course, rng, e, e.time + rng.integers(1, 30, len(e)))


def home_drug_rows(course: Course, rng: np.random.Generator, e: Entries, entered: Ints) -> pl.DataFrame:
    """Rows of the table ``admissionDrug``, entered at [n]."""
    n, words = len(e), terms("admissionDrug")
    dosed = rng.random(n) < 0.14
    columns: dict[str, Values] = {
        "drugnotetype": rng.choice(["Admission", "Comprehensive Progress", "Re-Admission"], n, p=[0.6, 0.35, 0.05]),
        "specialtytype": "eCM Primary",
        "usertype": np.array(_USERS)[rng.integers(0, len(_USERS), n)],
        "rxincluded": np.where(rng.random(n) < 0.76, "True", "False"),
        "writtenineicu": np.where(rng.random(n) < 0.61, "True", "False"),
        "drugname": words.term.gather(e.term),
        "drugdosage": np.where(dosed, rng.choice(["20", "100", "10", "5", "81"], n), "0"),
        "drugunit": null(np.full(n, "mg"), ~dosed),
        "drugadmitfrequency": null(rng.choice(["daily", "twice a day", "PRN"], n, p=[0.7, 0.15, 0.15]), ~dosed),
        "drughiclseqno": words.detail.gather(e.term),
    }
    return course.table(
        "admissionDrug", e.hospital, e.time, {"drugoffset": e.time, "drugenteredoffset": entered}, columns
    )


def treatment(course: Course) -> pl.DataFrame:
    """The table ``treatment``."""
    rng = course.generator("treatment")
    words = terms("treatment")
    e = entries(course, rng, "treatment", words, slice(None), boost=2.0, repeats=0.8)
    columns: dict[str, Values] = {
        "treatmentstring": words.term.gather(e.term),
        "activeupondischarge": np.where(rng.random(len(e)) < 0.36, "True", "False"),
    }
    return course.table("treatment", e.hospital, e.time, {"treatmentoffset": e.time}, columns, duplicates=0.005)


def diagnosis(course: Course) -> pl.DataFrame:
    """The table ``diagnosis``: ICD-9 and ICD-10 stand in one field, or nothing does."""
    rng = course.generator("diagnosis")
    words = terms("diagnosis")
    e = entries(course, rng, "diagnosis", words, slice(0, len(words)), boost=2.5, repeats=0.5)
    columns: dict[str, Values] = {
        "activeupondischarge": np.where(rng.random(len(e)) < 0.5, "True", "False"),
        "diagnosisstring": words.term.gather(e.term),
        "icd9code": words.detail.gather(e.term),
        "diagnosispriority": rng.choice(["Other", "Major", "Primary"], len(e), p=[0.45, 0.35, 0.2]),
    }
    return course.table("diagnosis", e.hospital, e.time, {"diagnosisoffset": e.time}, columns, duplicates=0.005)


def admission_diagnosis(course: Course, registry: Registry) -> pl.DataFrame:
    """The table ``admissionDx``: the diagnosis, its organ system, and whether the patient came from surgery."""
    rng = course.generator("admission_diagnosis")
    hospital, start, _ = course.visits("diagnosis")
    known = registry.diagnosis_known[hospital]
    hospital, start = hospital[known], start[known]
    path = terms("admissionDx").term.gather(registry.diagnosis[hospital])
    parts = path.str.split("|").list
    side, system = parts.get(2), parts.get(4).str.replace("Neurology", "Neurologic", literal=True)
    surgery = pl.select(pl.when(side == "Operative").then(pl.lit("Yes")).otherwise(pl.lit("No"))).to_series()
    question = "Was the patient admitted from the O.R. or went to the O.R. within 4 hours of admission?"
    paths = [
        path,
        pl.select(pl.format("admission diagnosis|{} Organ Systems|Organ System|{}", side, system)).to_series(),
        pl.select(pl.format("admission diagnosis|{}|{}", pl.lit(question), surgery)).to_series(),
    ]
    every = pl.concat(paths)
    name = every.str.split("|").list.last()
    time = np.tile(start + rng.integers(5, 61, len(hospital)), 3)
    columns: dict[str, Values] = {"admitdxpath": every, "admitdxname": name, "admitdxtext": name}
    return course.table("admissionDx", np.tile(hospital, 3), time, {"admitdxenteredoffset": time}, columns)


def history(course: Course) -> pl.DataFrame:
    """The table ``pastHistory``."""
    rng = course.generator("history")
    words = terms("pastHistory")
    width = len(words)
    e = entries(course, rng, "diagnosis", words, slice(-width, None), boost=1.4, share=0.9)
    return history_rows(course, rng, e, e.time + rng.integers(1, 20, len(e)))


def history_rows(course: Course, rng: np.random.Generator, e: Entries, entered: Ints) -> pl.DataFrame:
    """Rows of the table ``pastHistory``, entered at [n]."""
    words = terms("pastHistory")
    path = words.term.gather(e.term)
    columns: dict[str, Values] = {
        "pasthistorynotetype": rng.choice(["Admission", "Comprehensive Progress"], len(e), p=[0.65, 0.35]),
        "pasthistorypath": path,
        "pasthistoryvalue": path.str.split("/").list.last(),
        "pasthistoryvaluetext": words.detail.gather(e.term),
    }
    times = {"pasthistoryoffset": e.time, "pasthistoryenteredoffset": entered}
    return course.table("pastHistory", e.hospital, e.time, times, columns)


def note(course: Course) -> pl.DataFrame:
    """The table ``note``: fragments of what was ticked in a form."""
    rng = course.generator("note")
    words = terms("note")
    e = entries(course, rng, "notes", words, slice(0, len(words)), boost=1.2, repeats=0.3)
    # notes are finished minutes after they are begun, a few the next day
    delay = np.where(
        (rng.random(len(e)) < 0.03) & ~e.first, rng.integers(600, 2000, len(e)), rng.integers(1, 40, len(e))
    )
    return note_rows(course, rng, e, e.time + delay, words.term.gather(e.term), words.detail.gather(e.term))


def note_rows(
    course: Course, rng: np.random.Generator, e: Entries, entered: Ints, path: pl.Series, value: pl.Series
) -> pl.DataFrame:
    """Rows of the table ``note``, entered at [n], with paths and values of [n]."""
    columns: dict[str, Values] = {
        "notetype": np.array(_NOTE_TYPES)[rng.choice(len(_NOTE_TYPES), len(e), p=[0.65, 0.18, 0.14, 0.03])],
        "notepath": path,
        "notevalue": value,
        "notetext": value.str.replace_all(" ", "", literal=True),
    }
    return course.table("note", e.hospital, e.time, {"noteoffset": e.time, "noteenteredoffset": entered}, columns)


def physical_exam(course: Course) -> pl.DataFrame:
    """The table ``physicalExam``: findings, and numbers as text."""
    rng = course.generator("physical_exam")
    words = terms("physicalExam")
    width = len(words)
    e = entries(course, rng, "notes", words, slice(-width, None), boost=1.3, share=0.9)
    path = words.term.gather(e.term)
    prefix = "notes/Progress Notes/Physical Exam/Physical Exam/Constitutional/Vital Sign and Physiological Data/"
    measured = (("HR/HR Current", 88.0, 16.0), ("BP (systolic)/BP (systolic) Current", 121.0, -20.0),
                ("Resp Rate/Resp Current", 20.0, 4.0), ("O2 Sat%/O2 Sat% Current", 96.0, -2.0))  # fmt: skip
    examined = np.flatnonzero(e.first)
    score = standard(course, "notes")[e.hospital[examined], -width + 1]
    hospital, time, text = [e.hospital], [e.time], [words.detail.gather(e.term)]
    paths = [path]
    for suffix, usual, spread in measured:
        number = np.round(usual + spread * (0.6 * score + 0.8 * rng.standard_normal(len(score)))).astype(np.int64)
        hospital.append(e.hospital[examined])
        time.append(e.time[examined])
        paths.append(pl.Series([prefix + suffix]).new_from_index(0, len(score)))
        text.append(pl.Series(np.maximum(number, 0)).cast(pl.String))
    path, when = pl.concat(paths), np.concatenate(time)
    columns: dict[str, Values] = {
        "physicalexampath": path,
        "physicalexamvalue": path.str.split("/").list.last(),
        "physicalexamtext": pl.concat(text),
    }
    return course.table("physicalExam", np.concatenate(hospital), when, {"physicalexamoffset": when}, columns)


def care_plan(course: Course) -> pl.DataFrame:
    """The table ``carePlanGeneral``: the plan of the day, and limits of care for one in six, more often the sicker."""
    rng = course.generator("care_plan")
    words = terms("carePlanGeneral")
    hospital, start, span = course.visits()
    severity = course.draw.latent[hospital, 0]
    frequency = np.clip(words.frequency, 0.02, 0.9)
    logit = np.log(frequency / (1 - frequency)) + 0.6 * words.severity * severity[:, None]
    row, term = np.nonzero(logit + rng.logistic(size=logit.shape) > 0)
    limits = pl.Series(["Full therapy", "Do not resuscitate", "No CPR", "Comfort measures only"])
    limited = severity + rng.logistic(size=len(severity)) * 0.8 > 2.0
    choice = np.where(limited, rng.choice([1, 2], len(severity), p=[0.85, 0.15]), 0)
    told = np.flatnonzero(rng.random(len(severity)) < 0.85)
    group = pl.concat([words.term.gather(term), pl.Series(["Care Limitation"]).new_from_index(0, len(told))])
    value = pl.concat([words.detail.gather(term), limits.gather(choice[told])])
    row = np.append(row, told)
    time = start[row] + (np.maximum(span[row] - 60, 61) * rng.random(len(row)) ** 2).astype(np.int64) + 1
    return care_plan_rows(course, rng, hospital[row], time, group, value)


def care_plan_rows(
    course: Course, rng: np.random.Generator, hospital: Ints, time: Ints, group: pl.Series, value: pl.Series
) -> pl.DataFrame:
    """Rows of the table ``carePlanGeneral``, all arguments of [n]."""
    columns: dict[str, Values] = {
        "activeupondischarge": np.where(rng.random(len(time)) < 0.6, "True", "False"),
        "cplgroup": group,
        "cplitemvalue": null(value, rng.random(len(time)) < 0.03),
    }
    return course.table("carePlanGeneral", hospital, time, {"cplitemoffset": time}, columns)


def null(values: Values, hidden: Bools) -> pl.Series:
    """A series that is null where hidden, [n]."""
    return pl.select(pl.when(pl.Series(~hidden)).then(pl.Series(values))).to_series()
