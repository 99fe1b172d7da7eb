"""The tutorial notebook is run from its first cell to its last, in an empty folder."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def executed(notebook: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("tutorial")
    done = copy.deepcopy(notebook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # the kernel finds the packages of this environment, and writes its files here
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / ".jupyter"))
        NotebookClient(done, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute(
            env=dict(os.environ)
        )
    return done, folder


def outputs(cell: Any, kind: str) -> list[Any]:
    return [o for o in cell["outputs"] if o["output_type"] == kind]


def shown(notebook: Any, start: str) -> str:
    """What the cell that holds these words shows as HTML or text."""
    (cell,) = [c for c in notebook["cells"] if c["cell_type"] == "code" and start in c["source"]]
    (result,) = outputs(cell, "execute_result")
    data = result["data"]
    return str(data.get("text/html", "")) + str(data.get("text/plain", ""))


def test_it_is_committed_without_outputs_and_with_ids_that_stay(notebook: Any) -> None:
    for k, cell in enumerate(notebook["cells"]):
        assert cell["id"] == f"cell-{k:02d}"
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.filterwarnings("ignore")  # of the kernel's machinery, none of ours
def test_every_cell_runs_and_says_nothing_unasked(executed: tuple[Any, Path]) -> None:
    for cell in executed[0]["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is not None
            said = [*outputs(cell, "stream"), *outputs(cell, "display_data")]
            assert said == [], cell["source"]


@pytest.mark.filterwarnings("ignore")
def test_the_cells_show_what_the_text_says(executed: tuple[Any, Path]) -> None:
    done, folder = executed
    assert "delta_only" in shown(done, "metrics = run.test()")
    assert "<svg" in shown(done, "draw_calibration(curves), ")
    assert ">23<" in shown(done, "predictor.predict(patient)")  # structured, vitals, labs and infusion: bits 0, 1, 2, 4
    assert "hidden" in shown(done, "predictor.hide(records")
    page = folder / "tutorial" / "run" / "report.html"
    assert page.stat().st_size > 10_000
    assert "<script>" not in shown(done, "report(run)")
