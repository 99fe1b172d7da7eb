"""Known quirks of MIMIC-IV's files, each with a test that fails where it is mishandled, on the open demo.

A test changes tables of the demo as the mishandling would (or as it must not matter) and compares what is made of it.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mmnar_lightning.extract import scan
from mmnar_mimic4 import MIMIC4Extractor
from mmnar_mimic4.tables import PROCEDURES

if TYPE_CHECKING:
    from tests.mimic4.conftest import Extracted, RawTables

    Run = Callable[..., Extracted]

Change = Callable[[pl.DataFrame], pl.DataFrame]
HOUR = timedelta(hours=1)
AFTER = MIMIC4Extractor(cohort="post_discharge", include_billing=True, include_micro=True)
INSIDE = MIMIC4Extractor(cohort="icu_landmark")


def read(root: Path, table: str) -> pl.DataFrame:
    return pl.read_csv(root / f"{table}.csv.gz", infer_schema=False)


def rows(root: Path, table: str) -> Iterator[dict[str, str]]:
    with gzip.open(root / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@pytest.fixture
def changed(demo_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed({table: change})` is the demo with some tables changed; None leaves a table out."""

    def make(changes: dict[str, Change | None]) -> Path:
        root = tmp_path / f"demo-{len(list(tmp_path.iterdir()))}"
        for path in demo_root.glob("*/*.csv.gz"):
            table = f"{path.parent.name}/{path.name.removesuffix('.csv.gz')}"
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            if table not in changes:
                (root / f"{table}.csv.gz").symlink_to(path.resolve())
            elif (change := changes[table]) is not None:
                change(read(demo_root, table)).write_csv(root / f"{table}.csv")
        return root

    return make


@pytest.fixture(scope="module")
def after(demo_root: Path, extracted: Run) -> Extracted:
    """`post_discharge` of the demo."""
    return extracted(AFTER, demo_root)


@pytest.fixture(scope="module")
def inside(demo_root: Path, extracted: Run) -> Extracted:
    """`icu_landmark` of the demo."""
    return extracted(INSIDE, demo_root)


def total(made: Extracted, modality: str, pattern: str) -> float:
    """Sum of all items of a modality whose names match, over the samples."""
    items = [c for c in made.elements[modality].columns if re.fullmatch(pattern, c)]
    return float(made.elements[modality].select(pl.sum_horizontal(pl.col(items).sum())).item())


@pytest.mark.shared_data
def test_labs_without_hadm_id_count(demo_root: Path, changed: Any, extracted: Run, after: Extracted) -> None:
    """29 % of labevents have none, above all those drawn in the emergency department."""
    without = pl.col("hadm_id").is_null()
    assert 0.25 < read(demo_root, "hosp/labevents").select(without.mean()).item() < 0.33
    none = changed({"hosp/labevents": lambda f: f.with_columns(hadm_id=None)})
    assert extracted(AFTER, none, "labs").elements["labs"].equals(after.elements["labs"])
    dropped = changed({"hosp/labevents": lambda f: f.filter(~without)})
    fewer = extracted(AFTER, dropped, "labs")
    assert total(after, "labs", ".*_count") > total(fewer, "labs", ".*_count") + 300


@pytest.mark.shared_data
def test_labs_without_valuenum_are_no_values(demo_root: Path, changed: Any, extracted: Run, after: Extracted) -> None:
    """12 % have none: they are counted, and neither zeros nor measurements."""
    without = pl.col("valuenum").is_null()
    assert 0.10 < read(demo_root, "hosp/labevents").select(without.mean()).item() < 0.15
    fewer = extracted(AFTER, changed({"hosp/labevents": lambda f: f.filter(~without)}), "labs")
    assert fewer.elements["labs"].equals(after.elements["labs"])
    what = ("labevents", "rows of catalogued items without a number, not used")
    assert fewer.counts[what] == 0
    listed = {str(item) for item in _catalogue("labs")}
    expected = sum(row["itemid"] in listed and row["valuenum"] == "" for row in rows(demo_root, "hosp/labevents"))
    assert after.counts[what] == expected > 0


def _catalogue(name: str) -> list[str]:
    path = Path(__file__).parents[2] / "datamodules" / "mmnar_mimic4" / "catalogue" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [row["raw_id"] for row in csv.DictReader(file)]


