"""Run folders, made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def made(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """`made.write_run(folder)`, `made.findings()`, `made.HOSTILE`: see `run_folder.py`."""
    return load_module(Path(__file__).with_name("run_folder.py"))


@pytest.fixture(scope="session")
def rendered(made: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run beside another one, with a table."""
    from mmnar_lightning.reports import read_run, read_table, render_page

    folder = tmp_path_factory.mktemp("runs")
    table = folder / "ablation.csv"
    table.write_text(f'method,auroc\n"{made.HOSTILE.replace(chr(34), chr(34) * 2)}",0.81\nconcat,0.79\n', "utf-8")
    other = made.write_run(folder / "other", config=made.CONFIG | {"seed_everything": 1})
    run = made.write_run(folder / "first")
    return render_page(read_run(run), [read_run(other)], [read_table(table)])
