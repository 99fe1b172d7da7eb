"""What is billed, and the dictionaries: codes of diagnoses, procedures and groups, items, providers and caregivers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from mmnar_mimic4.simulated.columns import COLUMNS
from mmnar_mimic4.simulated.course import Course, Values, date, turns
from mmnar_mimic4.simulated.patients import CAREGIVERS, provider_ids
from mmnar_mimic4.simulated.timeline import Ints
from mmnar_mimic4.simulated.vocabulary import vocabulary

# ICD-9, its title, ICD-10, its title, weight of frailty
_DIAGNOSES = (
    ("4019", "Unspecified essential hypertension", "I10", "Essential (primary) hypertension", -0.3),
    ("4280", "Congestive heart failure, unspecified", "I509", "Heart failure, unspecified", 0.9),
    ("42731", "Atrial fibrillation", "I4891", "Unspecified atrial fibrillation", 0.4),
    ("25000", "Diabetes mellitus without mention of complication, type II or unspecified type, not stated as "
     "uncontrolled", "E119", "Type 2 diabetes mellitus without complications", 0.0),
    ("5849", "Acute kidney failure, unspecified", "N179", "Acute kidney failure, unspecified", 0.9),
    ("0389", "Unspecified septicemia", "A419", "Sepsis, unspecified organism", 1.0),
    ("486", "Pneumonia, organism unspecified", "J189", "Pneumonia, unspecified organism", 0.6),
    ("496", "Chronic airway obstruction, not elsewhere classified", "J449",
     "Chronic obstructive pulmonary disease, unspecified", 0.4),
    ("2724", "Other and unspecified hyperlipidemia", "E785", "Hyperlipidemia, unspecified", -0.4),
    ("V4581", "Aortocoronary bypass status", "Z951", "Presence of aortocoronary bypass graft", 0.0),
    ("0088", "Intestinal infection due to other organism, not elsewhere classified", "A084",
     "Viral intestinal infection, unspecified", -0.2),
    ("51881", "Acute respiratory failure", "J9601", "Acute respiratory failure with hypoxia", 1.0),
)  # fmt: skip
_PROCEDURES = (
    ("3893", "Venous catheterization, not elsewhere classified", "02HV33Z",
     "Insertion of Infusion Device into Superior Vena Cava, Percutaneous Approach"),
    ("9604", "Insertion of endotracheal tube", "0BH17EZ",
     "Insertion of Endotracheal Airway into Trachea, Via Natural or Artificial Opening"),
    ("0331", "Spinal tap", "009U3ZX", "Drainage of Spinal Canal, Percutaneous Approach, Diagnostic"),
    ("9671", "Continuous invasive mechanical ventilation for less than 96 consecutive hours", "5A1945Z",
     "Respiratory Ventilation, 24-96 Consecutive Hours"),
)  # fmt: skip
_GROUPS = (("HCFA", "871", "SEPTICEMIA OR SEVERE SEPSIS W/O MV >96 HOURS W MCC"),
           ("HCFA", "291", "HEART FAILURE & SHOCK W MCC OR PERIPHERAL EXTRACORPOREAL MEMBRANE OXYGENATION"),
           ("APR", "720", "SEPTICEMIA & DISSEMINATED INFECTIONS"), ("APR", "194", "HEART FAILURE"))  # fmt: skip
_HCPCS = (("99218", "Hospital observation services"), ("93454", "Cardiovascular"), ("64415", "Nervous system"))
_ITEMS = (
    (220048, "Heart Rhythm", "Heart Rhythm", "chartevents", "Routine Vital Signs", None, "Text"),
    (227969, "Safety Measures", "Safety Measures", "chartevents", "Restraint/Support Systems", None, "Text"),
    (224641, "Alarms On", "Alarms On", "chartevents", "Alarms", None, "Checkbox"),
    (226559, "Foley", "Foley", "outputevents", "Output", "mL", "Numeric"),
    (225754, "20 Gauge Insertion Date", "20 Gauge Insertion Date", "datetimeevents", "Access Lines - Peripheral",
     None, "Date and time"),
    (220490, "Water", "H2O", "ingredientevents", "Ingredients", "mL", "Ingredient"),
    (227074, "IVF ingredient", "IVF ingredient", "ingredientevents", "Ingredients", "mL", "Ingredient"),
)  # fmt: skip


def codes(course: Course) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``diagnoses_icd``, ``procedures_icd``, ``drgcodes`` and ``hcpcsevents``; all billed afterwards."""
    rng = course.generator("codes")
    s = course.episodes
    e = np.concatenate([np.arange(len(s)), np.flatnonzero(s.chained)])
    hadm = np.append(course.first_hadm, course.last_hadm[s.chained])
    # the hospital changed from ICD-9 to ICD-10 in October 2015
    tenth = course.real_year >= np.where(rng.random(len(s)) < 0.25, 2015, 2016)
    score = 0.7 * course.latent[course.person[e], :1] + 0.7 * course.latent[course.person[e], 1:2]
    weight = np.array([line[4] for line in _DIAGNOSES])
    has = score * weight + rng.logistic(size=(len(e), len(_DIAGNOSES))) - 1.0 > 0
    has[np.arange(len(e)), rng.integers(0, len(_DIAGNOSES), len(e))] = True
    row, which = np.nonzero(has)
    title = np.array([(line[0], line[2]) for line in _DIAGNOSES])
    late = tenth[e[row]].astype(np.int64)
    given: dict[str, Values] = {
        "hadm_id": hadm[row],
        "seq_num": 1 + np.arange(len(row)) - np.searchsorted(row, row),
        "icd_code": title[which, late],
        "icd_version": 9 + late,
    }
    yield "hosp/diagnoses_icd", course.table("hosp/diagnoses_icd", e[row], given)
    done = np.flatnonzero(rng.random(len(e)) < np.where(s.icu[e], 0.7, 0.2))
    which, late = rng.integers(0, len(_PROCEDURES), len(done)), tenth[e[done]].astype(np.int64)
    title = np.array([(line[0], line[2]) for line in _PROCEDURES])
    given = {
        "hadm_id": hadm[done],
        "seq_num": 1,
        "chartdate": date(np.where(done >= len(s), s.end[e[done]], s.admit[e[done]])),
        "icd_code": title[which, late],
        "icd_version": 9 + late,
    }
    yield "hosp/procedures_icd", course.table("hosp/procedures_icd", e[done], given)
    yield from _groups(course, rng, e, hadm)


