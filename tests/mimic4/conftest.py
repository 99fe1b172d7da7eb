"""Small hand-made extracts in MIMIC-IV's raw layout: as polars frames, or written as files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import polars as pl
import pytest
from PIL import Image

from mmnar_lightning.extract import Counts, TableSpec, scan
from mmnar_lightning.records import RecordSchema, RecordStore, write_store
from mmnar_mimic4 import MIMIC4Extractor, tables

_EVENT = "subject_id,hadm_id,stay_id,caregiver_id"
_GIVEN = "starttime,endtime,storetime,itemid"
# Full headers of MIMIC-IV 2.2 and 3.1 (those of MIMIC-IV-Note 2.2 and MIMIC-CXR-JPG below), so that most columns are
# ones that the extractor must not read.
HEADERS = {
    "hosp/admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admit_provider_id,"
    "admission_location,discharge_location,insurance,language,marital_status,race,edregtime,edouttime,"
    "hospital_expire_flag",
    "hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "hosp/transfers": "subject_id,hadm_id,transfer_id,eventtype,careunit,intime,outtime",
    "hosp/services": "subject_id,hadm_id,transfertime,prev_service,curr_service",
    "hosp/labevents": "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,"
    "valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments",
    "hosp/d_labitems": "itemid,label,fluid,category",
    "hosp/microbiologyevents": "microevent_id,subject_id,hadm_id,micro_specimen_id,order_provider_id,chartdate,"
    "charttime,spec_itemid,spec_type_desc,test_seq,storedate,storetime,test_itemid,test_name,org_itemid,org_name,"
    "isolate_num,quantity,ab_itemid,ab_name,dilution_text,dilution_comparison,dilution_value,interpretation,comments",
    "hosp/prescriptions": "subject_id,hadm_id,pharmacy_id,poe_id,poe_seq,order_provider_id,starttime,stoptime,"
    "drug_type,drug,formulary_drug_cd,gsn,ndc,prod_strength,form_rx,dose_val_rx,dose_unit_rx,form_val_disp,"
    "form_unit_disp,doses_per_24_hrs,route",
    "hosp/diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version",
    "hosp/procedures_icd": "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version",
    "hosp/poe": "poe_id,poe_seq,subject_id,hadm_id,ordertime,order_type,order_subtype,transaction_type,"
    "discontinue_of_poe_id,discontinued_by_poe_id,order_provider_id,order_status",
    "hosp/poe_detail": "poe_id,poe_seq,subject_id,field_name,field_value",
    "hosp/provider": "provider_id",
    "icu/icustays": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "icu/chartevents": f"{_EVENT},charttime,storetime,itemid,value,valuenum,valueuom,warning",
    "icu/outputevents": f"{_EVENT},charttime,storetime,itemid,value,valueuom",
    "icu/inputevents": f"{_EVENT},{_GIVEN},amount,amountuom,rate,rateuom,orderid,linkorderid,ordercategoryname,"
    "secondaryordercategoryname,ordercomponenttypedescription,ordercategorydescription,patientweight,totalamount,"
    "totalamountuom,isopenbag,continueinnextdept,statusdescription,originalamount,originalrate",
    "icu/procedureevents": f"{_EVENT},{_GIVEN},value,valueuom,location,locationcategory,orderid,linkorderid,"
    "ordercategoryname,ordercategorydescription,patientweight,isopenbag,continueinnextdept,statusdescription,"
    "ORIGINALAMOUNT,ORIGINALRATE",
    "icu/caregiver": "caregiver_id",
    "note/discharge": "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text",
    "note/radiology": "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text",
    "mimic-cxr-2.0.0-metadata": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,"
    "Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning",
}
OPTIONAL = ("hosp/poe", "hosp/poe_detail", "note/discharge", "note/radiology", "mimic-cxr-2.0.0-metadata")
LAB_LABELS = {
    50912: "Creatinine",
    50971: "Potassium",
    50983: "Sodium",
    51222: "Hemoglobin",
    53132: "Absolute Lymphocyte Count",
    53152: "HIV FINAL",
}
COHORT_SPECS = (
    tables.PATIENTS,
    tables.DEATHS,
    tables.ADMISSIONS,
    tables.DISCHARGES,
    tables.ICU_STAYS,
    tables.ICU_ENDS,
)
SUBJECT = 10_000_001
START = datetime(2150, 6, 1, 12)  # what `day(0)` is


def day(days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> datetime:
    """A time so long after noon of 1 June 2150."""
    return START + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


_MEASURED = {"charttime": day(0, 10), "storetime": day(0, 11)}
_RUN = {"starttime": day(0, 10), "endtime": day(0, 12), "storetime": day(0, 12)}
# A row of each table of events, known at hour 12 of a stay; orders, notes and films are apart.
EVENTS: dict[str, dict[str, Any]] = {
    "hosp/labevents": {"itemid": 50912, "valuenum": 1.1, "valueuom": "mg/dL", **_MEASURED},
    "icu/chartevents": {"itemid": 220045, "valuenum": 90, "valueuom": "bpm", **_MEASURED},
    "icu/outputevents": {"itemid": 226559, "value": 200, "valueuom": "mL", **_MEASURED},
    "icu/inputevents": {"itemid": 221906, "originalrate": 0.1, "rateuom": "mcg/kg/min", "amount": 1, **_RUN},
    "icu/procedureevents": {"itemid": 225792, **_RUN},
    "hosp/prescriptions": {"drug_type": "MAIN", "drug": "Furosemide", "starttime": day(0, 10), "stoptime": day(2)},
    "hosp/microbiologyevents": {
        "chartdate": day(0, 10).date(),
        "spec_type_desc": "BLOOD CULTURE",
        "org_name": "ESCHERICHIA COLI",
        **_MEASURED,
    },
    "hosp/transfers": {"eventtype": "transfer", "careunit": "Medical Intensive Care Unit (MICU)", "intime": day(0, 2)},
    "hosp/services": {"transfertime": day(0, 10), "curr_service": "MED"},
}


# Table: when a row happened, when it was entered, and the minutes after which it is known where it was not entered.
CLOCKS: dict[str, tuple[str, str | None, int]] = {
    "hosp/labevents": ("charttime", "storetime", 60),
    "icu/chartevents": ("charttime", "storetime", 60),
    "icu/outputevents": ("charttime", "storetime", 60),
    "icu/inputevents": ("starttime", None, 60),
    "icu/procedureevents": ("starttime", None, 60),
    "hosp/prescriptions": ("starttime", None, 60),
    "hosp/microbiologyevents": ("charttime", None, 60),
    "hosp/transfers": ("intime", None, 60),
    "hosp/services": ("transfertime", None, 60),
    "hosp/poe": ("ordertime", None, 0),
    "note/radiology": ("charttime", "storetime", 60),
    "note/discharge": ("charttime", "storetime", 1440),
    "mimic-cxr-2.0.0-metadata": ("StudyDate", None, 60),
}


@dataclass
class RawTables:
    """Rows of a raw extract, by table (``hosp/admissions``, …). Every `add` and its short forms return the object."""

    clocks: ClassVar[Mapping[str, tuple[str, str | None, int]]] = CLOCKS
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in HEADERS})

    def add(self, table: str, **columns: Any) -> RawTables:
        """Add a row; columns not given are null. Times are datetimes, dates dates."""
        unknown = set(columns) - set(HEADERS[table].split(","))
        assert not unknown, unknown
        self.rows[table].append(columns)
        return self

    def patient(self, subject: int = SUBJECT, **columns: Any) -> RawTables:
        """Add a patient: by default a woman of 60 in 2150, which was between 2011 and 2013, alive."""
        usual = {"gender": "F", "anchor_age": 60, "anchor_year": 2150, "anchor_year_group": "2011 - 2013"}
        return self.add("hosp/patients", **{"subject_id": subject, **usual, **columns})

    def admission(
        self, hadm: int, admit: datetime, discharge: datetime | None, subject: int = SUBJECT, **columns: Any
    ) -> RawTables:
        """Add an admission: by default an emergency that went home, without a time in the emergency department."""
        usual = {
            "admission_type": "EW EMER.",
            "admit_provider_id": "P00001",
            "admission_location": "EMERGENCY ROOM",
            "discharge_location": "HOME",
            "insurance": "Medicare",
            "language": "ENGLISH",
            "marital_status": "MARRIED",
            "race": "WHITE",
            "hospital_expire_flag": 0,
        }
        times = {"subject_id": subject, "hadm_id": hadm, "admittime": admit, "dischtime": discharge}
        return self.add("hosp/admissions", **{**times, **usual, **columns})

    def icu_stay(
        self,
        stay: int,
        hadm: int,
        intime: datetime,
        outtime: datetime | None,
        subject: int = SUBJECT,
        **columns: Any,
    ) -> RawTables:
        """Add an ICU stay, by default in the MICU."""
        unit = "Medical Intensive Care Unit (MICU)"
        usual = {"first_careunit": unit, "last_careunit": unit}
        times = {"subject_id": subject, "hadm_id": hadm, "stay_id": stay, "intime": intime, "outtime": outtime}
        return self.add("icu/icustays", **{**times, **usual, **columns})

    def film(
        self, folder: Path | None, dicom: str, time: datetime, subject: int = SUBJECT, **columns: Any
    ) -> RawTables:
        """Add a frontal film, and put its file below a folder, if there is one."""
        keys = {"dicom_id": dicom, "subject_id": subject, "study_id": 50_000_001, "ViewPosition": "AP"}
        row = {
            **keys,
            "StudyDate": f"{time:%Y%m%d}",
            "StudyTime": f"{time:%H%M%S}.{time.microsecond // 1000:03d}",
        } | columns
        if folder is not None:
            path = folder / f"files/p{str(subject)[:2]}/p{subject}/s{row['study_id']}/{dicom}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
        return self.add("mimic-cxr-2.0.0-metadata", **row)

    def life(self, number: int = 0, films: Path | None = None, bare: bool = False) -> RawTables:
        """Add a patient: five days in the hospital, in the ICU from hour 2 to day 4, and again 40 days later.

        Ids are `SUBJECT`, 20,000,001 and 30,000,001 plus ten times the number. Hour 10 of the stay has a row in every
        table, the end of it a summary; a bare life has none.
        """
        subject, hadm, stay = SUBJECT + 10 * number, 20_000_001 + 10 * number, 30_000_001 + 10 * number
        self.patient(subject)
        ed = {"edregtime": day(0, -3), "edouttime": day(0, 1)}
        self.admission(hadm, day(0), day(5), subject, **ed).icu_stay(stay, hadm, day(0, 2), day(4), subject)
        self.admission(hadm + 1, day(40), day(45), subject).icu_stay(stay + 1, hadm + 1, day(41), day(43), subject)
        if bare:
            return self
        for table, columns in EVENTS.items():
            self.add(table, subject_id=subject, **columns)
        order = f"{subject}-1"
        self.add("hosp/poe", poe_id=order, subject_id=subject, ordertime=day(0, 10), order_status="Inactive")
        words = {"field_name": "Code status", "field_value": "Full code"}
        self.add("hosp/poe_detail", poe_id=order, subject_id=subject, **words)
        report = {"note_id": f"{subject}-RR-1", "note_type": "RR", "text": "IMPRESSION: clear lungs."}
        self.add("note/radiology", subject_id=subject, charttime=day(0, 10), storetime=day(0, 11), **report)
        summary = {"note_id": f"{subject}-DS-1", "note_type": "DS", "text": 'Brief Hospital Course:\nhome, "well".'}
        written = {"charttime": day(4.5), "storetime": day(5, 3)}
        self.add("note/discharge", subject_id=subject, hadm_id=hadm, **written, **summary)
        return self.film(films, f"film-{subject}", day(0, 10), subject)

    @staticmethod
    def header(table: str) -> list[str]:
        """All columns of a table."""
        return HEADERS[table].split(",")

    def frame(self, spec: TableSpec) -> pl.DataFrame:
        """The rows of a table as its spec lists them, typed."""
        rows = [{name: row.get(name) for name in spec.columns} for row in self.rows[spec.file]]
        return pl.DataFrame(rows, schema=spec.schema, strict=False)

    def lazy(self, *specs: TableSpec) -> dict[str, pl.LazyFrame]:
        """Tables by name as `Source.frames` takes them."""
        return {spec.name: self.frame(spec).lazy() for spec in specs}

    def cohort_frames(self) -> dict[str, pl.DataFrame]:
        """Tables by name as `build_cohort` takes them."""
        return {spec.name: self.frame(spec) for spec in COHORT_SPECS}

    def write(self, folder: Path, suffix: str = ".csv.gz", without: Sequence[str] = ()) -> Path:
        """Write the tables as ``.csv``, ``.csv.gz`` or ``.parquet`` (all columns text), save those in `without`.

        No table that an extractor needs may be empty: a row of the first patient that has no time, and so is never
        known, stands in. Orders, notes and films are written only where there are rows.
        """
        patients = self.rows["hosp/patients"]
        nobody = {"subject_id": patients[0]["subject_id"] if patients else SUBJECT}
        stand_ins: dict[str, list[dict[str, Any]]] = {table: [nobody] for table in HEADERS}
        stand_ins["hosp/d_labitems"] = [
            {"itemid": item, "label": label, "fluid": "Blood", "category": "Chemistry"}
            for item, label in LAB_LABELS.items()
        ]
        stand_ins["hosp/provider"] = [{"provider_id": "P00001"}]
        stand_ins["icu/caregiver"] = [{"caregiver_id": 1}]
        for table in ("hosp/diagnoses_icd", "hosp/procedures_icd"):
            stand_ins[table] = [nobody | {"hadm_id": 0}]
        stand_ins["icu/icustays"] = [nobody | {"hadm_id": 0, "stay_id": 0, "intime": datetime(1900, 1, 1)}]
        for table, header in HEADERS.items():
            rows = self.rows[table]
            if table in without or (table in OPTIONAL and not rows):
                continue
            write_table(folder / f"{table}{suffix}", header.split(","), rows or stand_ins[table])
        return folder


def write_table(path: Path, header: Sequence[str], rows: Sequence[dict[str, Any]]) -> Path:
    """Write one table by the suffix of its path; nulls are empty fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [[as_text(row.get(name)) for name in header] for row in rows]
    if path.name.endswith(".parquet"):
        pl.DataFrame(table, schema=dict.fromkeys(header, pl.String), orient="row").write_parquet(path)
        return path
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in table)
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)
    return path


