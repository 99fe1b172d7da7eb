"""The tables that say which raw items and drug names are which treatment."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import polars as pl
import pytest

from mmnar_lightning.extract import TableSpec
from mmnar_mimic4.tables import INPUTS, PROCEDURES
from mmnar_mimic4.treatments import KINDS, drug_classes, drug_table, items_of, treatment_table, variables


@pytest.mark.parametrize("spec", [INPUTS, PROCEDURES], ids=lambda spec: spec.name)
def test_the_catalogue_names_items_that_exist(demo_root: Path, spec: TableSpec) -> None:
    with gzip.open(demo_root / "icu/d_items.csv.gz", "rt") as file:
        labels = {row["itemid"]: row["label"].strip() for row in csv.DictReader(file) if row["linksto"] == spec.name}
    lines = treatment_table()[0].filter(pl.col("table") == spec.name)
    assert {r["raw_id"]: r["description"] for r in lines.iter_rows(named=True)}.items() <= labels.items()
    assert set(items_of(spec.name).variables) == set(lines["variable"])


def test_a_variable_has_one_kind_and_one_table() -> None:
    table = treatment_table()[0]
    assert table.select("variable", "kind", "table").n_unique() == table["variable"].n_unique() >= 40
    assert set(table["kind"]) == set(KINDS) - {"ordered"}
    assert table.filter((pl.col("kind") == "infusion") & pl.col("unit").is_null()).height == 0
    assert len(variables()["ordered"]) == drug_table()[0]["class"].n_unique() >= 25
    assert len({name for names in variables().values() for name in names}) == sum(map(len, variables().values()))


@pytest.mark.parametrize(
    ("drug", "classes"),
    [
        ("Heparin", {"heparin"}),
        ("Heparin Flush (10 units/ml)", set()),
        ("NORepinephrine", {"vasopressor"}),
        ("Hydrocodone-Acetaminophen (5mg-325mg)", {"opioid", "paracetamol"}),
        ("Vancomycin Oral Liquid", {"vancomycin_oral"}),
        ("Vancomycin", {"vancomycin"}),
        ("Sodium Chloride 0.9%  Flush", set()),
        ("Ciprofloxacin 0.3% Ophth Soln", set()),
        ("Sulfameth/Trimethoprim DS", {"antibiotic_other"}),
        ("Enoxaparin Sodium", {"low_molecular_heparin"}),
    ],
)
def test_classes_of_drugs(drug: str, classes: set[str]) -> None:
    assert set(drug_classes(pl.Series("drug", [drug]))["variable"]) == {f"rx_{name}" for name in classes}
