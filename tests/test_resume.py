"""A run that is stopped anywhere and continued is the run that was not stopped, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CONF = Path(__file__).with_name("conf")


def test_smoke(mmnar, own_tables, tmp_path):
    import time
    t=time.time()
    done = mmnar("fit", "--config", CONF / "tables.yaml", "--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores", "--run_dir", tmp_path / "run")
    print(done.status, done.out, done.trace[:3], len(done.trace), time.time()-t)
    t=time.time()
    done = mmnar("fit", "--config", CONF / "tables.yaml", "--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores", "--run_dir", tmp_path / "run2", end={"moment":"step","count":10,"how":"kill"})
    print(done.status, done.out, time.time()-t)
    t=time.time()
    done = mmnar("fit", "--config", CONF / "tables.yaml", "--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores", "--run_dir", tmp_path / "run2", "--resume", "auto")
    print(done.status, done.out, time.time()-t)
    assert 0
