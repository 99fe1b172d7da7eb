"""Tiny extracts in eICU's raw layout, written by the tests that use them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from mmnar_eicu import EICUExtractor
from mmnar_lightning.extract import Counts, scan

STAY = "patientunitstayid"
# Full headers of eICU-CRD 2.0, so that most columns are ones the extractor must not read.
HEADERS = {
    "patient": f"{STAY},patienthealthsystemstayid,gender,age,ethnicity,hospitalid,wardid,apacheadmissiondx,"
    "admissionheight,hospitaladmittime24,hospitaladmitoffset,hospitaladmitsource,hospitaldischargeyear,"
    "hospitaldischargetime24,hospitaldischargeoffset,hospitaldischargelocation,hospitaldischargestatus,unittype,"
    "unitadmittime24,unitadmitsource,unitvisitnumber,unitstaytype,admissionweight,dischargeweight,"
    "unitdischargetime24,unitdischargeoffset,unitdischargelocation,unitdischargestatus,uniquepid",
    "hospital": "hospitalid,numbedscategory,teachingstatus,region",
    "lab": f"labid,{STAY},labresultoffset,labtypeid,labname,labresult,labresulttext,labmeasurenamesystem,"
    "labmeasurenameinterface,labresultrevisedoffset",
    "vitalPeriodic": f"vitalperiodicid,{STAY},observationoffset,temperature,sao2,heartrate,respiration,cvp,etco2,"
    "systemicsystolic,systemicdiastolic,systemicmean,pasystolic,padiastolic,pamean,st1,st2,st3,icp",
    "vitalAperiodic": f"vitalaperiodicid,{STAY},observationoffset,noninvasivesystolic,noninvasivediastolic,"
    "noninvasivemean,paop,cardiacoutput,cardiacinput,svr,svri,pvr,pvri",
    "medication": f"medicationid,{STAY},drugorderoffset,drugstartoffset,drugivadmixture,drugordercancelled,drugname,"
    "drughiclseqno,dosage,routeadmin,frequency,loadingdose,prn,drugstopoffset,gtc",
    "infusionDrug": f"infusiondrugid,{STAY},infusionoffset,drugname,drugrate,infusionrate,drugamount,volumeoffluid,"
    "patientweight",
    "admissionDrug": f"admissiondrugid,{STAY},drugoffset,drugenteredoffset,drugnotetype,specialtytype,usertype,"
    "rxincluded,writtenineicu,drugname,drugdosage,drugunit,drugadmitfrequency,drughiclseqno",
    "treatment": f"treatmentid,{STAY},treatmentoffset,treatmentstring,activeupondischarge",
    "diagnosis": f"diagnosisid,{STAY},activeupondischarge,diagnosisoffset,diagnosisstring,icd9code,diagnosispriority",
    "admissionDx": f"admissiondxid,{STAY},admitdxenteredoffset,admitdxpath,admitdxname,admitdxtext",
    "pastHistory": f"pasthistoryid,{STAY},pasthistoryoffset,pasthistoryenteredoffset,pasthistorynotetype,"
    "pasthistorypath,pasthistoryvalue,pasthistoryvaluetext",
    "note": f"noteid,{STAY},noteoffset,noteenteredoffset,notetype,notepath,notevalue,notetext",
    "physicalExam": f"physicalexamid,{STAY},physicalexamoffset,physicalexampath,physicalexamvalue,physicalexamtext",
    "carePlanGeneral": f"cplgeneralid,{STAY},activeupondischarge,cplitemoffset,cplgroup,cplitemvalue",
    "carePlanEOL": f"cpleolid,{STAY},cpleolsaveoffset,cpleoldiscussionoffset,activeupondischarge",
    "respiratoryCare": f"respcareid,{STAY},respcarestatusoffset,currenthistoryseqnum,airwaytype,airwaysize,"
    "airwayposition,cuffpressure,ventstartoffset,ventendoffset,priorventstartoffset,priorventendoffset",
    "respiratoryCharting": f"respchartid,{STAY},respchartoffset,respchartentryoffset,respcharttypecat,"
    "respchartvaluelabel,respchartvalue",
    "microLab": f"microlabid,{STAY},culturetakenoffset,culturesite,organism,antibiotic,sensitivitylevel",
}
PERSON = {
    "patienthealthsystemstayid": 10,
    "gender": "Female",
    "age": "60",
    "hospitalid": 7,
    "hospitaladmitoffset": -120,
    "hospitaldischargeyear": 2015,
    "hospitaldischargeoffset": 9000,
    "hospitaldischargestatus": "Alive",
    "unittype": "MICU",
    "unitstaytype": "admit",
    "unitdischargeoffset": 3000,
    "unitdischargestatus": "Alive",
    "uniquepid": "001-1",
}


@dataclass
class Extract:
    """Rows of a raw extract, by table."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in HEADERS})

    def stay(self, stay: int = 1, **columns: Any) -> Extract:
        """Add a unit stay: by default of one adult, 50 hours long, from two hours after hospital admission."""
        return self.add("patient", stay, **{**PERSON, **columns})

    def add(self, table: str, stay: int | None, **columns: Any) -> Extract:
        """Add a row; the id of the row is its number."""
        header = HEADERS[table].split(",")
        unknown = set(columns) - set(header)
        assert not unknown, unknown
        row = {header[0]: len(self.rows[table]) + 1, **({} if stay is None else {STAY: stay}), **columns}
        self.rows[table].append(row)
        return self

    def write(self, folder: Path) -> Path:
        """Write all tables as CSV, none of them empty."""
        for table, rows in self.rows.items():
            with (folder / f"{table}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, HEADERS[table].split(","))
                writer.writeheader()
                # a table without rows is an error: a row of a unit stay that nobody had stands in
                writer.writerows(rows or [{STAY: 0}])
        return folder


@dataclass(frozen=True)
class Extracted:
    """What an extraction made, collected."""

    samples: pl.DataFrame
    elements: Mapping[str, pl.DataFrame]
    counts: Mapping[tuple[str, str], int]

    def codes(self, modality: str, sample: int = 0) -> set[str]:
        """Codes of a sample."""
        return set(self.elements[modality].filter(pl.col("sample") == sample)["code"])

    def value(self, modality: str, item: str, sample: int = 0) -> float | None:
        """Value of an item of a sample; None where it was not measured or the modality not observed."""
        rows = self.elements[modality].filter(pl.col("sample") == sample)[item].to_list()
        return rows[0] if rows else None

    def same_as(self, other: Extracted) -> bool:
        """Whether samples and elements are the same to the byte, and in the same order."""
        return (
            self.samples.equals(other.samples)
            and self.elements.keys() == other.elements.keys()
            and all(self.elements[name].equals(other.elements[name]) for name in self.elements)
        )


def open_tables(folder: Path, extractor: EICUExtractor) -> dict[str, pl.LazyFrame]:
    """Scan the tables an extractor asks for."""
    return {spec.name: scan(folder, spec) for spec in extractor.tables()}


def run(extractor: EICUExtractor, tables: Mapping[str, pl.LazyFrame]) -> Extracted:
    """Extract and collect."""
    log = Counts()
    made = extractor.extract(tables, log)
    elements = {name: step() if callable(step) else step for name, step in made.elements.items()}
    return Extracted(made.samples, elements, dict(log.items()))


def empty_extract() -> Extract:
    """Make an extract that is empty but for its hospital."""
    return Extract().add("hospital", None, hospitalid=7, numbedscategory="<100", teachingstatus="t", region="West")


@pytest.fixture
def extract() -> Extract:
    """An extract that is empty but for its hospital."""
    return empty_extract()


@pytest.fixture(scope="session")
def new_extract() -> Any:
    """`new_extract()` makes an extract that is empty but for its hospital."""
    return empty_extract


@pytest.fixture(scope="session")
def opened() -> Any:
    """`opened(folder, extractor)` scans the tables."""
    return open_tables


@pytest.fixture(scope="session")
def extracted() -> Any:
    """`extracted(extractor, tables)` runs an extraction."""
    return run


@pytest.fixture(scope="session")
def demo_root(open_data: Callable[[str], Path]) -> Path:
    """The open eICU demo; skips where it is absent."""
    return open_data("eicu-demo")


@pytest.fixture(scope="session")
def independent(load_module: Callable[[Path], ModuleType]) -> Any:
    """`independent_count.py`, which shares no code with the extractor."""
    return load_module(Path(__file__).with_name("independent_count.py"))
