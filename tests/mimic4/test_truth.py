"""What the extractor finds in a simulated extract is what the simulator decided, to the last sample."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mmnar_lightning.extract import prepare
from mmnar_lightning.records import RecordStore
from mmnar_mimic4 import MIMIC4Extractor
from mmnar_mimic4.simulate import simulate

EXTRACTS = {"2.2": {"release": "2.2", "seed": 1}, "3.1": {"release": "3.1", "seed": 2, "mechanism": "mar"}}


@pytest.fixture(scope="module", params=EXTRACTS)
def extract(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("simulated") / "mimic4"
    simulate(folder, patients=800, progress=False, **EXTRACTS[request.param])  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module", params=["post_discharge", "icu_landmark"])
def found(request: pytest.FixtureRequest, extract: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    extractor = MIMIC4Extractor(cohort=request.param, cxr_root=extract / "cxr", include_micro=True)
    return RecordStore(prepare(extractor, extract, tmp_path_factory.mktemp("stores"), progress=False))


@pytest.fixture(scope="module")
def truth(extract: Path, found: RecordStore) -> pl.DataFrame:
    cohort = found.manifest["cohort"]
    return pl.read_parquet(extract / "truth" / "*.parquet").filter(f"cohort/{cohort}").sort("subject_id")


def test_the_same_people_at_the_same_times(found: RecordStore, truth: pl.DataFrame) -> None:
    cohort = found.manifest["cohort"]
    assert len(found) > 60
    assert found.samples["id/subject_id"].to_list() == truth["subject_id"].to_list()
    assert found.samples["id/hadm_id"].to_list() == truth["hadm_id"].to_list()
    assert found.samples["prediction_time"].to_list() == truth[f"prediction_time/{cohort}"].to_list()


def test_the_same_outcomes(found: RecordStore, truth: pl.DataFrame) -> None:
    cohort = found.manifest["cohort"]
    for task in found.schema.task_names:
        told = truth[f"label/{cohort}/{task}"]
        assert found.samples[f"label/{task}"].to_list() == told.to_list(), task
        assert told.drop_nulls().n_unique() == 2, f"{task} has but one outcome, so nothing was compared"


def test_the_same_availability(found: RecordStore, truth: pl.DataFrame) -> None:
    cohort = found.manifest["cohort"]
    told = {column.split("/")[2] for column in truth.columns if column.startswith(f"available/{cohort}/")}
    assert told == set(found.schema.names)
    for name in found.schema.names:
        available = truth[f"available/{cohort}/{name}"]
        assert found.samples[f"observed/{name}"].to_list() == available.to_list(), name
        if name not in ("structured", "vitals"):
            assert 0 < available.sum() < len(available), f"{name} doesn't vary, so nothing was compared"


def test_what_was_not_collected_has_that_reason(found: RecordStore, truth: pl.DataFrame) -> None:
    # outside of the years in which films were collected there can't be one, and the reason says so
    cohort = found.manifest["cohort"]
    outside = (truth[f"year_low/{cohort}"] > 2016) | (truth[f"year_high/{cohort}"] < 2011)
    assert outside.any()
    reasons = found.samples.filter(outside)["reason/cxr"].unique().to_list()
    assert reasons == ["not_collected"]
    assert not found.samples.filter(outside)["observed/cxr"].any()
