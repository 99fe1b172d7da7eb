"""The δ-only model and the structured-only risk: what they are fitted on, and what they must not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmnar_lightning.evaluation import structured_risk as structured
from mmnar_lightning.evaluation.availability_only import PatternRisk, pattern_risk
from mmnar_lightning.evaluation.drawing import draw_patients
from mmnar_lightning.evaluation.flat import flatten, linear_pipeline
from mmnar_lightning.records import RecordDataModule, RecordDataset, RecordSchema, pattern_id

Made = tuple[RecordDataModule, RecordSchema]


@pytest.fixture(scope="module")
def made(make_datamodule: Callable[..., RecordDataModule], tmp_path_factory: pytest.TempPathFactory) -> Made:
    data = make_datamodule(tmp_path_factory.mktemp("stores"), 1500)
    return data, RecordSchema.from_dict(data.schema)


def patterns_of(data: RecordDataModule, schema: RecordSchema, split: str) -> torch.Tensor:
    rows = data.records.samples[data.samples_of(split)]
    return pattern_id(torch.from_numpy(rows.select(f"observed/{n}" for n in schema.names).to_numpy()))


def labels_of(data: RecordDataModule, task: str, split: str) -> np.ndarray[Any, Any]:
    column: np.ndarray[Any, Any] = (
        data.records.samples[data.samples_of(split)][f"label/{task}"].cast(pl.Float64).to_numpy()
    )
    return column


def risk_of_test(made: Made) -> PatternRisk:
    return pattern_risk(*made, patterns_of(*made, "test"))


def test_risk_is_that_of_the_pattern_in_train_pulled_to_its_parents(made: Made) -> None:
    data, schema = made
    train = patterns_of(data, schema, "train")
    found = pattern_risk(data, schema, train)
    assert found.samples == len(train)
    y = labels_of(data, "death", "train")
    ids, counts = np.unique(train.numpy(), return_counts=True)
    rates = {i: y[train.numpy() == i].mean() for i in ids}
    risks = {i: found.risk[train.numpy() == i, 0] for i in ids}
    assert all(np.ptp(r) == 0 for r in risks.values()), "one risk a pattern"
    often = ids[counts >= 60]
    assert len(often) >= 3
    for i in often:
        assert risks[i][0] == pytest.approx(rates[i], abs=0.06)
    seldom = ids[counts < 10]
    assert np.std([risks[i][0] for i in seldom]) < 0.6 * np.std([rates[i] for i in seldom])
    assert found.risk[:, 0].mean() == pytest.approx(y.mean(), abs=0.01)


def test_it_predicts_where_availability_follows_the_outcome(made: Made) -> None:
    """The sicker, the more is measured: `death` is predicted by that alone, `readmission` hardly."""
    y = labels_of(made[0], "death", "test")
    assert roc_auc_score(y, risk_of_test(made).risk[:, 0]) > 0.55


def test_labels_of_other_splits_change_nothing(
    made: Made,
    make_records: Callable[..., Any],
    make_store: Callable[..., Path],
    store_datamodule: Callable[..., RecordDataModule],
    tmp_path: Path,
) -> None:
    data, schema = made
    records = make_records(1500)
    train = pl.Series(np.isin(np.arange(len(data.records)), data.samples_of("train")))

    def flipped(where: pl.Series) -> np.ndarray[Any, Any]:
        label = pl.when(where).then(~pl.col("label/death")).otherwise("label/death")
        samples = records.samples.with_columns(label.alias("label/death"), label.alias("label/death_early"))
        folder = tmp_path / str(where.sum())
        other = store_datamodule(make_store(folder, 1500, records=replace(records, samples=samples)))
        return pattern_risk(other, schema, patterns_of(data, schema, "test")).risk[:, 0]

    before = risk_of_test(made).risk[:, 0]
    np.testing.assert_allclose(flipped(~train), before, atol=1e-9)
    assert np.abs(flipped(train) - before).max() > 0.1, "those of train do"


def test_a_task_without_events_in_train_has_no_model(
    make_records: Callable[..., Any],
    make_store: Callable[..., Path],
    store_datamodule: Callable[..., RecordDataModule],
    tmp_path: Path,
) -> None:
    records = make_records(120)
    samples = records.samples.with_columns(pl.lit(False).alias("label/death"), pl.lit(False).alias("label/death_early"))
    data = store_datamodule(make_store(tmp_path, 120, records=replace(records, samples=samples)))
    schema = RecordSchema.from_dict(data.schema)
    found = pattern_risk(data, schema, patterns_of(data, schema, "test"))
    assert np.isnan(found.risk[:, :2]).all()
    assert "training" in found.reasons[0]
    assert np.isfinite(found.risk[:, 2]).all()


def test_a_modality_the_store_lacks_is_unobserved(made: Made) -> None:
    data, schema = made
    films = replace(schema.modality("notes"), name="films")
    wider = replace(schema, modalities=(films, *schema.modalities))
    own = pattern_risk(data, wider, 2 * patterns_of(data, schema, "test"))
    np.testing.assert_allclose(own.risk, risk_of_test(made).risk, atol=1e-9)


def test_structured_risk_is_not_there_where_nothing_is_known_of_everyone(made: Made) -> None:
    found = structured.structured_risk(*made, made[0].samples_of("test"))
    assert np.isnan(found.risk).all()
    assert "99.9%" in found.reason


def test_structured_risk_is_a_logistic_regression_on_values_of_train(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, schema = made
    monkeypatch.setattr(structured, "ALWAYS", 0.8)
    found = structured.structured_risk(data, schema, data.samples_of("test"))
    assert found.modalities == ("vitals",)
    assert (found.reason, found.samples) == ("", len(data.samples_of("train")))
    part = schema.restrict(modalities=["vitals"])
    train, test = (flatten(RecordDataset(data.records, part, data.samples_of(s))) for s in ("train", "test"))
    y = labels_of(data, "death", "test")
    risks = []
    for strength in 10.0 ** np.arange(-5, 2):
        plain = linear_pipeline(LogisticRegression(C=strength, max_iter=2000))
        plain.fit(train.values[:, :6], train.targets[:, 0])
        risks.append(plain.predict_proba(test.values[:, :6])[:, 1])
    assert min(np.abs(found.risk[:, 0] - risk).max() for risk in risks) < 1e-9
    assert roc_auc_score(y, found.risk[:, 0]) > 0.7


def test_rows_are_bounded_and_drawn_by_patient(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    data, schema = made
    monkeypatch.setattr(structured, "ALWAYS", 0.8)
    whole = structured.structured_risk(data, schema, data.samples_of("test"))
    monkeypatch.setattr(structured, "MOST_ROWS", 400)
    part = structured.structured_risk(data, schema, data.samples_of("test"))
    assert 330 < part.samples < 470
    assert part.risk.shape == whole.risk.shape
    assert np.corrcoef(part.risk[:, 0], whole.risk[:, 0])[0, 1] > 0.9
    drawn = draw_patients(data, data.samples_of("train"), 400)
    kept = set(data.records.samples["patient"].gather(drawn))
    rest = np.setdiff1d(data.samples_of("train"), drawn)
    assert not kept & set(data.records.samples["patient"].gather(rest)), "whole patients"
    again = structured.structured_risk(data, schema, data.samples_of("test"))
    np.testing.assert_array_equal(part.risk, again.risk)
