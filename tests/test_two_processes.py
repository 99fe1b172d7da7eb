"""Two processes train and evaluate as one does on the joint batches."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

CONF = Path(__file__).with_name("conf") / "still.yaml"
DDP = {"trainer.devices": 2, "trainer.strategy": "ddp"}


def words(settings: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def in_two(mmnar: Any, arguments: list[str]) -> list[Any]:
    """Run a command in two processes, as a launcher would start them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [shared | {"LOCAL_RANK": str(rank)} for rank in range(2)]
    done: list[Any] = mmnar.together([{"arguments": arguments, "environment": e, "strict": False} for e in ranks])
    assert [d.status for d in done] == [0, 0], "\n".join(d.out for d in done)
    return done


def steps(trace: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.asarray([float.fromhex(r["loss"]) for r in trace if "step" in r])


@pytest.fixture(scope="module")
def settings(own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"data.init_args.root": own_tables, "data.init_args.store": tmp_path_factory.mktemp("stores")}


@pytest.fixture(scope="module")
def alone(mmnar: Any, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    given = words(settings | {"data.init_args.batch_size": 16, "run_dir": run_dir})
    done = [mmnar(command, "--config", CONF, *given) for command in ("fit", "test", "predict")]
    assert all(d.status == 0 for d in done), [d.out for d in done]
    return done[0], run_dir


def test_two_processes_do_what_one_does(
    mmnar: Any, settings: dict[str, Any], alone: tuple[Any, Path], tmp_path: Path
) -> None:
    given = words(settings | DDP | {"data.init_args.batch_size": 8, "run_dir": tmp_path / "run"})
    fitted = in_two(mmnar, ["fit", "--config", str(CONF), *given])
    one, folder = alone
    np.testing.assert_allclose(np.mean([steps(d.trace) for d in fitted], axis=0), steps(one.trace), rtol=1e-5)
    assert len(steps(one.trace)) == 3
    weights, expected = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "run", folder)
    )
    for name, tensor in expected.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    for command in ("test", "predict"):
        # the weights of one, so that what differs is the evaluation
        checkpoint = ["--ckpt_path", str(folder / "checkpoints" / "best.ckpt")]
        in_two(mmnar, [command, "--config", str(CONF), *given, *checkpoint])
    metrics, usual = (json.loads((run / "metrics-test.json").read_text()) for run in (tmp_path / "run", folder))
    assert metrics.keys() == usual.keys()
    assert metrics == pytest.approx(usual, abs=1e-4)
    found, before = (pl.read_parquet(run / "predictions.parquet") for run in (tmp_path / "run", folder))
    assert found["sample"].to_list() == before["sample"].to_list()
    for column in found.columns:
        if column.endswith(("/raw", "/rectified")):
            np.testing.assert_allclose(found[column].to_numpy(), before[column].to_numpy(), atol=1e-5)
        else:
            assert found[column].equals(before[column]), column


@pytest.mark.slow
def test_mmnar_starts_its_second_process_itself_and_resumes(settings: dict[str, Any], tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mmnar")
    if not program.exists():
        pytest.skip("the program `mmnar` is not installed beside this Python")
    given = words(settings | DDP | {"data.init_args.batch_size": 8, "run_dir": tmp_path / "run"})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> None:
        command = [str(program), "fit", "--config", str(CONF), *given, "--resume", "auto", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    run()
    run("--trainer.max_epochs", "2")
    resumed = shutil.move(tmp_path / "run", tmp_path / "resumed")
    run("--trainer.max_epochs", "2")
    assert torch.load(Path(resumed) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
