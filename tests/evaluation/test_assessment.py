"""What is said of a test beside the metrics, on predictions that are made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmnar_lightning.evaluation import bootstrap_interval, structured_risk
from mmnar_lightning.evaluation.assessment import Assessment, assess
from mmnar_lightning.evaluation.intervals import metric_statistics
from mmnar_lightning.metrics import BINARY_METRICS
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema, pattern_id
from mmnar_lightning.rectifier.conformal import Conformal

Made = tuple[RecordDataModule, RecordSchema]


@pytest.fixture(scope="module")
def made(make_datamodule: Callable[..., RecordDataModule], tmp_path_factory: pytest.TempPathFactory) -> Made:
    data = make_datamodule(tmp_path_factory.mktemp("stores"), 900)
    return data, RecordSchema.from_dict(data.schema)


def rows_of(made: Made, split: str) -> dict[str, Tensor]:
    """Targets, patterns and samples of a split with probabilities that know something of the targets."""
    data, schema = made
    dataset = RecordDataset(data.records, schema, data.samples_of(split))
    batch = dataset.__getitems__(list(range(len(dataset))))
    noise = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    logits = 1.5 * batch.targets - 1 + noise
    return {
        "raw": torch.sigmoid(logits),
        "recalibrated": torch.sigmoid(0.8 * logits),
        "rectified": torch.sigmoid(0.8 * logits + 0.1),
        "targets": batch.targets,
        "labelled": batch.labelled,
        "pattern": pattern_id(batch.observed),
        "sample": batch.sample,
    }


@pytest.fixture(scope="module")
def assessed(made: Made) -> Assessment:
    patch = pytest.MonkeyPatch()
    patch.setattr(structured_risk, "ALWAYS", 0.8)
    b = rows_of(made, "conformal")
    conformal = Conformal(made[1].task_names, 0.2)
    conformal.fit(b["rectified"], b["targets"], b["labelled"], b["pattern"], len(made[1].names))
    found = assess(rows_of(made, "test"), *made, conformal)
    patch.undo()
    return found


def test_intervals_are_those_of_the_patient_bootstrap(made: Made, assessed: Assessment) -> None:
    rows, (data, schema) = rows_of(made, "test"), made
    patient = data.records.samples["patient"].gather(rows["sample"].numpy()).to_numpy()
    for name, prefix in (("raw", ""), ("rectified", "rectified/")):
        for k, task in enumerate(schema.task_names):
            known = rows["labelled"][:, k].numpy()
            p, y = rows[name][:, k].double().numpy(), rows["targets"][:, k].numpy()
            for metric in ("auroc", "auprc", "brier", "log_loss"):
                expected = bootstrap_interval(metric, p, y, patient, labelled=known, draws=1000)
                found = assessed.intervals[f"{prefix}{task}/{metric}"]
                assert found.patients == expected.patients < found.samples
                ends = (found.estimate, found.low, found.high)
                # the same draws, over patients in the same order
                assert ends == pytest.approx((expected.estimate, expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("version", ["raw", "recalibrated", "rectified"])
def test_calibration_has_the_intervals_of_the_patient_bootstrap(version: str, made: Made, assessed: Assessment) -> None:
    rows, (data, schema) = rows_of(made, "test"), made
    patient = data.records.samples["patient"].gather(rows["sample"].numpy()).to_numpy()
    k, prefix = 1, {"raw": ""}.get(version, f"{version}/")
    known = rows["labelled"][:, k].numpy()
    for metric in ("calibration_intercept", "calibration_slope", "excess_ece"):
        p, y = rows[version][:, k].double().numpy(), rows["targets"][:, k].numpy()
        expected = bootstrap_interval(metric, p, y, patient, labelled=known, draws=1000)
        found = assessed.intervals[f"{prefix}{schema.task_names[k]}/{metric}"]
        ends = (found.estimate, found.low, found.high)
        # fewer than 1,000 probabilities: nothing is rounded
        assert ends == pytest.approx((expected.estimate, expected.low, expected.high), abs=1e-7), metric


def test_groups_are_told_for_patterns_and_declared_subgroups(made: Made, assessed: Assessment) -> None:
    variables = {row.variable for row in assessed.groups}
    assert variables >= {"sex", "age_band", "region", "year"}
    assert variables & {"pattern", "modality_count"}
    assert min(row.people for row in assessed.groups) >= 10
    for row in assessed.groups:
        if row.variable == "sex" and row.events is not None:
            assert set(row.metrics) == {"raw", "recalibrated", "rectified"}
            auroc, low, high = row.metrics["raw"]["auroc"]
            assert auroc is not None
            assert low is not None
            assert high is not None
            assert low < auroc < high


def test_numbers_are_finite_plain_and_complete(made: Made, assessed: Assessment) -> None:
    found = json.loads(json.dumps(assessed.numbers(), allow_nan=False))
    for task in made[1].task_names:
        for prefix in ("", "recalibrated/", "rectified/", "delta_only/"):
            for metric in ("auroc", "auprc", "brier", "log_loss"):
                assert found[f"{prefix}{task}/{metric}/low"] < found[f"{prefix}{task}/{metric}/high"]
        # fewer than 50 events are not adjusted
        adjusted = [n for n in found if n == f"delta_only/{task}/adjusted_auroc"]
        assert bool(adjusted) == (task == "death")
        for name in (f"delta_only/{task}/auroc", *adjusted, f"structured_only/{task}/auroc"):
            assert found[f"{name}/low"] <= found[name] <= found[f"{name}/high"]
        assert f"{task}/auroc" not in found, "the module's own metric stands"
        assert 0 <= found[f"conformal/{task}/positive/all/coverage"] <= 1
    assert found["death/worst_pattern/shrunken_auroc"] > 0.5


def test_no_group_of_fewer_than_ten_people_is_told(made: Made, assessed: Assessment) -> None:
    assert assessed.coverage
    assert min(row.people for row in assessed.coverage) >= 10
    rows = rows_of(made, "test")
    few = {name: values[:9] for name, values in rows.items()}
    nothing = assess(few, *made, Conformal(made[1].task_names).fit(*_columns(rows_of(made, "conformal")), 5))
    assert nothing.numbers() == {}


def _columns(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows["rectified"], rows["targets"], rows["labelled"], rows["pattern"]


def test_without_sets_or_structured_risk_the_rest_is_there(made: Made) -> None:
    found = assess(rows_of(made, "test"), *made)
    assert found.coverage == []
    assert found.structured.reason
    names = found.numbers()
    assert "delta_only/death/auroc" in names
    assert not [name for name in names if "adjusted" in name or name.startswith(("conformal", "structured"))]


def test_the_same_rows_give_the_same_numbers(made: Made) -> None:
    rows = rows_of(made, "test")
    assert assess(rows, *made).numbers() == assess(rows, *made).numbers()
    assert all(math.isfinite(v) for v in assess(rows, *made).numbers().values())
    assert np.isfinite(assess(rows, *made).availability.risk).all()


def test_calibration_of_many_rows_is_rounded_little() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(-2, 1.2, 5000)
    y = (rng.random(5000) < 1 / (1 + np.exp(-x))).astype(float)
    p = 1 / (1 + np.exp(-(1.2 * x + rng.normal(0, 0.5, 5000))))
    weights = rng.integers(3, size=(4, 5000)).astype(float)
    metrics = ("calibration_intercept", "calibration_slope")
    for name, statistic in metric_statistics(metrics, p, y).items():
        assert statistic(weights) == pytest.approx(BINARY_METRICS[name].of(p, y, weights), abs=1e-3), name