@pytest.mark.shared_data
def test_three_underscores_for_a_value_leave_the_number(
    demo_root: Path, changed: Any, extracted: Run, after: Extracted
) -> None:
    """The text is taken out in thousands of rows whose number is there: it is valuenum that is read."""
    hidden = pl.col("value") == "___"
    table = read(demo_root, "hosp/labevents").filter(hidden, pl.col("valuenum").is_not_null())
    assert table.height > 4000
    fewer = extracted(AFTER, changed({"hosp/labevents": lambda f: f.filter(hidden.not_().fill_null(True))}), "labs")
    assert total(after, "labs", ".*_count") > total(fewer, "labs", ".*_count") + 100
    for text in (None, "17", "___"):
        other = changed({"hosp/labevents": lambda f, text=text: f.with_columns(value=pl.lit(text, pl.String))})
        assert extracted(AFTER, other, "labs").elements["labs"].equals(after.elements["labs"])


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("table", "modality"), [("hosp/labevents", "labs"), ("icu/chartevents", "vitals")], ids=["labs", "vitals"]
)
@pytest.mark.parametrize("seconds", [0, 1])
def test_without_storetime_a_value_is_known_an_hour_later(
    demo_root: Path, changed: Any, extracted: Run, inside: Extracted, table: str, modality: str, seconds: int
) -> None:
    """Some labs have none, and no row of the rebuilt chartevents: neither never known nor known at once."""
    missing = read(demo_root, table)["storetime"].null_count()
    assert missing > 500
    first = inside.samples.row(0, named=True)
    charted = first["prediction_time"] - HOUR + timedelta(seconds=seconds)
    item = {"labs": ("50912", "mg/dL"), "vitals": ("220045", "bpm")}[modality]
    new = {"subject_id": first["patient"], "charttime": str(charted), "itemid": item[0], "valuenum": "39"}
    new["valueuom"] = item[1]
    more = changed({table: lambda f: pl.concat([f, pl.DataFrame([new])], how="diagonal")})
    same = extracted(INSIDE, more, modality).elements[modality].equals(inside.elements[modality])
    assert same == (seconds > 0)


@pytest.mark.shared_data
def test_emar_covers_some_patients_and_is_not_read(
    demo_root: Path, changed: Any, extracted: Run, after: Extracted
) -> None:
    people = {row["subject_id"] for row in rows(demo_root, "hosp/emar")}
    assert 0.5 < len(people) / read(demo_root, "hosp/patients").height < 0.8
    assert not any("emar" in spec.file for one in (AFTER, INSIDE) for spec in one.tables())
    gone = extracted(AFTER, changed({"hosp/emar": None, "hosp/emar_detail": None}), "treatments")
    assert gone.elements["treatments"].equals(after.elements["treatments"])
    # who has no emar row has treatments all the same
    others = after.samples.with_row_index("sample").filter(~pl.col("patient").is_in(list(people)))
    treated = set(after.elements["treatments"]["sample"])
    assert others.height > 10
    assert sum(sample in treated for sample in others["sample"]) / others.height > 0.9


@pytest.mark.shared_data
def test_prescriptions_that_stop_before_they_start_count(
    demo_root: Path, changed: Any, extracted: Run, after: Extracted
) -> None:
    """Hundreds do: what was ordered began, and stoptime says nothing."""
    backwards = (pl.col("stoptime") < pl.col("starttime")).fill_null(False)
    table = read(demo_root, "hosp/prescriptions")
    assert table.select(backwards.sum()).item() > 300
    swapped = changed({"hosp/prescriptions": lambda f: f.with_columns(stoptime="starttime")})
    assert extracted(AFTER, swapped, "treatments").elements["treatments"].equals(after.elements["treatments"])
    dropped = changed({"hosp/prescriptions": lambda f: f.filter(~backwards)})
    fewer = extracted(AFTER, dropped, "treatments")
    assert total(after, "treatments", "rx_.*_count") > total(fewer, "treatments", "rx_.*_count") + 50


@pytest.mark.shared_data
def test_icd_9_and_icd_10_codes_keep_their_version_and_leading_zeros(demo_root: Path, after: Extracted) -> None:
    owners = {hadm: number for number, hadm in enumerate(after.samples["id/hadm_id"])}
    expected: set[tuple[int, str]] = set()
    for table, word in (("hosp/diagnoses_icd", "icd"), ("hosp/procedures_icd", "proc")):
        for row in rows(demo_root, table):
            if int(row["hadm_id"]) in owners:
                expected.add((owners[int(row["hadm_id"])], f"{word}{row['icd_version']}:{row['icd_code']}"))
    found = set(after.elements["billing"].select("sample", "code").iter_rows())
    # an episode may hold further admissions, whose codes count as well
    assert expected <= found
    kinds = Counter(code.split(":")[0] for _, code in found)
    assert min(kinds[name] for name in ("icd9", "icd10", "proc9", "proc10")) > 20
    zeros = Counter(code.split(":")[0] for _, code in found if ":0" in code)
    assert zeros["icd9"] > 5
    assert zeros["proc10"] > 20


@pytest.mark.shared_data
def test_upper_case_headers_are_read_in_any_case(
    demo_root: Path, changed: Any, extracted: Run, inside: Extracted
) -> None:
    """Two headers of procedureevents are; which ones, and of what table, must not matter."""
    header = read(demo_root, "icu/procedureevents").columns
    assert [c for c in header if c != c.lower()] == ["ORIGINALAMOUNT", "ORIGINALRATE"]
    tables = ("icu/procedureevents", "icu/inputevents", "icu/icustays")
    for case in (str.upper, str.lower):
        other = changed({table: lambda f, case=case: f.rename(case) for table in tables})
        made = extracted(INSIDE, other, "treatments")
        assert made.elements["treatments"].equals(inside.elements["treatments"])
        assert made.samples.equals(inside.samples)


