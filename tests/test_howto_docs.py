"""The pages on how to add a part are run as they are written: files, python and commands, in their order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from mmnar_lightning import load_predictor
from mmnar_lightning.__main__ import main
from mmnar_lightning.fusion import fusions
from mmnar_lightning.records import RecordStore

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "howto"
BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LONGEST = 60


def _command(line: str) -> None:
    """Run a line of a bash block: ours in this process, others in their own."""
    words = shlex.split(line)
    assert words.pop(0) == "PYTHONPATH=."
    program = words.pop(0)
    if program == "mmnar":
        assert main([*words, "--quiet"]) == 0, line
        return
    assert program == "python"
    environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """`follow("add-a-fusion")` does what the page says in an empty folder, beside a checkout; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmnar"])  # pytest's own arguments are none of mmnar's
    (tmp_path / "mmnar-lightning").symlink_to(ROOT)

    def run(page: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for block in BLOCK.finditer((PAGES / f"{page}.md").read_text(encoding="utf-8")):
            language, title, code = block["language"], block["title"], block["code"]
            if title is not None:
                Path(title).write_text(code, encoding="utf-8")
            elif language == "python":
                exec(compile(code, page, "exec"), names)
            elif language == "bash":
                for line in code.splitlines():
                    _command(line)
            elif language == "toml":
                tomllib.loads(code)
            else:
                pytest.fail(f"{page}: a block of {language} that nothing is done with")
        return names

    yield run
    for module in ("my_fusion", "my_encoder", "my_ward"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("page", ["add-a-datamodule", "add-an-encoder", "add-a-fusion"])
def test_a_page_has_little_code(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    titled = [b for b in BLOCK.finditer(text) if b["language"] == "python" and b["title"]]
    assert len(titled) == 1
    assert titled[0]["code"].count("\n") <= LONGEST


def test_a_fusion_of_ones_own(follow: Any, tmp_path: Path) -> None:
    follow("add-a-fusion")
    assert fusions()["MeanFusion"].__module__ == "my_fusion"
    kept = torch.load(tmp_path / "runs/mean/checkpoints/best.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["fusion"]["class_path"] == "my_fusion.MeanFusion"
    assert kept["state_dict"]["fusion.mlp.0.weight"].shape[0] == 32
    assert json.loads((tmp_path / "runs/mean/metrics-test.json").read_text())["auroc"] > 0.6
    predictor = load_predictor(tmp_path / "runs/mean")
    assert predictor.predict(predictor.example())["death/raw"].is_between(0, 1).all()


def test_an_encoder_of_ones_own(follow: Any, tmp_path: Path) -> None:
    follow("add-an-encoder")
    predictor = load_predictor(tmp_path / "runs/linear")
    assert type(predictor.module.encoders["labs"]).__name__ == "LinearEncoder"
    assert type(predictor.module.encoders["notes"]).__name__ == "VectorEncoder"
    assert predictor.module.encoders["labs"].project.bias is None  # type: ignore[union-attr]


def test_a_datamodule_of_ones_own(follow: Any, tmp_path: Path) -> None:
    names = follow("add-a-datamodule")
    store = RecordStore(next(p.parent for p in (tmp_path / "stores").glob("ward-*/manifest.json")))
    samples, severity = store.samples, names["severity"]
    assert len(store) == 400
    # counted independently: results of the first day alone, and the sicker are measured more often
    labs = pl.read_csv(tmp_path / "ward" / "labs.csv").filter(pl.col("minute") <= 1440)
    seen = set(labs["stay"])
    assert samples["observed/labs"].to_list() == [stay in seen for stay in range(400)]
    assert severity[samples["observed/labs"].to_numpy()].mean() > severity.mean() + 0.1
    assert samples["observed/vitals"].all()
    counts = labs.group_by("stay").len().sort("stay")["len"]
    values = store.column("modality/labs.arrow", "values")
    assert values[:, 2].tolist() == counts.to_list()
    found = json.loads((tmp_path / "runs/ward/metrics-test.json").read_text())
    assert 0 < found["auroc"] <= 1
    assert yaml.safe_load((tmp_path / "ward.yaml").read_text())["data"]["class_path"] == "my_ward.WardDataModule"
