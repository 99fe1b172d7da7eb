from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("toy_extractor.py")
# every rename of a prepare, before and behind it: of two tables and two parts two files each, the ledger, the store
RENAMES = 10
MOMENTS = [f"{kind}:{n}" for n in range(1, RENAMES + 1) for kind in ("write", "after")]


def run(root: Path, folder: Path, moments: list[str]) -> dict[str, Any]:
    environment = os.environ | {"POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(root), str(folder), *moments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def test_a_killed_prepare_is_finished_by_the_next_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, MOMENTS)
    (status,), whole = results.pop("")
    assert status == 0
    assert any(name.endswith("manifest.json") for name in whole)
    for moment, (statuses, files) in results.items():
        assert statuses[0] == -signal.SIGKILL, f"{moment} did not come"
        assert statuses[-1] == 0, moment
        assert files == whole, moment


@pytest.mark.slow
def test_killed_at_random_times(root: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    moments = [f"time:{draw.uniform(0.0, 0.5):.4f}" for _ in range(30)]
    results = run(root, tmp_path, moments)
    _, whole = results.pop("")
    killed = [statuses[0] == -signal.SIGKILL for statuses, _ in results.values()]
    assert sum(killed) >= 10
    assert all(files == whole for _, files in results.values())