def _groups(course: Course, rng: np.random.Generator, e: Ints, hadm: Ints) -> Iterator[tuple[str, pl.DataFrame]]:
    row, turn = turns(np.where(rng.random(len(e)) < 0.9, 2, 0))
    which = 2 * turn + rng.integers(0, 2, len(row))
    refined = turn == 1
    graded = pl.Series(rng.integers(1, 5, len(row)))
    shown = pl.select(pl.when(pl.Series(refined)).then(graded)).to_series()
    kind, code, title = (np.array(column)[which] for column in zip(*_GROUPS, strict=True))
    given: dict[str, Values] = {
        "hadm_id": hadm[row],
        "drg_type": kind,
        "drg_code": code,
        "description": title,
        "drg_severity": shown,
        "drg_mortality": shown,
    }
    yield "hosp/drgcodes", course.table("hosp/drgcodes", e[row], given)
    some = np.flatnonzero(rng.random(len(e)) < 0.1)
    which = rng.integers(0, len(_HCPCS), len(some))
    given = {
        "hadm_id": hadm[some],
        "chartdate": date(course.episodes.admit[e[some]]),
        "hcpcs_cd": np.array([code for code, _ in _HCPCS])[which],
        "seq_num": 1,
        "short_description": np.array([title for _, title in _HCPCS])[which],
    }
    yield "hosp/hcpcsevents", course.table("hosp/hcpcsevents", e[some], given)


def dictionaries() -> Iterator[tuple[str, pl.DataFrame]]:
    """Tables that are the same in every extract: ``d_…``, ``provider`` and ``caregiver``."""
    labs = vocabulary("labs").select(pl.col("itemid").cast(pl.Int64), "label", "fluid", "category")
    # where releases differ; and one that no catalogue has
    more = [(53132, "Absolute Lymphocyte Count", "Blood", "Hematology"), (52033, "Specimen Type", "Blood", "Blood Gas")]
    yield "hosp/d_labitems", pl.concat([labs, pl.DataFrame(more, schema=labs.schema, orient="row")]).sort("itemid")
    yield "hosp/d_icd_diagnoses", _titles("hosp/d_icd_diagnoses", [line[:4] for line in _DIAGNOSES])
    yield "hosp/d_icd_procedures", _titles("hosp/d_icd_procedures", list(_PROCEDURES))
    rows = [(code, None, title, title) for code, title in _HCPCS]
    yield "hosp/d_hcpcs", pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS["hosp/d_hcpcs"], pl.String), orient="row")
    yield "hosp/provider", pl.DataFrame({"provider_id": provider_ids()})
    yield "icu/caregiver", pl.DataFrame({"caregiver_id": 101 + 331 * np.arange(CAREGIVERS)})
    yield "icu/d_items", _items()


def _titles(table: str, lines: list[tuple[str, str, str, str]]) -> pl.DataFrame:
    rows = [(old, 9, title) for old, title, _, _ in lines] + [(new, 10, title) for _, _, new, title in lines]
    return pl.DataFrame(sorted(rows), schema=list(COLUMNS[table]), orient="row")


def _items() -> pl.DataFrame:
    kinds = {"charts": ("chartevents", "Numeric"), "inputs": ("inputevents", "Solution"),
             "procedures": ("procedureevents", "Processes")}  # fmt: skip
    rows = list(_ITEMS)
    for name, (table, kind) in kinds.items():
        for line in vocabulary(name).rows(named=True):
            unit = line.get("unit")
            head = (int(line["itemid"]), line["label"], line["abbreviation"])
            rows.append((*head, table, line["category"], unit, kind))
    columns = list(COLUMNS["icu/d_items"])
    frame = pl.DataFrame(
        sorted(rows, key=lambda row: row[0]), schema=columns[:7], orient="row", infer_schema_length=None
    )
    return frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in columns[7:])
