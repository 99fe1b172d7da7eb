"""A MEDS dataset is known as one, with the command that comes next or what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmnar_meds.recognise import recognise
from mmnar_meds.simulate import simulate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meds") / "set"
    simulate(folder, patients=30, progress=False)
    return folder


def test_a_dataset_is_recognised(dataset: Path) -> None:
    found = recognise(dataset)
    assert found is not None
    assert found.version == json.loads((dataset / "metadata" / "dataset.json").read_text())["meds_version"]
    assert not found.problems
    assert found.command[:4] == ("mmnar", "prepare", "--config", "meds")


def test_without_labels_it_says_so(dataset: Path, tmp_path: Path) -> None:
    for name in ("data", "metadata"):
        (tmp_path / name).symlink_to(dataset / name)
    found = recognise(tmp_path)
    assert found is not None
    assert "labels" in found.problems[0]
    assert found.command == ()


def test_another_folder_is_none(tmp_path: Path, dataset: Path) -> None:
    assert recognise(tmp_path) is None
    (tmp_path / "data").symlink_to(dataset / "data")
    assert recognise(tmp_path) is None  # any folder may hold parquet files under data