@pytest.mark.shared_data
def test_storetimes_with_fractions_of_seconds_are_read(demo_root: Path) -> None:
    """Some of procedureevents have them, other times don't."""
    texts = [row["storetime"] for row in rows(demo_root, "icu/procedureevents")]
    assert 0 < sum("." in text for text in texts) < len(texts)
    found = scan(demo_root, PROCEDURES).collect()["storetime"].to_list()
    assert found == [datetime.fromisoformat(text) for text in texts]


@pytest.mark.shared_data
def test_transfers_without_hadm_id_count(demo_root: Path, changed: Any, extracted: Run, after: Extracted) -> None:
    """Stays in the emergency department have none; units seen there count where they lie in the window."""
    without = pl.col("hadm_id").is_null()
    table = read(demo_root, "hosp/transfers")
    assert table.filter(without)["eventtype"].unique().to_list() == ["ED"]
    windows = {row["patient"]: row["prediction_time"] for row in after.samples.iter_rows(named=True)}
    opened = {
        row["hadm_id"]: min(filter(None, (row["edregtime"], row["admittime"])))
        for row in rows(demo_root, "hosp/admissions")
    }
    starts = {row["patient"]: opened[str(row["id/hadm_id"])] for row in after.samples.iter_rows(named=True)}
    units: dict[str, set[str]] = {patient: set() for patient in windows}
    for row in table.iter_rows(named=True):
        patient, begun = row["subject_id"], row["intime"]
        known = patient in windows and datetime.fromisoformat(begun) + HOUR <= windows[patient]
        if known and begun >= starts[patient] and row["eventtype"] != "discharge" and row["careunit"]:
            units[patient].add(row["careunit"])
    made = after.elements["structured"]["care_units"].to_list()
    assert made == [len(units[patient]) for patient in after.samples["patient"]]
    owned = changed({"hosp/transfers": lambda f: f.with_columns(hadm_id=pl.lit("1"))})
    assert extracted(AFTER, owned, "structured").elements["structured"].equals(after.elements["structured"])
    # by hand, for no demo patient's only stop is such a row
    new = pl.DataFrame([{"subject_id": after.samples["patient"][0], "eventtype": "ED", "careunit": "Somewhere else"}])
    new = new.with_columns(intime=pl.lit(str(after.samples["prediction_time"][0] - HOUR)))
    more = changed({"hosp/transfers": lambda f: pl.concat([f, new], how="diagonal")})
    assert extracted(AFTER, more, "structured").value("structured", "care_units") == made[0] + 1


@pytest.mark.shared_data
def test_anchor_age_91_is_over_89(demo_root: Path, after: Extracted, inside: Extracted) -> None:
    """Ages are capped at 90 and not counted on from 91."""
    anchors = {row["subject_id"]: row for row in rows(demo_root, "hosp/patients")}
    old = {patient for patient, row in anchors.items() if row["anchor_age"] == "91"}
    assert len(old) == 2
    assert "90" not in {row["anchor_age"] for row in anchors.values()}
    for made in (after, inside):
        ages = dict(zip(made.samples["patient"], made.elements["structured"]["age"], strict=True))
        assert max(ages.values()) == 90
        assert {ages[patient] for patient in old & ages.keys()} == {90}


@pytest.mark.shared_data
def test_every_demo_patient_has_an_icu_stay_and_post_discharge_asks_for_none(
    demo_root: Path, changed: Any, extracted: Run, after: Extracted
) -> None:
    """A cohort that joined icustays would lose nobody here, and most people of the whole extract."""
    stays = {row["subject_id"] for row in rows(demo_root, "icu/icustays")}
    assert stays == {row["subject_id"] for row in rows(demo_root, "hosp/patients")}
    one = changed({"icu/icustays": lambda f: f.head(1)})
    made = extracted(AFTER, one, "structured")
    assert made.samples["patient"].equals(after.samples["patient"])
    assert made.elements["structured"].equals(after.elements["structured"])


def test_age_over_89_is_90_whenever_the_admission(raw: RawTables, at: Any, extracted: Run, tmp_path: Path) -> None:
    """Made by hand: the demo has no such patient with an admission years later."""
    for number, anchor in enumerate((2150, 2148, 2151)):
        subject, hadm = 10_000_001 + number, 20_000_001 + number
        raw.patient(subject, anchor_age=91, anchor_year=anchor).admission(hadm, at(0), at(3), subject)
    made = extracted(MIMIC4Extractor(), raw.write(tmp_path), "structured")
    assert made.elements["structured"]["age"].to_list() == [90, 90, 90]
