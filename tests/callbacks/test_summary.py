from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from mmnar_lightning.callbacks.summary import report
from mmnar_lightning.evaluation import structured_risk
from mmnar_lightning.evaluation.assessment import Assessment, assess
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema, pattern_id
from mmnar_lightning.rectifier import Conformal, Rectifier

TASKS = ("death", "death_early", "readmission")


@pytest.fixture(scope="module")
def found(trained: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((trained / "metrics-test.json").read_text())
    return metrics


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("column", "prefix"), [("raw", ""), ("rectified", "rectified/")])
def test_metrics_are_those_of_the_predictions(
    task: str, column: str, prefix: str, found: dict[str, float], trained: Path
) -> None:
    rows = pl.read_parquet(trained / "predictions.parquet").filter(
        pl.col("split") == "test", pl.col(f"{task}/labelled")
    )
    y, p = rows[f"{task}/target"].to_numpy(), rows[f"{task}/{column}"].to_numpy()
    expected = {
        "auroc": roc_auc_score(y, p),
        "auprc": average_precision_score(y, p),
        "brier": brier_score_loss(y, p),
    }
    for name, value in expected.items():
        assert found[f"{prefix}{task}/{name}"] == pytest.approx(value, abs=1e-4), name


def test_the_mean_over_tasks_stands_beside_them(found: dict[str, float]) -> None:
    for prefix in ("", "rectified/", "recalibrated/"):
        mean = sum(found[f"{prefix}{task}/auroc"] for task in TASKS) / 3
        assert found[f"{prefix}auroc"] == pytest.approx(mean, abs=1e-5)


def test_recalibration_and_rectification_inside_a_pattern_keep_the_order(found: dict[str, float]) -> None:
    compared = 0
    for key, value in found.items():
        if "/pattern/" in key and key.endswith("/auroc") and key.startswith(TASKS):
            for prefix in ("recalibrated/", "rectified/"):
                # a slope may be negative where calibration has few rows, which turns the order round
                assert found[f"{prefix}{key}"] == pytest.approx(value, abs=1e-4) or found[
                    f"{prefix}{key}"
                ] == pytest.approx(1 - value, abs=1e-4)
                compared += 1
    assert compared


def test_validation_and_test_leave_their_own_files(trained: Path) -> None:
    for kind in ("metrics", "findings"):
        assert {p.name for p in trained.glob(f"{kind}-*.json")} == {f"{kind}-val.json", f"{kind}-test.json"}
    assert not [p for p in trained.iterdir() if p.name.startswith(".")]


def test_intervals_stand_around_the_metrics_of_a_test(found: dict[str, float]) -> None:
    for task in TASKS:
        for prefix in ("", "recalibrated/", "rectified/", "delta_only/"):
            for metric in ("auroc", "auprc", "brier", "log_loss"):
                name = f"{prefix}{task}/{metric}"
                assert found[f"{name}/low"] <= found[name] <= found[f"{name}/high"], name
                # availability may say nothing, and is then 0.5 in every draw
                assert prefix == "delta_only/" or found[f"{name}/low"] < found[f"{name}/high"], name


def test_validation_has_point_estimates_alone(trained: Path) -> None:
    metrics = json.loads((trained / "metrics-val.json").read_text())
    assert not [name for name in metrics if name.endswith(("/low", "/high")) or name.startswith("delta_only/")]
    assert "[" not in (trained / "report-val.md").read_text().partition("## Results")[2]


def test_the_report_of_a_test_says_what_the_numbers_are(trained: Path, found: dict[str, float]) -> None:
    text = (trained / "report-test.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles[-7:] == [
        "## Results",
        "## Rectifier",
        "## Availability alone",
        "## Worst pattern",
        "## By availability pattern",
        "## Subgroups",
        "## Conformal sets",
    ]
    rows = [line.split(" | ") for line in text.partition("## Results")[2].splitlines() if line.startswith("| ")]
    cells = {(row[0].strip("| "), row[1]): row[2:] for row in rows}
    for task in TASKS:
        low, high = found[f"rectified/{task}/auroc/low"], found[f"rectified/{task}/auroc/high"]
        assert cells[task, "rectified"][0] == f"{found[f'rectified/{task}/auroc']:.3f} [{low:.3f}, {high:.3f}]"
        assert cells[task, "δ-only"][0].startswith(f"{found[f'delta_only/{task}/auroc']:.3f} [")
    # nothing in these tables is observed for everyone
    assert "not available" in text
    assert not [name for name in found if "adjusted" in name]


def test_calibration_of_a_test_has_intervals(found: dict[str, float]) -> None:
    named = [name for name in found if name.endswith("/calibration_slope/low") and "/pattern/" not in name]
    assert {name.split("/")[0] for name in named} >= {"recalibrated", "rectified"}
    for name in named:
        estimate = found[name.removesuffix("/low")]
        assert found[name] < estimate < found[name.replace("/low", "/high")]


