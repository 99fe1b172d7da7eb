"""Releases of MIMIC-IV: told apart, or refused with the reason and what to use."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_lightning.extract import ExtractError
from mmnar_mimic4.versions import ALWAYS, MOVED_IN_3_0, Release, detect

if TYPE_CHECKING:
    from tests.mimic4.conftest import RawTables

    At = Callable[..., datetime]

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def extract(raw: RawTables, at: At, patient: dict[str, Any] | None = None, **admission: Any) -> RawTables:
    return raw.patient(**(patient or {})).admission(1, at(0), at(3), **admission)


def rewrite(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change a written ``.csv`` table."""
    change(pl.read_csv(path, infer_schema=False)).write_csv(path)


@pytest.mark.shared_data
def test_the_demo_is_2_2(demo_root: Path) -> None:
    assert detect(demo_root) == Release("2.2", 2019)


@pytest.mark.shared_data
def test_what_is_expected_of_itemids_holds_in_the_demo(demo_root: Path) -> None:
    labels = dict(pl.read_csv(demo_root / "hosp" / "d_labitems.csv.gz").select("itemid", "label").iter_rows())
    assert {item: labels[item] for item in (*ALWAYS, *MOVED_IN_3_0)} == ALWAYS | MOVED_IN_3_0


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("patient", "admission", "name"),
    [
        ({}, {}, "2.2"),
        ({}, {"language": "?"}, "2.2"),
        ({"anchor_year_group": "2017 - 2019"}, {"insurance": "Medicaid"}, "2.2"),
        ({"anchor_year_group": "2020 - 2022"}, {}, "3.1"),
        ({}, {"language": "Spanish"}, "3.1"),
        ({}, {"language": "English"}, "3.1"),
        ({}, {"insurance": "Private"}, "3.1"),
        ({}, {"language": None, "insurance": "No charge"}, "3.1"),
        ({}, {"language": None, "insurance": None}, "2.2"),
    ],
)
def test_2_2_and_3_1_are_told_apart(
    raw: RawTables, at: At, tmp_path: Path, suffix: str, patient: Any, admission: Any, name: str
) -> None:
    root = extract(raw, at, patient, **admission).write(tmp_path, suffix)
    assert detect(root) == Release(name, {"2.2": 2019, "3.1": 2022}[name])
    assert detect(str(root), "2.2") == Release("2.2", 2019)
    assert detect(root, "3.1") == Release("3.1", 2022)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_1_0_by_its_core_folder(raw: RawTables, at: At, tmp_path: Path, suffix: str) -> None:
    root = extract(raw, at).write(tmp_path, suffix)
    (root / "core").mkdir()
    (root / "hosp" / f"admissions{suffix}").rename(root / "core" / f"admissions{suffix}")
    for version in ("auto", "2.2"):
        with pytest.raises(ExtractError, match=r"core/admissions.*MIMIC-IV 1\.0.*use MIMIC-IV 2\.2 or 3\.1"):
            detect(root, version)


def test_1_0_by_ethnicity(raw: RawTables, at: At, tmp_path: Path) -> None:
    root = extract(raw, at).write(tmp_path, ".csv")
    rewrite(root / "hosp" / "admissions.csv", lambda table: table.rename({"race": "ethnicity"}))
    for version in ("auto", "3.1"):
        with pytest.raises(ExtractError, match=r"hosp/admissions\.csv: column ethnicity .*1\.0"):
            detect(root, version)


def test_2_0_and_2_1_by_columns_and_tables_that_came_later(raw: RawTables, at: At, tmp_path: Path) -> None:
    root = extract(raw, at).write(tmp_path, ".csv", without=("hosp/provider", "icu/caregiver"))
    assert detect(root).name == "2.2"  # not every table need have been downloaded
    rewrite(root / "hosp" / "admissions.csv", lambda table: table.drop("admit_provider_id"))
    told = r"admit_provider_id, hosp/provider, icu/caregiver this looks like MIMIC-IV 2\.0 or 2\.1.*use MIMIC-IV 2\.2"
    for version in ("auto", "2.2"):
        with pytest.raises(ExtractError, match=told):
            detect(root, version)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "labels", [{53132: "HIV FINAL"}, {53152: "Absolute Lymphocyte Count"}, {53132: "x", 53152: "y"}]
)
def test_3_0_by_its_itemids(raw: RawTables, at: At, tmp_path: Path, suffix: str, labels: dict[int, str]) -> None:
    extract(raw, at, {"anchor_year_group": "2020 - 2022"})
    for item, label in labels.items():
        raw.add("hosp/d_labitems", itemid=item, label=label, fluid="Blood", category="Chemistry")
    root = raw.write(tmp_path, suffix)
    for version in ("auto", "3.1"):
        with pytest.raises(ExtractError, match=r"hosp/d_labitems: .*itemid 531\d\d.*MIMIC-IV 3\.0.*use MIMIC-IV 3\.1"):
            detect(root, version)


@pytest.mark.parametrize("folder", ["mimiciv/3.0", "files/mimiciv/3.0/sub", "MIMIC-IV-3.0"])
def test_3_0_by_the_name_of_its_folder(raw: RawTables, at: At, tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    extract(raw, at).write(root)
    with pytest.raises(ExtractError, match=r"is MIMIC-IV 3\.0"):
        detect(root)


@pytest.mark.parametrize("folder", ["mimiciv/3.1", "mimiciv/2.2", "mimic-iv-3.01", "3.0"])
def test_other_folders_may_be_called_anything(raw: RawTables, at: At, tmp_path: Path, folder: str) -> None:
    assert detect(extract(raw, at).write(tmp_path / folder)).name == "2.2"


@pytest.mark.parametrize("version", ["auto", "2.2", "3.1"])
def test_itemids_of_another_extract_are_never_believed(raw: RawTables, at: At, tmp_path: Path, version: Any) -> None:
    raw.add("hosp/d_labitems", itemid=50912, label="Glucose", fluid="Blood", category="Chemistry")
    root = extract(raw, at).write(tmp_path)
    with pytest.raises(ExtractError, match="itemid 50912 stands for another laboratory test"):
        detect(root, version)


def test_labels_are_compared_without_regard_to_case_and_need_not_all_be_there(
    raw: RawTables, at: At, tmp_path: Path
) -> None:
    raw.add("hosp/d_labitems", itemid=50912, label=" CREATININE", fluid="Blood", category="Chemistry")
    assert detect(extract(raw, at).write(tmp_path / "a")).name == "2.2"
    assert detect(raw.write(tmp_path / "b", without=("hosp/d_labitems",))).name == "2.2"


def test_what_is_missing_is_named(raw: RawTables, at: At, tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match="does not exist"):
        detect(tmp_path / "nowhere")
    for table in ("hosp/admissions", "hosp/patients"):
        folder = tmp_path / table
        with pytest.raises(ExtractError, match=f"missing table {table} "):
            detect(extract(raw, at).write(folder, without=(table,)))


@pytest.mark.parametrize("folder", ["empty", "raw/hosp", "."])
def test_a_folder_that_is_no_extract_says_what_is_expected(raw: RawTables, at: At, tmp_path: Path, folder: str) -> None:
    extract(raw, at).write(tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    expected = f"{tmp_path / folder}: no MIMIC-IV extract; the folder that holds its folders hosp and icu is expected"
    with pytest.raises(ExtractError, match=re.escape(expected)):
        detect(tmp_path / folder)


def test_a_version_that_is_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'3\.0' is not one of auto, 2\.2, 3\.1"):
        detect(tmp_path, "3.0")  # type: ignore[arg-type]
