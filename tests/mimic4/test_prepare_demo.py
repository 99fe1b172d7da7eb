"""`mmnar prepare` on the open demo: its time, and every label and availability against plain Python."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmnar_lightning.records import RecordStore

COHORTS = ("post_discharge", "icu_landmark")
SECONDS, MEBIBYTES = 60.0, 4096
HOUR = timedelta(hours=1)
CATALOGUE = Path(__file__).parents[2] / "datamodules" / "mmnar_mimic4" / "catalogue"
FRACTIONS = ("50816", "223835")  # inspired oxygen, charted as 0.4 and as 40
# The process takes the times and reads its own mark: what a parent reads also holds the parent's size at the fork.
SCRIPT = """
import json, sys, time
from pathlib import Path
from mmnar_lightning.__main__ import main
stores, *configs = sys.argv[1:]
told = {"took": [], "files": []}
for run in range(2):
    for config in configs:
        start = time.perf_counter()
        status = main(["prepare", "--config", config])
        told["took"].append((status, time.perf_counter() - start))
    files = sorted(path for path in Path(stores).rglob("*.*") if path.name != ".lock")
    told["files"].append([(str(path), path.stat().st_mtime_ns) for path in files])
mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
told["peak"] = int(mark.split()[1]) // 1024
print(json.dumps(told))
"""

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOT TESTED: peak memory is read from /proc"),
]


@dataclass(frozen=True)
class Prepared:
    """What two runs over both cohorts left.

    Args:
        stores: The stores by cohort.
        took: Status and seconds of each run: both cohorts, and both again.
        files: Names and times of the files that were there after both, and after both again.
        peak: MiB.
    """

    stores: dict[str, RecordStore]
    took: list[tuple[int, float]]
    files: list[Any]
    peak: int


@pytest.fixture(scope="module")
def prepared(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("demo")
    stores, root, configs = folder / "stores", str(demo_root.resolve()), []
    for cohort in COHORTS:
        options = {"root": root, "store": str(stores), "cohort": cohort, "include_micro": True}
        configs.append(folder / f"{cohort}.yaml")
        configs[-1].write_text(yaml.safe_dump({"data": {"class_path": "MIMIC4DataModule", "init_args": options}}))
    done = subprocess.run([sys.executable, "-c", SCRIPT, stores, *configs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    found = {cohort: list(stores.glob(f"mimic4-{cohort}-*/manifest.json")) for cohort in COHORTS}
    opened = {cohort: RecordStore(manifest.parent) for cohort, (manifest,) in found.items()}
    return Prepared(opened, told["took"], told["files"], told["peak"])


def test_each_cohort_in_a_minute_and_4_gib(prepared: Prepared) -> None:
    assert [status for status, _ in prepared.took] == [0] * 4
    assert max(seconds for _, seconds in prepared.took) <= SECONDS
    assert prepared.peak <= MEBIBYTES


def test_a_second_prepare_finds_the_stores_and_writes_nothing(prepared: Prepared) -> None:
    before, after = prepared.files
    assert len(before) > 20
    assert after == before
    seconds = [took for _, took in prepared.took]
    assert max(seconds[2:]) < min(seconds[:2])


@pytest.mark.parametrize("cohort", COHORTS)
def test_the_store_opens_whole_and_says_where_it_comes_from(cohort: str, prepared: Prepared, demo_root: Path) -> None:
    store = prepared.stores[cohort]
    store.verify()
    manifest = store.manifest
    assert "PhysioNet" in manifest["data_use"]
    assert manifest["options"]["note_grace_hours" if cohort == "post_discharge" else "landmark_hours"] == 24
    read = {source["file"] for source in manifest["sources"]}
    assert read <= {str(p.relative_to(demo_root)) for p in demo_root.glob("*/*.gz")}
    logged = {(table, what): n for table, what, n in manifest["counts"]}
    for table in ("hosp/labevents", "icu/inputevents", "hosp/admissions"):
        assert logged[table.split("/")[1], "rows read"] == sum(1 for _ in rows(demo_root, table))


@pytest.fixture(scope="module")
def counted(independent: Any, demo_root: Path) -> dict[str, list[Any]]:
    """Samples by the independent count, in the order of patient and prediction time."""
    found = {cohort: independent.count_cohort(demo_root, independent.Rules(cohort)).samples for cohort in COHORTS}
    return {cohort: sorted(samples, key=lambda s: (s.subject, s.prediction)) for cohort, samples in found.items()}


@pytest.mark.parametrize("cohort", COHORTS)
def test_samples_and_labels_of_the_store_are_those_counted(cohort: str, prepared: Prepared, counted: Any) -> None:
    table = prepared.stores[cohort].samples
    mine = [
        (
            *(row[f"id/{name}"] for name in ("subject_id", "hadm_id", "stay_id")),
            *(row["prediction_time"], row["patient"]),
            *(value for name, value in row.items() if name.startswith("label/")),
        )
        for row in table.iter_rows(named=True)
    ]
    tasks = [name.removeprefix("label/") for name in table.columns if name.startswith("label/")]
    theirs = [
        (s.subject, s.hadm, s.stay, s.prediction, str(s.subject), *(s.labels[task] for task in tasks))
        for s in counted[cohort]
    ]
    assert len(theirs) == {"post_discharge": 63, "icu_landmark": 57}[cohort]
    assert sum(a != b for a, b in zip(mine, theirs, strict=True)) == 0


def rows(root: Path, table: str) -> Iterator[dict[str, str]]:
    with gzip.open(root / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def listed(name: str) -> dict[str, list[dict[str, str]]]:
    """Lines of a catalogue by raw id."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (CATALOGUE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            found[line["raw_id"]].append(line)
    return found