def test_findings_say_what_was_run_and_hold_the_groups_of_a_test(trained: Path) -> None:
    test, val = (json.loads((trained / f"findings-{stage}.json").read_text()) for stage in ("test", "val"))
    assert (test["stage"], val["stage"]) == ("test", "val")
    assert test["run"] | {"steps": 0, "parameters": 0} == {
        "seed": 0,
        "epochs": test["run"]["epochs"],
        "steps": 0,
        "parameters": 0,
        "device": "cpu",
        "devices": 1,
        "model": "MMNARFusion",
    }
    # of the checkpoint, not of the process that tests it
    assert 1 <= test["run"]["epochs"] <= 3
    assert min(test["run"]["steps"], test["run"]["parameters"]) > 0
    assert {row["task"] for row in test["groups"]} <= set(TASKS)
    assert list(test) == list(val)
    assert val["groups"] == []
    assert test["groups"]


@pytest.fixture(scope="module")
def told(
    make_datamodule: Callable[..., RecordDataModule], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Assessment]:
    """The report of made-up predictions with conformal sets, and what it was made of."""
    data = make_datamodule(tmp_path_factory.mktemp("stores"), 700)
    schema = RecordSchema.from_dict(data.schema)

    def rows(split: str) -> dict[str, torch.Tensor]:
        dataset = RecordDataset(data.records, schema, data.samples_of(split))
        batch = dataset.__getitems__(list(range(len(dataset))))
        p = 0.25 + 0.5 * torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(1))
        versions = dict.fromkeys(("raw", "recalibrated", "rectified"), p)
        known = {"targets": batch.targets, "labelled": batch.labelled, "sample": batch.sample}
        return versions | known | {"pattern": pattern_id(batch.observed)}

    b = rows("conformal")
    conformal = Conformal(schema.task_names, 0.2)
    conformal.fit(b["rectified"], b["targets"], b["labelled"], b["pattern"], len(schema.names))
    patch = pytest.MonkeyPatch()
    patch.setattr(structured_risk, "ALWAYS", 0.8)
    assessed = assess(rows("test"), data, schema, conformal)
    patch.undo()
    return report(data, schema, assessed.numbers(), "test", Rectifier(schema.task_names), assessed), assessed


def test_the_report_shows_coverage_by_class_and_pattern_group(told: tuple[str, Assessment]) -> None:
    text, assessed = told
    lines = text.partition("## Conformal sets")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert len(rows) == len(assessed.coverage) > 10
    assert {row[0] for row in rows} == set(TASKS)
    assert {row[1] for row in rows} == {"0", "1"}
    assert {"all", "other"} < {row[2] for row in rows}
    for row, expected in zip(rows, assessed.coverage, strict=True):
        assert row[5] == f"{expected.coverage:.3f}"
        assert int(row[4]) >= 10
        assert row[3] == "< 10" or int(row[3]) >= 10


def test_the_report_shows_what_availability_says_beyond_the_risk(told: tuple[str, Assessment]) -> None:
    text, assessed = told
    part = text.partition("## Availability alone")[2].partition("## Worst")[0]
    adjusted = [assessed.intervals.get(f"delta_only/{task}/adjusted_auroc") for task in TASKS]
    assert any(adjusted)
    assert not all(adjusted)
    for task, interval in zip(TASKS, adjusted, strict=True):
        row = next(line for line in part.splitlines() if line.startswith(f"| {task} "))
        # fewer than 50 events are not adjusted
        assert row.endswith(f" {interval or '–'} |")
    assert "vitals" in part


def test_the_report_shows_each_group_that_is_large_enough(told: tuple[str, Assessment]) -> None:
    text, assessed = told
    lines = text.partition("## By availability pattern")[2].partition("## Conformal")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    shown = {tuple(row[:4]): row[4:] for row in rows}
    large = [row for row in assessed.groups if row.events is not None]
    assert large
    for row in large:
        cells = shown[row.task, row.variable, row.group, str(row.samples)]
        ends = [row.rate, row.metrics["rectified"]["auroc"], row.metrics["rectified"]["brier"]]
        assert cells == [f"{e:.3f} [{low:.3f}, {high:.3f}]" for e, low, high in ends]
    small = [row for row in assessed.groups if row.events is None]
    assert "too few people" in text or not small


def test_no_count_in_the_report_is_of_fewer_than_ten_people(told: tuple[str, Assessment]) -> None:
    cells = [cell.strip() for line in told[0].splitlines() if line.startswith("|") for cell in line.split("|")]
    worst = told[0].partition("## Worst pattern")[2].partition("## Conformal")[0]
    # classes 0 and 1, and numbers of patterns, are no counts of people
    allowed = {"0", "1"} | {line.split("|")[2].strip() for line in worst.splitlines() if line.startswith("| ")}
    assert "< 10" in cells
    assert not [cell for cell in cells if cell.isdigit() and int(cell) < 10 and cell not in allowed]
