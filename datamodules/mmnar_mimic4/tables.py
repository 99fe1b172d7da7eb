"""The raw tables of MIMIC-IV, MIMIC-IV-Note and MIMIC-CXR-JPG: which columns may be read, and when each became known.

Times are dates of a calendar that was shifted for each patient. Columns that know the future stand on no list:
``last_careunit``, ``los``, the order status and ``stoptime`` of prescriptions, the amounts that were ordered in total.
What is an outcome (discharge, death, the end of an ICU stay) has specs of its own, read by `cohort` alone.

A *result* exists from the later of charttime and storetime. A *start* (infusion, ventilation, medication, culture)
exists an hour after it; ``storetime`` of inputevents and procedureevents is that of the finished row, so that it goes
with the end and the amount. A discharge summary's charttime is only a date: without storetime it exists from the end of
that day.

Source: A. E. W. Johnson et al., "MIMIC-IV, a freely accessible electronic health record dataset", Scientific Data 10:1
(2023); MIMIC-IV 2.2 and 3.1, MIMIC-IV-Note 2.2, MIMIC-CXR-JPG 2.1.0 on PhysioNet; MIT-LCP/mimic-code.
"""

from __future__ import annotations

from functools import cache

import polars as pl

from mmnar_lightning.extract import Clock, Column, ItemCatalogue, Only, TableSpec

SUBJECT = "subject_id"
ADMISSION = "hadm_id"
STAY = "stay_id"

TEXT = Column(pl.String)
WHOLE = Column(pl.Int64)
NUMBER = Column(pl.Float64)
TIME = Column(pl.Datetime("us"))
DATE = Column(pl.Date)

DAY = 1440.0  # minutes

PATIENTS = TableSpec(
    "patients",
    "hosp/patients",
    {SUBJECT: WHOLE, "gender": TEXT, "anchor_age": WHOLE, "anchor_year": WHOLE, "anchor_year_group": TEXT},
    clock=None,
    key=(SUBJECT,),
    not_null=(SUBJECT, "anchor_age", "anchor_year", "anchor_year_group"),
)
# Over the same file as PATIENTS, and read by `cohort` alone: no modality can touch an outcome by accident.
DEATHS = TableSpec(
    "deaths", "hosp/patients", {SUBJECT: WHOLE, "dod": DATE}, clock=None, key=(SUBJECT,), not_null=(SUBJECT,)
)

ADMISSIONS = TableSpec(
    "admissions",
    "hosp/admissions",
    {
        SUBJECT: WHOLE,
        ADMISSION: WHOLE,
        "admittime": TIME,
        "admission_type": TEXT,
        "admission_location": TEXT,
        "insurance": TEXT,
        "language": TEXT,
        "marital_status": TEXT,
        "race": TEXT,
        "edregtime": TIME,
        "edouttime": TIME,
    },
    clock=None,
    key=(ADMISSION,),
    not_null=(SUBJECT, ADMISSION, "admittime"),
)
# Over the same file as ADMISSIONS, likewise.
DISCHARGES = TableSpec(
    "discharges",
    "hosp/admissions",
    {ADMISSION: WHOLE, "dischtime": TIME, "deathtime": TIME, "discharge_location": TEXT, "hospital_expire_flag": WHOLE},
    clock=None,
    key=(ADMISSION,),
    not_null=(ADMISSION,),
)

ICU_STAYS = TableSpec(
    "icustays",
    "icu/icustays",
    {SUBJECT: WHOLE, ADMISSION: WHOLE, STAY: WHOLE, "first_careunit": TEXT, "intime": TIME},
    clock=None,
    key=(STAY,),
    not_null=(SUBJECT, ADMISSION, STAY, "intime"),
)
# Over the same file as ICU_STAYS, likewise.
ICU_ENDS = TableSpec(
    "icu_ends", "icu/icustays", {STAY: WHOLE, "outtime": TIME}, clock=None, key=(STAY,), not_null=(STAY,)
)

TRANSFERS = TableSpec(
    "transfers",
    "hosp/transfers",
    {SUBJECT: WHOLE, "eventtype": TEXT, "careunit": TEXT, "intime": TIME},
    Clock("intime"),
    not_null=(SUBJECT,),
)
SERVICES = TableSpec(
    "services",
    "hosp/services",
    {SUBJECT: WHOLE, "transfertime": TIME, "curr_service": TEXT},
    Clock("transfertime"),
    optional=True,
    not_null=(SUBJECT,),
)

