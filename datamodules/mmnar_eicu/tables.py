"""The raw tables of eICU-CRD 2.0: which columns may be read, and when each row became known.

All times are minutes from the *unit* admission of the row's unit stay. Columns that know the future stand on no list:
``activeupondischarge``, ``dischargeweight``, ``unitdischarge*`` and ``hospitaldischarge*`` (but in `OUTCOMES`),
``drugstopoffset``, ``drugordercancelled``, ``ventendoffset`` and all APACHE tables. ``apacheadmissiondx`` of the
patient table has no clock; the same diagnosis stands in admissionDx, which has one. ``organism`` and
``sensitivitylevel`` of microLab are results without a time of their own.

Where eICU's documentation calls the only offset of a table "entered" (diagnosis, treatment, physicalExam), that is not
trusted: physicalExam's is in truth the time the note is about. These rows exist from that offset plus an hour, a column
with ``entered`` or ``save`` in its name at that offset.

Source: T. J. Pollard et al., "The eICU Collaborative Research Database, a freely available multi-center database for
critical care research", Scientific Data 5:180178 (2018); eICU-CRD 2.0 documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import polars as pl

from mmnar_lightning.extract import Clock, Column, ItemCatalogue, TableSpec, Units

STAY = "patientunitstayid"

TEXT = Column(pl.String)
WHOLE = Column(pl.Int64)
NUMBER = Column(pl.Float64)

# A physical exam has no entry time of its own. Notes do: of the demo's, 15 % are entered more than an hour after the
# time they are about, 1 % more than 12 hours. An exam without its note is held back that long.
EXAM_LAG = 720.0


def _entered(column: str) -> Clock:
    """Clock of a column that is itself the time of entry."""
    return Clock(event=column, entry=column)


def _table(file: str, clock: Clock | None, columns: dict[str, Column], optional: bool = False) -> TableSpec:
    """Spec of an event table; its key in the extractor is its file name in lower case."""
    listed = {STAY: WHOLE, **columns}
    return TableSpec(file.lower(), file, listed, clock, optional=optional, not_null=(STAY,))


PATIENT = TableSpec(
    name="patient",
    file="patient",
    columns={
        STAY: WHOLE,
        "patienthealthsystemstayid": WHOLE,
        "uniquepid": TEXT,
        "hospitalid": WHOLE,
        "gender": TEXT,
        "age": TEXT,
        "ethnicity": TEXT,
        "admissionheight": NUMBER,
        "admissionweight": NUMBER,
        "hospitaladmitoffset": WHOLE,
        "hospitaladmitsource": TEXT,
        "unittype": TEXT,
        "unitadmittime24": TEXT,
        "unitadmitsource": TEXT,
        "unitstaytype": TEXT,
    },
    clock=None,
    key=(STAY,),
    not_null=(STAY, "patienthealthsystemstayid", "uniquepid"),
)

# Over the same file as PATIENT, and read by `cohort` alone: no modality can touch an outcome by accident.
OUTCOMES = TableSpec(
    name="outcomes",
    file="patient",
    columns={
        STAY: WHOLE,
        "unitdischargeoffset": WHOLE,
        "unitdischargestatus": TEXT,
        "hospitaldischargeoffset": WHOLE,
        "hospitaldischargestatus": TEXT,
        "hospitaldischargeyear": WHOLE,
    },
    clock=None,
    key=(STAY,),
    not_null=(STAY,),
)

HOSPITAL = TableSpec(
    name="hospital",
    file="hospital",
    columns={"hospitalid": WHOLE, "numbedscategory": TEXT, "teachingstatus": TEXT, "region": TEXT},
    clock=None,
    key=("hospitalid",),
    not_null=("hospitalid",),
)

PERIODIC = (
    "temperature",
    "sao2",
    "heartrate",
    "respiration",
    "cvp",
    "etco2",
    "systemicsystolic",
    "systemicdiastolic",
    "systemicmean",
    "pasystolic",
    "padiastolic",
    "pamean",
    "icp",
)
APERIODIC = (
    "noninvasivesystolic",
    "noninvasivediastolic",
    "noninvasivemean",
    "paop",
    "cardiacoutput",
    "cardiacinput",
    "svr",
    "svri",
    "pvr",
    "pvri",
)

VITAL_PERIODIC = _table(
    "vitalPeriodic", Clock("observationoffset"), {"observationoffset": WHOLE} | dict.fromkeys(PERIODIC, NUMBER)
)
VITAL_APERIODIC = _table(
    "vitalAperiodic", Clock("observationoffset"), {"observationoffset": WHOLE} | dict.fromkeys(APERIODIC, NUMBER)
)
MEDICATION = _table(
    "medication", Clock("drugorderoffset"), {"drugorderoffset": WHOLE, "drugname": TEXT, "drughiclseqno": WHOLE}
)
INFUSION = _table(
    "infusionDrug", Clock("infusionoffset"), {"infusionoffset": WHOLE, "drugname": TEXT, "drugrate": TEXT}
)
ADMISSION_DRUG = _table(
    "admissionDrug",
    Clock("drugoffset", "drugenteredoffset"),
    {"drugoffset": WHOLE, "drugenteredoffset": WHOLE, "drugname": TEXT, "drughiclseqno": WHOLE},
)
TREATMENT = _table("treatment", Clock("treatmentoffset"), {"treatmentoffset": WHOLE, "treatmentstring": TEXT})
DIAGNOSIS = _table("diagnosis", Clock("diagnosisoffset"), {"diagnosisoffset": WHOLE, "diagnosisstring": TEXT})
ADMISSION_DX = _table(
    "admissionDx", _entered("admitdxenteredoffset"), {"admitdxenteredoffset": WHOLE, "admitdxpath": TEXT}
)
PAST_HISTORY = _table(
    "pastHistory",
    Clock("pasthistoryoffset", "pasthistoryenteredoffset"),
    {"pasthistoryoffset": WHOLE, "pasthistoryenteredoffset": WHOLE, "pasthistorypath": TEXT},
)
NOTE = _table(
    "note",
    Clock("noteoffset", "noteenteredoffset"),
    {"noteoffset": WHOLE, "noteenteredoffset": WHOLE, "notetype": TEXT, "notepath": TEXT},
)
PHYSICAL_EXAM = _table(
    "physicalExam",
    Clock("physicalexamoffset", lag=EXAM_LAG),
    {"physicalexamoffset": WHOLE, "physicalexampath": TEXT},
)
CARE_PLAN = _table(
    "carePlanGeneral",
    Clock("cplitemoffset"),
    {"cplitemoffset": WHOLE, "cplgroup": TEXT, "cplitemvalue": TEXT},
    optional=True,
)
CARE_PLAN_EOL = _table("carePlanEOL", _entered("cpleolsaveoffset"), {"cpleolsaveoffset": WHOLE}, optional=True)
RESPIRATORY_CARE = _table(
    "respiratoryCare", Clock("respcarestatusoffset"), {"respcarestatusoffset": WHOLE, "airwaytype": TEXT}
)
RESPIRATORY_CHARTING = _table(
    "respiratoryCharting",
    Clock("respchartoffset", "respchartentryoffset"),
    {"respchartoffset": WHOLE, "respchartentryoffset": WHOLE, "respchartvaluelabel": TEXT, "respchartvalue": TEXT},
)
MICRO = _table("microLab", Clock("culturetakenoffset"), {"culturetakenoffset": WHOLE, "culturesite": TEXT})


@cache
def catalogue(name: str) -> ItemCatalogue:
    """Read a catalogue of this package: ``labs``, ``vitals`` or ``respiratory``."""
    return ItemCatalogue.read("mmnar_eicu", f"catalogue/{name}.csv")


@cache
def lab() -> TableSpec:
    """Spec of the lab table, whose units are checked against the catalogue."""
    columns = {
        STAY: WHOLE,
        "labresultoffset": WHOLE,
        "labresultrevisedoffset": WHOLE,
        "labname": TEXT,
        "labresult": NUMBER,
        "labmeasurenamesystem": TEXT,
    }
    clock = Clock("labresultoffset", "labresultrevisedoffset")
    units = Units(catalogue("labs"), raw_id="labname", unit="labmeasurenamesystem")
    return TableSpec("lab", "lab", columns, clock, not_null=(STAY,), units=units)


def all_tables(respiratory: bool = False, micro: bool = False) -> Sequence[TableSpec]:
    """Specs of the tables that the modalities need, those of the optional ones only where asked for."""
    always = [PATIENT, OUTCOMES, HOSPITAL, lab(), VITAL_PERIODIC, VITAL_APERIODIC, MEDICATION, INFUSION, ADMISSION_DRUG]
    always += [TREATMENT, DIAGNOSIS, ADMISSION_DX, PAST_HISTORY, NOTE, PHYSICAL_EXAM, CARE_PLAN, CARE_PLAN_EOL]
    return [*always, *([RESPIRATORY_CARE, RESPIRATORY_CHARTING] if respiratory else []), *([MICRO] if micro else [])]
