"""Billing codes stay the text they are, and belong to the admissions of the episode."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts, scan
from mmnar_mimic4.billing import billing
from mmnar_mimic4.tables import DIAGNOSES, PROCEDURE_CODES
from mmnar_mimic4.windows import Source

SPECS = (DIAGNOSES, PROCEDURE_CODES)
SUBJECT = 10_000_001
ADMISSIONS = pl.DataFrame({"sample": [0, 0, 1], "hadm_id": [1, 2, 4]})
SAMPLES = pl.DataFrame({"sample": [0, 1], "subject_id": [SUBJECT, SUBJECT + 1]})


def diagnosis(raw: Any, code: str | None, version: int | None, hadm: int = 1, subject: int = SUBJECT) -> Any:
    row = {"subject_id": subject, "hadm_id": hadm, "icd_code": code, "icd_version": version}
    return raw.add("hosp/diagnoses_icd", **row)


def procedure(raw: Any, code: str | None, version: int | None, hadm: int = 1) -> Any:
    row = {"subject_id": SUBJECT, "hadm_id": hadm, "icd_code": code, "icd_version": version}
    return raw.add("hosp/procedures_icd", **row)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_leading_zeros_survive_reading(raw: Any, tmp_path: Path, suffix: str) -> None:
    raw.patient()
    for code in ("00845", "0088", "845", "E0800"):
        diagnosis(raw, code, 9)
    procedure(raw, "0040", 9)
    procedure(raw, "02H633Z", 10)
    folder = raw.write(tmp_path, suffix)
    source = Source({spec.name: scan(folder, spec) for spec in SPECS}, SAMPLES, Counts())
    assert billing(source, ADMISSIONS)["code"].to_list() == [
        "icd9:00845",
        "icd9:0088",
        "icd9:845",
        "icd9:E0800",
        "proc10:02H633Z",
        "proc9:0040",
    ]


def test_codes_belong_to_the_admissions_of_the_episode(raw: Any) -> None:
    diagnosis(raw, "I10", 10, hadm=1)
    diagnosis(raw, "I10", 10, hadm=2)  # of the same episode: once
    diagnosis(raw, "4019 ", 9, hadm=2)
    diagnosis(raw, "N179", 10, hadm=3)  # of another episode
    diagnosis(raw, "J189", 10, hadm=4, subject=SUBJECT + 1)
    diagnosis(raw, "K219", 10, hadm=4)  # the admission of another patient
    diagnosis(raw, "  ", 10)
    diagnosis(raw, "E119", None)
    procedure(raw, None, 9)
    log = Counts()
    found = billing(Source(raw.lazy(*SPECS), SAMPLES, log), ADMISSIONS)
    assert found.select("sample", "code").rows() == [(0, "icd10:I10"), (0, "icd9:4019"), (1, "icd10:J189")]
    assert found["hours_before"].null_count() == found.height
    assert found.schema == {"sample": pl.Int64, "hours_before": pl.Float32, "code": pl.String}
    counts = dict(log.items())
    assert counts["diagnoses_icd", "rows without a code or its version, not used"] == 2
    assert counts["procedures_icd", "rows without a code or its version, not used"] == 1


def test_the_demo_by_hand(demo_root: Path) -> None:
    frames = {spec.name: scan(demo_root, spec).collect() for spec in SPECS}
    pairs = frames[DIAGNOSES.name].select("subject_id", "hadm_id").unique().sort("subject_id", "hadm_id")
    samples = pairs.with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int64))
    number = {hadm: k for k, hadm in samples.select("sample", "hadm_id").iter_rows()}
    wanted = set()
    for spec, word in ((DIAGNOSES, "icd"), (PROCEDURE_CODES, "proc")):
        with gzip.open(demo_root / f"{spec.file}.csv.gz", "rt") as file:
            for row in csv.DictReader(file):
                if int(row["hadm_id"]) in number:
                    wanted.add((number[int(row["hadm_id"])], f"{word}{row['icd_version']}:{row['icd_code'].strip()}"))
    assert sum(code.startswith("icd9:0") for _, code in wanted) > 10
    admissions = samples.select("sample", "hadm_id")
    found = billing(Source({n: f.lazy() for n, f in frames.items()}, samples, Counts()), admissions)
    assert found.select("sample", "code").rows() == sorted(wanted)
    shuffled = {name: f.sample(fraction=1, shuffle=True, seed=1).lazy() for name, f in frames.items()}
    assert billing(Source(shuffled, samples, Counts()), admissions).equals(found)