def as_text(value: Any) -> str | None:
    """A value as MIMIC-IV writes it."""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return None if value is None else str(value)


@dataclass(frozen=True)
class Extracted:
    """What an extraction made, collected."""

    extractor: MIMIC4Extractor
    schema: RecordSchema
    samples: pl.DataFrame
    elements: Mapping[str, pl.DataFrame]
    counts: Mapping[tuple[str, str], int]

    def differing(self, other: Extracted) -> dict[str, set[int]]:
        """Whose samples or elements differ: by ``samples`` or modality, numbers of samples; empty where all agree."""
        mine, theirs = ({"samples": one.samples.with_row_index("sample"), **one.elements} for one in (self, other))
        assert mine.keys() == theirs.keys()
        found = {}
        for name, frame in mine.items():
            if not frame.equals(theirs[name]):
                parts = [
                    {k[0]: v for k, v in one.partition_by("sample", as_dict=True).items()}
                    for one in (frame, theirs[name])
                ]
                either = parts[0].keys() | parts[1].keys()
                alike = {k for k in parts[0].keys() & parts[1].keys() if parts[0][k].equals(parts[1][k])}
                found[name] = {int(k) for k in either - alike}
        return found

    def value(self, modality: str, item: str, sample: int = 0) -> float | None:
        """Value of an item of a sample; None where it was not measured or the modality not observed."""
        rows = self.elements[modality].filter(pl.col("sample") == sample)[item].to_list()
        return rows[0] if rows else None

    def store(self, parent: Path) -> RecordStore:
        """A store of it, always under the same fingerprint, so that the same content is the same bytes."""
        made = self.schema, self.samples, self.elements
        return RecordStore(write_store(parent, "mimic4", self.extractor.cohort, "0" * 16, *made, {"counts": []}))

    def stored(self, parent: Path) -> dict[str, str]:
        """Hash of every file of that store but the manifest."""
        path = self.store(parent).path
        files = sorted(path.rglob("*.arrow"))
        return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def run(extractor: MIMIC4Extractor, root: Path, *only: str) -> Extracted:
    """Read a raw extract and collect what the extractor makes of it, or of some modalities."""
    log = Counts()
    frames = {spec.name: scan(root, spec).collect().lazy() for spec in extractor.tables()}
    made = extractor.extract(frames, log)
    steps = {name: step for name, step in made.elements.items() if not only or name in only}
    elements = {name: step() if callable(step) else step for name, step in steps.items()}
    return Extracted(extractor, made.schema, made.samples, elements, dict(log.items()))


@pytest.fixture(scope="session")
def extracted() -> Callable[..., Extracted]:
    """`extracted(extractor, root, *only)` reads a raw extract and returns samples, elements (of `only`) and counts."""
    return run


@pytest.fixture
def raw() -> RawTables:
    """An extract without rows: `raw.patient().admission(1, day(0), day(3)).add("hosp/labevents", …)`."""
    return RawTables()


@pytest.fixture(scope="session")
def new_raw() -> Callable[[], RawTables]:
    """`new_raw()` makes an extract without rows."""
    return RawTables


@pytest.fixture(scope="session")
def at() -> Callable[..., datetime]:
    """`at(days, hours, minutes, seconds)` is a time so long after noon of 1 June 2150."""
    return day


@pytest.fixture(scope="session")
def demo_root(open_data: Callable[[str], Path]) -> Path:
    """The open MIMIC-IV demo; skips where it is absent."""
    return open_data("mimic-iv-demo")


@pytest.fixture(scope="session")
def independent(load_module: Callable[[Path], ModuleType]) -> Any:
    """`independent_count.py`, which shares no code with the extractor."""
    return load_module(Path(__file__).with_name("independent_count.py"))
