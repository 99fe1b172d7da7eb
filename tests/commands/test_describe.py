"""`mmnar describe`: the manifest for people, and nothing that comes from fewer than ten of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import torch
import yaml

from mmnar_lightning.__main__ import main
from mmnar_lightning.records import RecordStore

if TYPE_CHECKING:
    from tests.conftest import MakeRecords, MakeStore


@pytest.fixture
def stores(tmp_path: Path, make_store: MakeStore) -> Path:
    make_store(tmp_path / "stores")
    return tmp_path / "stores"


@pytest.fixture
def store(stores: Path) -> Path:
    return next(path.parent for path in stores.glob("*/manifest.json"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> str:
    assert main(["describe", *map(str, arguments)]) == status
    found = capsys.readouterr()
    return found.out if status == 0 else found.err


def row(shown: str, first: str) -> list[str]:
    """Cells of the row of a table by its first cell."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    (found,) = [cells for cells in rows if cells[0] == first]
    return found


def test_a_store_is_described(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened, shown = RecordStore(store), told(capsys, store)
    assert row(shown, "samples")[1] == f"{len(opened):,}"
    assert row(shown, "patients")[1] == str(opened.samples["patient"].n_unique())
    label = opened.samples["label/death"]
    positive, known = int(label.sum() or 0), label.len() - label.null_count()
    assert row(shown, "death")[4:] == [f"{positive:,}", f"{positive / known:.1%}"]
    assert "(only where death)" in row(shown, "death_early")[2]
    observed = opened.samples["observed/labs"].to_numpy()
    assert row(shown, "labs")[1:5] == ["vector", "5", f"{observed.sum():,}", f"{observed.mean():.1%}"]
    assert row(shown, "diagnoses")[2] == str(len(opened.codes("diagnoses")))


def test_the_files_it_was_made_from_are_listed_once_and_hashes_where_asked_for(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    source = {"file": "hosp/[x].csv.gz", "bytes": 1_234_567, "sha256": "ab" * 32}
    counts = [["patient", "excluded: under 18", 12], ["patient", "excluded: age unknown", 3], ["lab", "rows read", 99]]
    (store / "manifest.json").write_text(json.dumps(manifest | {"sources": [source, source], "counts": counts}))
    shown = told(capsys, store)
    assert row(shown, "hosp/[x].csv.gz") == ["hosp/[x].csv.gz", "1.2 MB"]
    assert "ab" * 32 not in shown
    assert row(told(capsys, store, "--hashes"), "hosp/[x].csv.gz")[2] == "ab" * 32
    left_out = [line for line in shown.splitlines() if "│ patient " in line]
    assert [re.split(r" *│ *", line)[2:4] for line in left_out] == [["under 18", "12"], ["age unknown", "< 10"]]
    assert "rows read" not in shown


def test_no_patient_is_in_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, store, "--hashes", "--check")
    for patient in RecordStore(store).samples["patient"].unique():
        assert f" {patient} " not in shown


def test_what_comes_from_fewer_than_ten_people_is_not_told(
    tmp_path: Path, make_records: MakeRecords, make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(200)
    people = pl.col("patient").is_in(records.samples["patient"].unique(maintain_order=True)[:7].implode())
    samples = records.samples.with_columns(
        **{
            "label/death": people,
            "label/death_early": pl.lit(False),
            # all but seven people have it
            "label/readmission": ~people,
        }
    )
    path = make_store(tmp_path, records=type(records)(records.schema, samples, records.elements))
    shown = told(capsys, path)
    assert row(shown, "death")[4:] == ["< 10", ""]
    assert row(shown, "death_early")[4:] == ["0", "0.0%"]
    assert row(shown, "readmission")[4:] == ["all but < 10", ""]


def test_a_share_is_coarse_where_it_would_tell_how_few_are_unknown(
    tmp_path: Path, make_records: MakeRecords, make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(200)
    first = pl.col("patient").is_in(records.samples["patient"].unique(maintain_order=True)[:5].implode())
    label = pl.when(first).then(None).otherwise(pl.col("patient").hash(0) % 3 == 0)
    samples = records.samples.with_columns(**{"label/readmission": label})
    shown = told(capsys, make_store(tmp_path, records=type(records)(records.schema, samples, records.elements)))
    known, _, rate = row(shown, "readmission")[3:]
    assert known == "all but < 10"
    assert rate.endswith("%")
    assert "." not in rate


def test_the_stores_of_a_folder_are_listed(
    stores: Path, store: Path, make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    few = make_store(stores / "small", 8)
    few.rename(stores / "few")
    (stores / "broken").mkdir()
    (stores / "broken" / "manifest.json").write_text("{")
    shown = told(capsys, stores)
    assert row(shown, store.name)[1] == f"{len(RecordStore(store)):,}"
    assert row(shown, "few")[1:3] == ["< 10", "< 10"]
    assert row(shown, "broken")[1] == "not a whole store"


def test_the_store_of_a_run_is_found_by_its_fingerprint(
    stores: Path, store: Path, make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(stores / "x", 60, 1).rename(stores / "another")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"store": "stores"}}}))
    assert "has no checkpoint" in told(capsys, run, status=1)
    state: dict[str, Any] = {"store": RecordStore(store).fingerprint, "splits": {}, "place": None}
    torch.save({"state_dict": {}, "SomeDataModule": state}, run / "checkpoints" / "best.ckpt")
    assert told(capsys, run) == told(capsys, store)
    torch.save({"SomeDataModule": state | {"store": "f" * 64}}, run / "checkpoints" / "best.ckpt")
    assert "mmnar prepare makes it again" in told(capsys, run, status=1)


def test_check_finds_a_file_whose_content_was_changed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "with the size and content that the manifest states" in told(capsys, store, "--check")
    path = store / "modality" / "labs.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "with the size that the manifest states" in told(capsys, store)
    error = told(capsys, store, "--check", status=1)
    assert "modality/labs.arrow was changed since it was written; remove it and prepare again" in error
    assert error.count("\n") == 1


def test_derived_data_are_listed_and_a_damaged_one_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store.with_name(f"{store.name}.derived") / "features-notes-0"
    folder.mkdir(parents=True)
    (folder / "vectors.npy").write_bytes(b"12345")
    described = {"modality": "notes", "model": "a/model", "dtype": "float16"}
    files = {"vectors.npy": {"bytes": 5, "sha256": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps({"store": "", "described": described, "files": files}))
    assert row(told(capsys, store), folder.name)[1::2] == ["notes, a/model, float16", "whole"]
    assert f"{folder.name} is not whole; remove it" in told(capsys, store, "--check", status=1)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("nowhere", "no such folder"), ("empty", "neither a store"), ("file", "is a file, not a folder")],
)
def test_what_is_no_store_is_told_in_a_line(
    name: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    error = told(capsys, tmp_path / name, status=1)
    assert problem in error
    assert error.count("\n") == 1


def test_a_store_of_another_format_is_refused_with_the_remedy(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    assert "store format 99 where 1 is needed; remove it and prepare again" in told(capsys, store, status=1)