def plausible(lines: list[dict[str, str]], number: float, unit: str) -> bool:
    """Whether a number in a unit is a value of a variable."""
    for line in lines:
        units = [u.strip().lower() for u in line["unit"].split("|")]
        if unit.strip() and line["unit"] and unit.strip().lower() not in units:
            continue
        value = number * float(line["factor"] or 1) + float(line["offset"] or 0)
        return float(line["low"] or "-inf") <= value <= float(line["high"] or "inf")
    return False


class Windows:
    """Samples by patient, and whether a row was known in the window of each."""

    def __init__(self, samples: list[Any]) -> None:
        self._of: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for number, sample in enumerate(samples):
            self._of[str(sample.subject)].append((number, sample))

    def of(self, subject: str, event: str | datetime, entry: str | None = None) -> set[int]:
        """Samples that may contain a row; without an entry it is known after an hour."""
        if not event:
            return set()
        time = datetime.fromisoformat(event) if isinstance(event, str) else event
        known = max(time, datetime.fromisoformat(entry)) if entry else time + HOUR
        return {n for n, s in self._of[subject] if s.window <= time and known <= s.prediction}


def measured(root: Path, windows: Windows, *sources: tuple[str, str, str]) -> set[int]:
    """Samples with a plausible value in any of these (table, catalogue, column of the number)."""
    found: set[int] = set()
    for table, name, number in sources:
        catalogue = listed(name)
        for row in rows(root, table):
            if row["itemid"] not in catalogue or not row[number]:
                continue
            value, unit = float(row[number]), row["valueuom"] if name != "outputs" else ""
            if row["itemid"] in FRACTIONS and value <= 1:
                unit = "fraction"
            if plausible(catalogue[row["itemid"]], value, unit):
                found |= windows.of(row["subject_id"], row["charttime"], row["storetime"])
    return found


def classed() -> list[tuple[re.Pattern[str], re.Pattern[str] | None]]:
    """What a drug's name must hold, and what it must not, by class."""
    stems: dict[tuple[str, str], list[str]] = defaultdict(list)
    with (CATALOGUE / "drugs.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            stems[line["class"], line["unless"]].append(re.escape(line["stem"]))
    return [
        (
            re.compile(rf"\b({'|'.join(words)})"),
            re.compile(rf"\b({'|'.join(re.escape(u) for u in unless.split('|'))})") if unless else None,
        )
        for (_, unless), words in stems.items()
    ]


def treated(root: Path, windows: Windows) -> set[int]:
    found: set[int] = set()
    with (CATALOGUE / "treatments.csv").open(encoding="utf-8", newline="") as file:
        items = {(line["table"], line["raw_id"]) for line in csv.DictReader(file)}
    for table in ("inputevents", "procedureevents"):
        for row in rows(root, f"icu/{table}"):
            if (table, row["itemid"]) in items:
                found |= windows.of(row["subject_id"], row["starttime"])
    classes = classed()
    for row in rows(root, "hosp/prescriptions"):
        name = row["drug"].lower()
        hit = any(yes.search(name) and not (no and no.search(name)) for yes, no in classes)
        if row["drug_type"] == "MAIN" and hit:
            found |= windows.of(row["subject_id"], row["starttime"])
    return found


def cultured(root: Path, windows: Windows) -> set[int]:
    found: set[int] = set()
    for row in rows(root, "hosp/microbiologyevents"):
        taken: str | datetime = row["charttime"]
        if not taken and row["chartdate"]:
            taken = datetime.fromisoformat(row["chartdate"]) + timedelta(days=1)
        if row["spec_type_desc"].strip() not in ("", "___"):
            found |= windows.of(row["subject_id"], taken)
    return found


@pytest.mark.parametrize("cohort", COHORTS)
def test_availability_sample_by_sample(cohort: str, prepared: Prepared, counted: Any, demo_root: Path) -> None:
    windows = Windows(counted[cohort])
    expected = {
        "structured": set(range(len(counted[cohort]))),
        "labs": measured(demo_root, windows, ("hosp/labevents", "labs", "valuenum")),
        "vitals": measured(
            demo_root, windows, ("icu/chartevents", "vitals", "valuenum"), ("icu/outputevents", "outputs", "value")
        ),
        "treatments": treated(demo_root, windows),
        "micro": cultured(demo_root, windows),
    }
    table = prepared.stores[cohort].samples
    assert {c.removeprefix("observed/") for c in table.columns if c.startswith("observed/")} == expected.keys()
    for name, samples in expected.items():
        observed = {n for n, there in enumerate(table[f"observed/{name}"]) if there}
        assert len(observed ^ samples) == 0, name
        reasons = table[f"reason/{name}"].to_list()
        assert reasons == [None if n in samples else "not_ordered" for n in range(table.height)], name
    # not everybody has everything, or a constant would pass
    assert 0 < len(expected["micro"]) < table.height
    if cohort == "post_discharge":
        assert 0 < len(expected["vitals"]) < table.height
