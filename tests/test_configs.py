"""Every config that ships can be parsed, and every config in tests/conf runs from fit to predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mmnar_eicu.simulate import simulate
from mmnar_meds.simulate import simulate as simulate_meds

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
RUN = sorted((ROOT / "tests" / "conf").glob("*.yaml"))


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_a_shipped_config_says_what_it_is_for_and_is_parsed(path: Path, mmnar: Any) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# Purpose: ")
    assert second.startswith("# Data: ")
    # what lies in a folder is laid over a whole config
    whole = [] if path.parent.name == "configs" else ["--config", "eicu"]
    done = mmnar("fit", *whole, "--config", path, "--print_config")
    assert done.status == 0, done.out
    printed = yaml.safe_load(done.out)
    described = yaml.safe_load(path.read_text())
    assert printed["trainer"]["max_epochs"] == described.get("trainer", {}).get(
        "max_epochs", printed["trainer"]["max_epochs"]
    )
    for word in path.read_text().split():
        assert not word.startswith("/"), "no config holds a path of somebody's machine"


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "eicu"
    simulate(folder, patients=150, seed=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meds") / "set"
    simulate_meds(folder, patients=700, progress=False)
    return folder


@pytest.mark.parametrize("path", RUN, ids=named)
def test_a_config_runs_end_to_end(
    path: Path, mmnar: Any, own_tables: Path, extract: Path, meds: Path, tmp_path: Path
) -> None:
    described = yaml.safe_load(path.read_text())
    roots = {"EICUDataModule": extract, "TablesDataModule": own_tables, "MEDSDataModule": meds}
    root = roots.get(described["data"]["class_path"])  # simulated patients come from nowhere
    raw = () if root is None else ("--data.init_args.root", root)
    data = (*raw, "--data.init_args.store", tmp_path / "stores")
    for command in ("fit", "test", "predict"):
        done = mmnar(command, "--config", path, *data, "--run_dir", tmp_path / "run")
        assert done.status == 0, done.out
    found = json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    assert all(0 <= found[f"{kind}auroc"] <= 1 for kind in ("", "rectified/"))
    predictions = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    for column in predictions.columns:
        if column.endswith(("/raw", "/rectified")):
            assert predictions[column].is_between(0, 1).all()
    assert predictions["sample"].is_unique().all()
