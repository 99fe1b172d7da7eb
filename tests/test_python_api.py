"""What a notebook imports: it comes when it is asked for, and does what the commands do."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import mmnar_lightning
from mmnar_lightning import MultimodalOutcomeModule, datamodule, fit, load_predictor, report, simulate
from mmnar_lightning.notebook import Run
from mmnar_lightning.records import RecordStore
from mmnar_simulated import SimulatedDataModule

SIX = ["MultimodalOutcomeModule", "datamodule", "fit", "load_predictor", "report", "simulate"]
HEAVY = {"torch", "lightning", "polars", "numpy", "jsonargparse", "rich", "matplotlib", "jinja2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch on simulated patients in eICU's layout; its store is in `../stores`."""
    folder = tmp_path_factory.mktemp("api")
    extract = simulate("eicu", folder / "extract", patients=250, seed=0)
    data = {"root": str(extract), "store": str(folder / "stores"), "min_patients": 20}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    return fit("eicu", run_dir=folder / "run", data=data, trainer=trainer, model={"width": 8}, seed_everything=3)


def test_six_names_come_when_they_are_asked_for() -> None:
    assert mmnar_lightning.__all__ == SIX
    assert set(SIX) < set(dir(mmnar_lightning))
    program = f"import sys, mmnar_lightning; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert (
        mmnar_lightning.MultimodalOutcomeModule
        is importlib.import_module("mmnar_lightning.module").MultimodalOutcomeModule
    )
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mmnar_lightning.nonsense  # noqa: B018


def test_a_fit_is_that_of_the_command_with_what_was_given(run: Run) -> None:
    config = yaml.safe_load((run.run_dir / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["model"]["init_args"]["width"] == 8
    assert config["model"]["init_args"]["weight_decay"] == 0.3  # the config's own
    assert config["data"]["init_args"]["min_patients"] == 20
    assert config["trainer"]["devices"] in (1, "1")
    assert isinstance(run.module, MultimodalOutcomeModule)
    assert not run.module.training
    metrics = run.metrics()
    assert set(metrics["task"]) == set(run.module.schema.task_names)
    assert {"raw", "rectified"} <= set(metrics["probabilities"])
    with pytest.raises(ValueError, match=r"has no metrics-other\.json yet"):
        run.metrics("other")


def test_a_second_fit_in_the_folder_is_refused_as_by_the_command(run: Run) -> None:
    with pytest.raises(ValueError, match="holds a run; --resume auto continues it"):
        fit("eicu", run_dir=run.run_dir, data={"root": str(run.run_dir.parent / "extract")})


def test_it_is_quiet_and_leaves_the_process_as_it_was(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["a notebook", "with words"])
    before = (list(warnings.filters), logging.getLogger("mmnar_lightning").level, logging.getLogger().level)
    capfd.readouterr()
    metrics = run.test()
    assert capfd.readouterr() == ("", "")
    assert sys.argv == ["a notebook", "with words"]
    after = (list(warnings.filters), logging.getLogger("mmnar_lightning").level, logging.getLogger().level)
    assert after == before
    found = metrics.filter(pl.col("metric") == "auroc")
    assert set(found["probabilities"]) >= {"raw", "rectified", "delta_only"}
    assert found.drop_nulls("low").select((pl.col("low") <= pl.col("estimate")).all()).item()


def test_a_table_of_a_store_predicts_what_the_command_predicts(run: Run) -> None:
    written = run.predict()
    store = next(p.parent for p in (run.run_dir.parent / "stores").glob("*/manifest.json"))
    predictor = load_predictor(run.run_dir)
    predicted = predictor.predict(predictor.frame_of(RecordStore(store), written["sample"].to_list()), batch_size=50)
    assert predicted["sample"].to_list() == written["sample"].to_list()
    assert predicted["pattern"].to_list() == written["pattern"].to_list()
    names = [name for name in written.columns if name.endswith(("/raw", "/rectified"))]
    assert len(names) == 8
    for name in names:
        np.testing.assert_allclose(predicted[name], written[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_report_is_written(run: Run, tmp_path: Path) -> None:
    run.test()
    page = report(run, tmp_path / "page.html")
    assert "</html>" in page.read_text(encoding="utf-8")
    assert report(run.run_dir) == run.run_dir / "report.html"


def test_a_datamodule_by_its_name(tmp_path: Path) -> None:
    data = datamodule("simulated", store=tmp_path, samples=300)
    assert isinstance(data, SimulatedDataModule)
    with pytest.raises(ValueError, match=r"no datamodule 'nobody'; there are: eicu, .*tables"):
        datamodule("nobody")
    with pytest.raises(ValueError, match=r"no simulator 'nobody'; there are: eicu"):
        simulate("nobody", tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"colour": "red"}}, "Option 'colour' is not accepted"),
        ({"colour": "red"}, "unrecognized arguments: --colour=red"),
        ({"data": {"modalities": ["films"]}}, "no modality 'films'; there are"),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"data": {"samples": 200}} | options
    given["data"] = given["data"] | {"store": str(tmp_path)}
    with pytest.raises(ValueError, match=message) as error:
        fit("simulated", run_dir=tmp_path / "run", **given)
    assert "\n" not in str(error.value)
