"""What is fitted once after training, seen in the checkpoint that `mmnar fit` leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def state(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]["_extra_state"]
    return loaded


def test_the_best_checkpoint_holds_the_ladder_and_the_sets_and_the_last_one_not(trained: Path) -> None:
    best, last = (state(trained / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    tasks = len(best["rectifier"]["tasks"])
    assert len(best["rectifier"]["choices"]) == tasks > 0
    assert best["conformal"]["fitted"]
    assert last["rectifier"]["choices"] == []
    assert not last["conformal"]["fitted"]


def test_each_half_of_calibration_serves_one_purpose(trained: Path) -> None:
    best = state(trained / "checkpoints" / "best.ckpt")
    predicted = pl.read_parquet(trained / "predictions.parquet")
    for k, task in enumerate(best["rectifier"]["tasks"]):
        known = predicted.filter(pl.col(f"{task}/labelled"))
        a, b = (known.filter(pl.col("split") == name) for name in ("calibration", "conformal"))
        assert sum(rows[k] for rows in best["rectifier"]["labelled"]) == a.height > 0
        assert sum(best["conformal"]["total"][k]) == b.height > 0
        assert not set(a["patient"]) & set(b["patient"])


def test_doing_it_again_changes_nothing_and_curves_get_no_point_of_it(
    trained: Path, mmnar: Any, own_tables: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu")
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", trained.parent / "stores")
    config = Path(__file__).with_name("conf") / "tables.yaml"
    done = mmnar("fit", "--config", config, *data, "--run_dir", run, "--resume", "auto")
    assert done.status == 0, done.out
    after = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu")
    assert after["state_dict"].pop("_extra_state") == before["state_dict"].pop("_extra_state")
    assert all(torch.equal(value, before["state_dict"][name]) for name, value in after["state_dict"].items())
    events = min(trained.glob("events.out.tfevents*"), key=lambda path: path.stat().st_mtime_ns)
    epochs = before["epoch"] + 1
    assert len(_points(events)) >= epochs
    assert len(_points(events)) == len(set(_points(events)))


def _points(path: Path) -> list[int]:
    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    if "val/auroc" not in accumulator.Tags()["scalars"]:
        return []
    return [event.step for event in accumulator.Scalars("val/auroc")]


def test_a_run_that_was_killed_before_its_end_is_known(
    trained: Path, mmnar: Any, own_tables: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    best = run / "checkpoints" / "best.ckpt"
    # what was there before the last writing is kept beside it
    best.with_name("best.ckpt.previous").replace(best)
    assert state(best)["rectifier"]["choices"] == []
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", trained.parent / "stores")
    config = Path(__file__).with_name("conf") / "tables.yaml"
    done = mmnar("test", "--config", config, *data, "--run_dir", run)
    assert done.status == 0, done.out
    assert "the fit has not come to its end" in done.out
    assert "The fit has not come to its end" in (run / "report-test.md").read_text()
    assert mmnar("fit", "--config", config, *data, "--run_dir", run, "--resume", "auto").status == 0
    assert state(best) == state(trained / "checkpoints" / "best.ckpt")
    done = mmnar("test", "--config", config, *data, "--run_dir", run)
    assert "has not come to its end" not in done.out + (run / "report-test.md").read_text()