_FIXED = Clock("endtime", "storetime")  # what only a finished row tells
# ``rate`` is the amount of the finished row over its time, to the last digit: the end stands in it. What was set at the
# start is ``originalrate``.
INPUTS = TableSpec(
    "inputevents",
    "icu/inputevents",
    {
        SUBJECT: WHOLE,
        "starttime": TIME,
        "endtime": Column(pl.Datetime("us"), clock=_FIXED),
        "storetime": Column(pl.Datetime("us"), clock=_FIXED),
        "itemid": WHOLE,
        "amount": Column(pl.Float64, clock=_FIXED),
        "amountuom": TEXT,
        "originalrate": NUMBER,
        "rateuom": TEXT,
    },
    Clock("starttime"),
    not_null=(SUBJECT,),
)
PROCEDURES = TableSpec(
    "procedureevents",
    "icu/procedureevents",
    {
        SUBJECT: WHOLE,
        "starttime": TIME,
        "endtime": Column(pl.Datetime("us"), clock=_FIXED),
        "storetime": Column(pl.Datetime("us"), clock=_FIXED),
        "itemid": WHOLE,
    },
    Clock("starttime"),
    not_null=(SUBJECT,),
)
PRESCRIPTIONS = TableSpec(
    "prescriptions",
    "hosp/prescriptions",
    {SUBJECT: WHOLE, "starttime": TIME, "drug_type": TEXT, "drug": TEXT},
    Clock("starttime"),
    not_null=(SUBJECT,),
)

_ORGANISM = Clock("charttime", "storetime")
MICRO = TableSpec(
    "micro",
    "hosp/microbiologyevents",
    {
        SUBJECT: WHOLE,
        "charttime": TIME,
        "chartdate": DATE,
        "storetime": Column(pl.Datetime("us"), clock=_ORGANISM),
        "spec_type_desc": TEXT,
        "org_name": Column(pl.String, clock=_ORGANISM),
    },
    Clock("charttime"),
    not_null=(SUBJECT,),
)

# Orders of a code status (resuscitation, comfort): the order has the time, its details the words.
ORDERS = TableSpec(
    "poe",
    "hosp/poe",
    {"poe_id": TEXT, SUBJECT: WHOLE, "ordertime": TIME},
    Clock("ordertime", lag=0.0),
    optional=True,
    not_null=("poe_id", SUBJECT),
)
ORDER_DETAILS = TableSpec(
    "poe_detail",
    "hosp/poe_detail",
    {"poe_id": TEXT, SUBJECT: WHOLE, "field_name": TEXT, "field_value": TEXT},
    clock=None,
    optional=True,
    not_null=("poe_id", SUBJECT),
)

_NOTE = {
    "note_id": TEXT,
    SUBJECT: WHOLE,
    ADMISSION: WHOLE,
    "note_type": TEXT,
    "charttime": TIME,
    "storetime": TIME,
    "text": Column(pl.String, documents=True),
}
DISCHARGE_NOTES = TableSpec(
    "discharge",
    "note/discharge",
    _NOTE,
    Clock("charttime", "storetime", lag=DAY),
    key=("note_id",),
    optional=True,
    not_null=("note_id", SUBJECT, ADMISSION),
)
RADIOLOGY_NOTES = TableSpec(
    "radiology",
    "note/radiology",
    _NOTE,
    Clock("charttime", "storetime"),
    key=("note_id",),
    optional=True,
    not_null=("note_id", SUBJECT),
)

# Billing codes are assigned after discharge: no clock makes them safe, and only the paper's preset reads them.
DIAGNOSES = TableSpec(
    "diagnoses_icd",
    "hosp/diagnoses_icd",
    {SUBJECT: WHOLE, ADMISSION: WHOLE, "icd_code": TEXT, "icd_version": WHOLE},
    clock=None,
    not_null=(SUBJECT, ADMISSION),
)
PROCEDURE_CODES = TableSpec(
    "procedures_icd",
    "hosp/procedures_icd",
    {SUBJECT: WHOLE, ADMISSION: WHOLE, "icd_code": TEXT, "icd_version": WHOLE},
    clock=None,
    not_null=(SUBJECT, ADMISSION),
)


@cache
def catalogue(name: str) -> ItemCatalogue:
    """Read a catalogue of this package: ``labs``, ``vitals`` or ``outputs``."""
    return ItemCatalogue.read("mmnar_mimic4", f"catalogue/{name}.csv")


def _measured(table: str, items: str, columns: dict[str, Column]) -> TableSpec:
    """Spec of a table of measurements, of which the rows of a catalogue's items are read."""
    listed = {SUBJECT: WHOLE, "itemid": WHOLE, "charttime": TIME, "storetime": TIME, **columns}
    only = Only.catalogued(catalogue(items), "itemid")
    name = table.split("/")[1]
    return TableSpec(name, table, listed, Clock("charttime", "storetime"), not_null=(SUBJECT,), only=only)


@cache
def labs() -> TableSpec:
    """Spec of labevents."""
    return _measured("hosp/labevents", "labs", {"valuenum": NUMBER, "valueuom": TEXT})


@cache
def charts() -> TableSpec:
    """Spec of chartevents."""
    return _measured("icu/chartevents", "vitals", {"valuenum": NUMBER, "valueuom": TEXT})


@cache
def outputs() -> TableSpec:
    """Spec of outputevents."""
    return _measured("icu/outputevents", "outputs", {"value": NUMBER})
