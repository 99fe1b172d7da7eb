from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def test_two_devices_train_as_one_on_the_joint_batch(run_two_ranks: Callable[..., None], tmp_path: Path) -> None:
    worker = Path(__file__).with_name("two_processes.py")
    run_two_ranks(worker, tmp_path / "rendezvous")
