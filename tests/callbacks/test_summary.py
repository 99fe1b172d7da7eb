from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

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
    assert {p.name for p in trained.glob("metrics-*.json")} == {"metrics-val.json", "metrics-test.json"}
    assert not [p for p in trained.iterdir() if p.name.startswith(".")]
