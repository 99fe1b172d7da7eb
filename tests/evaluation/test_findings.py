"""What is told of a run as JSON, on predictions that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from mmnar_lightning.evaluation.assessment import Assessment, assess
from mmnar_lightning.evaluation.findings import findings
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema, SplitSettings, pattern_id
from mmnar_lightning.rectifier import Conformal, Rectifier

VERSIONS = ("raw", "recalibrated", "rectified")
RUN = {"seed": 0, "epochs": 3, "steps": 30, "parameters": 10, "device": "cpu", "devices": 1, "model": "MMNARFusion"}


def rows_of(data: RecordDataModule, schema: RecordSchema, split: str) -> dict[str, Tensor]:
    dataset = RecordDataset(data.records, schema, data.samples_of(split))
    batch = dataset.__getitems__(list(range(len(dataset))))
    noise = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    logits = 1.5 * batch.targets - 1 + noise
    known = {"targets": batch.targets, "labelled": batch.labelled, "sample": batch.sample}
    versions = {name: torch.sigmoid(logits * (1 - 0.1 * v)) for v, name in enumerate(VERSIONS)}
    return versions | known | {"pattern": pattern_id(batch.observed)}


@pytest.fixture(scope="module")
def parts(
    make_datamodule: Callable[..., RecordDataModule], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecordDataModule, RecordSchema, Rectifier, dict[str, Tensor], Assessment]:
    data = make_datamodule(tmp_path_factory.mktemp("stores"), 900, splits=SplitSettings(calibration=0.5))
    data.records.manifest["counts"] = [
        ["stays", "excluded: under 18", 9],
        ["stays", "kept", 1000],
        ["stays", "none", 0],
    ]
    schema = RecordSchema.from_dict(data.schema)
    a, b, test = (rows_of(data, schema, split) for split in ("calibration", "conformal", "test"))
    fitted = (a["targets"], a["labelled"], a["pattern"], len(schema.names))
    rectifier = Rectifier(schema.task_names).fit(a["raw"].logit(), *fitted)
    conformal = Conformal(schema.task_names).fit(
        b["rectified"], b["targets"], b["labelled"], b["pattern"], len(schema.names)
    )
    return data, schema, rectifier, test, assess(test, data, schema, conformal)


@pytest.fixture(scope="module")
def told(parts: Any) -> dict[str, Any]:
    data, schema, rectifier, test, assessed = parts
    return findings("test", data, schema, rectifier, test, assessed, RUN)


def test_every_key_is_there_and_it_is_json(told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    keys = "format stage versions run data tasks modalities cohort calibration decision groups rectifier worst coverage"
    assert list(told) == keys.split()
    assert list(told["cohort"]) == ["flow", "splits", "labels", "availability", "sites", "patterns"]
    assert (told["format"], told["stage"], told["run"]) == (1, "test", RUN)
    assert set(told["data"]) == {"dataset", "cohort", "fingerprint", "store", "samples", "patients", "splits"}
    assert "/" not in told["data"]["store"]


def test_counts_are_those_of_the_store_and_none_is_of_fewer_than_ten(told: dict[str, Any], parts: Any) -> None:
    data, schema = parts[0], parts[1]
    cohort = told["cohort"]
    assert [row["rows"] for row in cohort["flow"]] == [None, 1000, 0]
    train = data.records.samples[data.samples_of("train")]
    assert cohort["splits"][0] == {
        "split": "train",
        "samples": train.height,
        "patients": train["patient"].n_unique(),
    }
    assert cohort["labels"][0] == {
        "split": "train",
        "task": "death",
        "labelled": train["label/death"].count(),
        "positive": train["label/death"].sum(),
    }
    labs = next(row for row in cohort["availability"] if (row["split"], row["modality"]) == ("train", "labs"))
    assert labs["observed"] == pytest.approx(float(train["observed/labs"].mean()))
    assert sum(labs[reason] or 0 for reason in ("observed", "not_ordered", "not_collected", "unknown")) <= 1 + 1e-9
    largest = data.records.samples["site"].drop_nulls().value_counts(sort=True).row(0)
    assert (cohort["sites"][0]["site"], cohort["sites"][0]["samples"]) == largest
    whole = [train.filter(pl.all_horizontal(f"observed/{n}" for n in schema.names)).height]
    assert [row["samples"] for row in cohort["patterns"] if len(row["modalities"]) == len(schema.names)] == whole
    assert min(counts(told)) >= 10


def counts(told: Any, name: str = "") -> Iterator[int]:
    """All counts of people and samples but 0."""
    if isinstance(told, dict):
        for key, value in told.items():
            yield from counts(value, key)
    elif isinstance(told, list):
        for value in told:
            yield from counts(value, name)
    elif (
        told
        and isinstance(told, int)
        and name in ("samples", "patients", "people", "events", "labelled", "positive", "rows", "calibration")
    ):
        yield told


def test_curves_groups_worst_and_coverage_are_there_for_each_task(told: dict[str, Any], parts: Any) -> None:
    schema = parts[1]
    for task in schema.task_names:
        assert list(told["calibration"][task]) == list(VERSIONS)
        decided = told["decision"][task]
        assert {len(decided["threshold"])} == {len(values) for values in decided["net_benefit"].values()}
        assert len(decided["treat_all"]) == len(decided["threshold"]) > 10
        groups = {row["variable"] for row in told["groups"] if row["task"] == task}
        assert groups >= {"sex", "age_band", "region"}
        assert groups & {"pattern", "modality_count"}
    known = {row["task"] for row in told["worst"]}
    assert known
    assert known <= set(schema.task_names)
    assert {row["task"] for row in told["coverage"]} == set(schema.task_names)


def test_shifts_are_those_of_the_rectifier_for_patterns_that_people_have(told: dict[str, Any], parts: Any) -> None:
    data, schema, rectifier = parts[:3]
    told_shifts = told["rectifier"]["shifts"]
    assert told["rectifier"]["fitted"]
    assert [row["task"] for row in told["rectifier"]["rungs"]] == list(schema.task_names)
    assert told_shifts
    calibration = data.records.samples[data.samples_of("calibration")]
    for row in told_shifts:
        pattern = sum(1 << m for m, name in enumerate(schema.names) if name in row["modalities"])
        assert row["shift"] == pytest.approx(rectifier.shifts()[f"{row['task']}/pattern/{pattern}"])
        same = [pl.col(f"observed/{n}") == (n in row["modalities"]) for n in schema.names]
        assert calibration.filter(pl.all_horizontal(same))["patient"].n_unique() >= 10


def test_no_person_and_no_path_is_named(told: dict[str, Any], parts: Any) -> None:
    text, data = json.dumps(told), parts[0]
    assert not [p for p in data.records.samples["patient"].unique() if p in text]
    assert str(data.records.path.parent) not in text


def test_a_validation_has_curves_and_no_assessment(parts: Any) -> None:
    data, schema, rectifier, _, _ = parts
    told = findings("val", data, schema, rectifier, rows_of(data, schema, "val"), None, RUN)
    assert (told["groups"], told["worst"], told["coverage"]) == ([], [], [])
    assert told["calibration"]["death"]["raw"]["samples"]
    nothing = findings("val", data, schema, Rectifier(schema.task_names), None, None, RUN)
    assert (nothing["calibration"], nothing["decision"]) == ({}, {})
    assert nothing["rectifier"]["fitted"] is False
    assert nothing["rectifier"]["shifts"] == []


def test_a_modality_that_the_store_lacks_is_observed_for_nobody(parts: Any) -> None:
    data, schema, rectifier, test, assessed = parts
    frame = data.records.samples
    patch = pytest.MonkeyPatch()
    patch.setattr(data.records, "_frame", frame.drop("label/death"))
    told = findings("test", data, schema, rectifier, test, assessed, RUN)
    patch.undo()
    assert {row["labelled"] for row in told["cohort"]["labels"] if row["task"] == "death"} == {0}
    assert np.isfinite([row["samples"] for row in told["cohort"]["splits"]]).all()


def test_who_lacks_a_modality_lacks_it_for_a_reason(told: dict[str, Any]) -> None:
    names = [modality["name"] for modality in told["modalities"]]
    checked = 0
    for site in told["cohort"]["sites"]:
        for name in names:
            shares = [site["observed"][name], *site["absent"].get(name, {}).values()]
            if None not in shares:
                checked += 1
                assert sum(shares) == pytest.approx(1)
    assert checked > 10
    for row in told["cohort"]["patterns"]:
        assert set(row["absent"]) == set(names) - set(row["modalities"])
        assert all(sum(r.values()) == pytest.approx(1) for r in row["absent"].values() if None not in r.values())
