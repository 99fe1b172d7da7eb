from __future__ import annotations

import csv
import gzip
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from mmnar_lightning.extract import ItemCatalogue
from mmnar_mimic4.tables import catalogue

NAMES = ("labs", "vitals", "outputs")
TABLES = {"labs": "hosp/labevents", "vitals": "icu/chartevents", "outputs": "icu/outputevents"}


def rows(demo_root: Path, table: str) -> Iterator[dict[str, str]]:
    with gzip.open(demo_root / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def converted(listed: ItemCatalogue, raw_id: int, value: float, unit: str | None) -> float | None:
    frame = pl.LazyFrame({"itemid": [raw_id], "raw": [value], "unit": [unit]}, schema_overrides={"unit": pl.String})
    found = listed.apply(frame, "itemid", "raw", "unit", unknown_unit="count").collect()["value"]
    assert len(found) == 1
    return None if found[0] is None else float(found[0])


def test_there_are_enough_variables() -> None:
    count = {name: len(catalogue(name).variables) for name in NAMES}
    assert count["labs"] >= 90
    assert count["vitals"] >= 40
    assert sum(count.values()) >= 130


def test_a_variable_stands_in_one_catalogue_under_one_range() -> None:
    everything = [variable for name in NAMES for variable in catalogue(name).variables]
    assert len(set(everything)) == len(everything)
    for name in NAMES:
        ranges: dict[str, set[tuple[float | None, float | None]]] = defaultdict(set)
        for entry in catalogue(name).entries:
            ranges[entry.variable].add((entry.low, entry.high))
        assert [variable for variable, found in ranges.items() if len(found) > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_complete(name: str) -> None:
    for entry in catalogue(name).entries:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.variable), entry
        assert re.fullmatch(r"\d{5}" if name == "labs" else r"2\d{5}", entry.raw_id), entry
        assert entry.low is not None
        assert entry.high is not None
        assert entry.description


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "dictionary"), [("labs", "hosp/d_labitems"), ("vitals", "icu/d_items"), ("outputs", "icu/d_items")]
)
def test_every_itemid_is_what_its_description_says(demo_root: Path, name: str, dictionary: str) -> None:
    said = {row["itemid"]: row for row in rows(demo_root, dictionary)}
    for entry in catalogue(name).entries:
        row = said[entry.raw_id]
        assert entry.description.split("; ")[0] == row["label"].strip(), entry
        if name == "labs":
            assert row["fluid"] == ("Urine" if entry.variable.startswith("urine_") else "Blood"), entry
        else:
            assert row["linksto"] == TABLES[name].split("/")[1], entry


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["labs", "vitals"])
def test_every_unit_of_the_demo_is_known(demo_root: Path, name: str) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for entry in catalogue(name).entries:
        known[entry.raw_id] |= set(entry.units)
    strange = {
        (row["itemid"], row["valueuom"])
        for row in rows(demo_root, TABLES[name])
        if row["itemid"] in known
        and row["valueuom"].strip()
        and row["valueuom"].strip().lower() not in known[row["itemid"]]
    }
    assert strange == set()


@pytest.mark.parametrize(
    ("name", "raw_id", "value", "unit", "expected"),
    [
        ("vitals", 223761, 98.6, "°F", 37.0),
        ("vitals", 223761, 98.6, None, 37.0),
        ("vitals", 223762, 37.0, "°C", 37.0),
        ("vitals", 223762, 98.6, "°C", None),
        ("vitals", 223835, 40.0, None, 40.0),
        ("vitals", 223835, 0.4, "fraction", 40.0),
        ("vitals", 220045, 0.0, "bpm", None),
        ("labs", 50912, 88.42, "umol/L", 1.0),
        ("labs", 50912, 1.1, "mg/dL", 1.1),
        ("labs", 50912, 1.1, "furlong", None),
        ("labs", 50931, 10.0, "mmol/L", 180.16),
        ("labs", 51249, 33.0, "%", 33.0),
        ("labs", 51249, 33.0, "g/dL", 33.0),
        ("labs", 50862, 35.0, "g/L", 3.5),
        ("labs", 50889, 2.0, "mg/dL", 20.0),
        ("labs", 51003, 50.0, "ng/L", 0.05),
        ("labs", 51133, 1500.0, "#/uL", 1.5),
        ("labs", 51133, 1.5, "K/uL", 1.5),
        # counted per microlitre where nothing else is said
        ("labs", 51199, 250.0, None, 0.25),
        ("labs", 50915, 600.0, "ng/mL FEU", 600.0),
        ("labs", 51498, 1.02, " ", 1.02),
        ("outputs", 226559, 150.0, None, 150.0),
        ("outputs", 226559, -5.0, None, None),
    ],
)
def test_conversion(name: str, raw_id: int, value: float, unit: str | None, expected: float | None) -> None:
    found = converted(catalogue(name), raw_id, value, unit)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-12))


# What a typical value of patients in intensive care looks like, in the unit of the variable.
TYPICAL = {
    "sodium": (132, 146),
    "potassium": (3.5, 4.8),
    "creatinine": (0.6, 2.0),
    "calcium": (7.5, 9.5),
    "glucose": (95, 180),
    "hemoglobin": (8, 13),
    "white_blood_cells": (6, 15),
    "platelets": (120, 260),
    "lymphocytes": (0.6, 4),
    "inr": (1.0, 1.8),
    "blood_ph": (7.3, 7.45),
    "lactate": (1.0, 3.0),
    "ionized_calcium": (1.0, 1.25),
    "blood_gas_temperature": (36, 38),
    "urine_ph": (5, 7),
    "heart_rate": (70, 105),
    "sbp": (95, 135),
    "map": (60, 95),
    "respiratory_rate": (14, 24),
    "spo2": (94, 100),
    "temperature": (36.3, 37.6),
    "fio2": (30, 60),
    "weight_admission": (60, 100),
    "height": (155, 185),
    "urine_output": (30, 200),
}


@pytest.mark.shared_data
def test_values_of_the_demo_are_plausible_and_typical(demo_root: Path) -> None:
    numbers: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for name in NAMES:
        entries = {
            (entry.raw_id, unit): entry for entry in reversed(catalogue(name).entries) for unit in ("", *entry.units)
        }
        column = "value" if name == "outputs" else "valuenum"
        for row in rows(demo_root, TABLES[name]):
            unit = "" if name == "outputs" else row["valueuom"].strip().lower()
            entry = entries.get((row["itemid"], unit))
            if entry is None or not row[column]:
                continue
            value = float(row[column]) * entry.factor + entry.offset
            seen[entry.variable] += 1
            assert entry.low is not None
            assert entry.high is not None
            if entry.low <= value <= entry.high:
                numbers[entry.variable].append(value)
    kept = {variable: len(numbers[variable]) / count for variable, count in seen.items() if count >= 20}
    assert {variable: share for variable, share in kept.items() if share < 0.9} == {}
    assert sum(map(len, numbers.values())) / sum(seen.values()) > 0.999
    medians = {variable: statistics.median(numbers[variable]) for variable in TYPICAL}
    assert {v: m for v, m in medians.items() if not TYPICAL[v][0] <= m <= TYPICAL[v][1]} == {}
