"""`mmnar evaluate`: what it reads of a run, what it refuses, what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

# overlap is not what is tested here: 72 test samples can't have it
LENIENT = ("--min_ess", "5", "--min_ess_share", "0.01", "--max_clipped", "0.5", "--draws", "20")


@pytest.fixture(scope="module")
def run_dir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own, beside the same stores."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run"))


@pytest.fixture(scope="module")
def report(mmnar: Any, run_dir: Path) -> dict[str, Any]:
    done = mmnar("evaluate", "--run_dir", run_dir, "--always", "[vitals]", "--as-if", "site=s5", *LENIENT)
    assert done.status == 0, done.out
    assert "under ignorability" in done.out
    found: dict[str, Any] = json.loads((run_dir / "evaluation.json").read_text())
    return found


def test_reports_overlap_values_and_shift(report: dict[str, Any], run_dir: Path) -> None:
    found = report["availability"]
    modalities = {"labs", "diagnoses"}
    assert {o["modality"] for o in found["overlap"]} == modalities
    assert {v["modality"] for v in found["value"]} == modalities
    given = [v for v in found["value"] if not v["refused"]]
    assert given
    for value in given:
        # no estimate without its assumption, its sweep and its tipping point
        assert value["assumption"].startswith("under ignorability")
        assert value["sweep"][0]["gamma"] == 1.0
        assert value["sweep"][0]["low"] == pytest.approx(value["estimate"])
        widths = [b["interval_high"] - b["interval_low"] for b in value["sweep"]]
        assert widths == sorted(widths)
        assert "tipping_gamma" in value
    # s5 collects no labs, so that weights of samples with labs are next to nothing
    assert report["as_if"]["as_if"] == "site=s5"
    assert report["as_if"]["refused"] or report["as_if"]["metrics"]
    text = (run_dir / "evaluation.md").read_text()
    assert "under ignorability" in text
    assert "Γ" in text


def test_leaves_the_run_as_it_was_and_names_nobody(report: dict[str, Any], run_dir: Path, trained: Path) -> None:
    before = {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()}
    after = {p.name: p.read_bytes() for p in run_dir.iterdir() if p.is_file()}
    assert set(after) - set(before) == {"evaluation.json", "evaluation.md"}
    assert all(after[name] == before[name] for name in before)
    written = after["evaluation.json"].decode() + after["evaluation.md"].decode()
    assert not any(f"p{i:05d}" in written for i in range(360))
    assert (run_dir / "evaluation.json").stat().st_mode & 0o077 == 0


def test_is_the_same_when_run_again(report: dict[str, Any], mmnar: Any, run_dir: Path) -> None:
    before = (run_dir / "evaluation.json").read_bytes()
    # as in a run that was continued: the best checkpoint is meant all the same
    saved = (run_dir / "config.yaml").read_text()
    assert "ckpt_path: null" in saved
    last = run_dir / "checkpoints" / "last.ckpt"
    (run_dir / "config.yaml").write_text(saved.replace("ckpt_path: null", f"ckpt_path: {last}"))
    done = mmnar("evaluate", "--run_dir", run_dir, "--always", "[vitals]", "--as-if", "site=s5", *LENIENT)
    assert done.status == 0, done.out
    assert (run_dir / "evaluation.json").read_bytes() == before


def test_weights_for_training_are_of_training_samples(mmnar: Any, run_dir: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.parquet"
    shift = ("--as-if", "site=s1", "--train_weights", weights, "--min_shift_share", "0.01")
    done = mmnar("evaluate", "--run_dir", run_dir, "--always", "[vitals]", *shift, *LENIENT)
    assert done.status == 0, done.out
    found = pl.read_parquet(weights)
    assert found.columns == ["sample", "weight"]
    store = pl.read_parquet_metadata(run_dir / "predictions.parquet")["store"]
    assert pl.read_parquet_metadata(weights)["store"] == store, "by it the weights are known to fit a store"
    weight = found["weight"].to_numpy()
    assert weight.mean() == pytest.approx(1)
    assert weight.std() > 0.01
    split = pl.read_parquet(run_dir / "predictions.parquet").filter(pl.col("split") == "test")["sample"]
    assert not set(found["sample"]) & set(split)
    # and a run trains with them
    given = ("--trainer.callbacks+=SampleWeights", "--trainer.callbacks.path", weights, "--trainer.max_epochs", "1")
    saved = yaml.safe_load((run_dir / "config.yaml").read_text()) | {
        "run_dir": str(tmp_path / "run"),
        "ckpt_path": None,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    done = mmnar("fit", "--config", tmp_path / "config.yaml", *given)
    assert done.status == 0, done.out
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(stored["callbacks"]["SampleWeights"]) == {"sha256"}
    assert stored["callbacks"]["SampleWeights"]["sha256"]


def test_refuses_without_overlap(mmnar: Any, run_dir: Path) -> None:
    done = mmnar("evaluate", "--run_dir", run_dir, "--always", "[vitals]", "--min_ess", "5000")
    assert done.status == 0, done.out
    found = json.loads((run_dir / "evaluation.json").read_text())
    assert all("effective sample size" in v["refused"] for v in found["availability"]["value"])
    assert all("estimate" not in v for v in found["availability"]["value"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no modality is recorded for everyone"),
        (["--always", "[vitals]", "--as-if", "site~s5"], "write site=X or year<=2014"),
        (["--always", "[vitals]", "--as-if", "site=nowhere"], "no sample meets it"),
        (["--always", "[vitals]", "--as-if", "year<=2014"], "no 'group/year'"),
        (["--always", "[vitals]", "--as-if", "year<=nan"], "needs a number"),
        (["--always", "[vitals]", "--train_weights", "weights.parquet"], "--train_weights needs --as-if"),
        (["--always", "[vitals]", "--groups", "[site]", "--as-if", "site=s5"], "can't be a group"),
        (["--always", "[films]"], "no modality 'films'"),
        (["--always", "[vitals]", "--learner", "forest"], "learner"),
        (["--always", "[vitals]", "--data.init_args.splits.split_seed", "7"], "other split settings"),
    ],
)
def test_says_what_is_wrong(mmnar: Any, run_dir: Path, arguments: list[str], message: str) -> None:
    done = mmnar("evaluate", "--run_dir", run_dir, *arguments)
    assert done.status == 1
    assert message in done.out
    assert "Traceback" not in done.out


def test_needs_a_run(mmnar: Any, tmp_path: Path) -> None:
    assert "holds no run" in mmnar("evaluate", "--run_dir", tmp_path).out
    assert "run_dir" in mmnar("evaluate").out
