"""A simulated MEDS dataset is MEDS, the same from the same seed, and as its truth says."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from meds.schema import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, LabelSchema, SubjectSplitSchema

from mmnar_meds import MEDSDataModule
from mmnar_meds.simulate import simulate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "meds"
    simulate(folder, patients=700, seed=3, progress=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_meds_package_finds_nothing_wrong(dataset: Path) -> None:
    shards = sorted((dataset / "data").rglob("*.parquet"))
    assert len(shards) == 6
    people: list[int] = []
    for path in shards:
        table = pq.read_table(path)
        # polars writes 64-bit strings; their content is what MEDS asks for
        DataSchema.validate(DataSchema.align(table))
        subjects = pl.read_parquet(path)["subject_id"]
        assert subjects.is_sorted()
        people += subjects.unique().to_list()
        times = pl.read_parquet(path).group_by("subject_id", maintain_order=True).agg("time")["time"]
        assert all(t.drop_nulls().is_sorted() and t[: t.null_count()].null_count() == t.null_count() for t in times)
    assert len(set(people)) == len(people) == 700
    for path in (dataset / "tasks").rglob("*.parquet"):
        LabelSchema.validate(LabelSchema.align(pq.read_table(path)))
    SubjectSplitSchema.validate(SubjectSplitSchema.align(pq.read_table(dataset / "metadata/subject_splits.parquet")))
    CodeMetadataSchema.validate(CodeMetadataSchema.align(pq.read_table(dataset / "metadata/codes.parquet")))
    DatasetMetadataSchema.validate(json.loads((dataset / "metadata/dataset.json").read_text()))


def test_same_seed_same_bytes_and_more_people_move_nobody(dataset: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", patients=700, seed=3, progress=False)
    assert contents(tmp_path / "again") == contents(dataset)
    simulate(tmp_path / "more", patients=900, seed=3, progress=False)
    for place in ("data", "tasks/death_in_hospital"):
        more = pl.read_parquet(tmp_path / "more" / place / "**/*.parquet")
        few = pl.read_parquet(dataset / place / "**/*.parquet")
        asked = more.filter(pl.col("subject_id") <= few["subject_id"].max())
        assert asked.height == few.height
        assert asked.sort(pl.all()).equals(few.sort(pl.all()))


def test_a_complete_dataset_is_left_and_another_is_refused(dataset: Path) -> None:
    before = contents(dataset)
    simulate(dataset, patients=700, seed=3, progress=False)
    assert contents(dataset) == before
    with pytest.raises(FileExistsError, match="another simulated extract"):
        simulate(dataset, patients=700, seed=4, progress=False)
    with pytest.raises(ValueError, match="patients is 0"):
        simulate(dataset.parent / "none", patients=0)


def test_a_store_made_twice_has_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    stores = [MEDSDataModule(dataset, tmp_path / name).prepare_store() for name in ("one", "other")]
    assert contents(stores[0]) == contents(stores[1])
    counts = {(table, what) for table, what, _ in json.loads((stores[0] / "manifest.json").read_text())["counts"]}
    assert ("data", "rows in no modality, HOSPITAL_DISCHARGE") in counts


def test_what_was_observed_is_what_the_truth_says(dataset: Path, tmp_path: Path) -> None:
    records = MEDSDataModule(dataset, tmp_path / "stores").records
    truth = pl.read_parquet(dataset / "truth/*.parquet").sort("subject_id")
    assert records.samples["id/subject_id"].to_list() == truth["subject_id"].to_list()
    assert records.samples["observed/structured"].all()
    for name in ("diagnoses", "procedures", "medications"):
        assert records.samples[f"observed/{name}"].to_list() == truth[f"available/{name}"].to_list()
    for name in ("labs", "vitals"):
        # of those that have it, hardly anyone has every single value left out by chance
        observed, available = records.samples[f"observed/{name}"], truth[f"available/{name}"]
        assert not (observed & ~available).any()
        assert (observed & available).sum() == available.sum()
    # who died has no row in the labels of readmission
    dead = records.samples["label/death_in_hospital"]
    assert (records.samples["label/readmission_30d"].is_null() == dead).all()
    # the last values of a stay, which tell its outcome, came after the prediction time
    highest = records.column("modality/labs.arrow", "values")
    assert highest.shape[1] == 10 * 5
