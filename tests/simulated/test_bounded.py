"""`mmnar evaluate` on simulated patients whose odds ratios are bounded: the truth lies where the bounds say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmnar_lightning.commands._hidden import predict_hidden
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import SplitSettings
from mmnar_simulated import Mechanism, Outcome, SimulatedDataModule, Site, View

MECHANISM = Mechanism("mnar", 2.0, bound=1.0)
# the sicker have labs more often, and it is in them that labs change the prediction; what everyone has tells little
VIEWS = (
    View("structured", 3, noise=2.0, rate=1.0, direction=(1.0,)),
    View("labs", 2, noise=0.3, rate=0.5, direction=(1.0,)),
)
OUTCOMES = (Outcome("death", 0.2, 3.0, (1.0,)),)
SPLITS = SplitSettings(folds=2, val=0.1, calibration=0.2)  # half of the patients are tested


def data(folder: Path, samples: int, views: tuple[View, ...] = VIEWS, **options: Any) -> SimulatedDataModule:
    settings: dict[str, Any] = {"mechanism": MECHANISM, "latent": 1, "data_seed": 3, "splits": SPLITS} | options
    return SimulatedDataModule(folder, samples=samples, views=views, outcomes=OUTCOMES, **settings)


def described(store: Path, samples: int) -> dict[str, Any]:
    """The same as config."""
    views = [{"name": v.name, "width": v.width, "noise": v.noise, "rate": v.rate, "direction": [1.0]} for v in VIEWS]
    outcomes = [{"name": "death", "prevalence": 0.2, "strength": 3.0, "direction": [1.0]}]
    mechanism = {"kind": "mnar", "strength": MECHANISM.strength, "bound": MECHANISM.bound}
    options = {"views": views, "outcomes": outcomes, "mechanism": mechanism, "latent": 1, "data_seed": 3}
    splits = {"folds": 2, "val": 0.1, "calibration": 0.2}
    return {
        "trainer": {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False},
        "data": {"init_args": {"store": str(store), "samples": samples, "splits": splits, **options}},
    }


def test_the_bound_reaches_patients_sites_and_bayes(tmp_path: Path) -> None:
    one = data(tmp_path, 2000)
    odds = np.log(one.truth().propensity[:, 1]) - np.log1p(-one.truth().propensity[:, 1])
    assert 1.8 < np.ptp(odds) < 2.0
    found = one.realised_gamma("test", views=["structured"])
    assert found["structured"] == 1.0
    assert np.e < found["labs"] < MECHANISM.gamma
    free = data(tmp_path, 2000, mechanism=Mechanism("mnar", 2.0))
    assert free.prepare_store() != one.prepare_store()
    assert free.realised_gamma("test", views=["structured"])["labs"] > 3 * MECHANISM.gamma
    assert not np.allclose(one.bayes("test")["death/bayes_pattern"], free.bayes("test")["death/bayes_pattern"])
    assert Site("here").mechanism(MECHANISM) == MECHANISM
    assert Site("there", bound=0.3).mechanism(MECHANISM).bound == 0.3


@pytest.mark.slow
def test_bounds_of_evaluate_hold_the_truth_where_ignorability_does_not(mmnar: Any, tmp_path: Path) -> None:
    samples, run, store = 40_000, tmp_path / "run", tmp_path / "stores"
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(described(store, samples)))
    done = mmnar("fit", "--config", "simulated", "--config", tmp_path / "overlay.yaml", "--run_dir", run)
    assert done.status == 0, done.out
    gamma = data(store, samples).realised_gamma("test", views=["structured"])["labs"]
    asked = ("--always", "[structured]", "--losses", "[brier]", "--gammas", f"[1.0, {gamma}]")
    done = mmnar("evaluate", "--run_dir", run, *asked)
    assert done.status == 0, done.out
    (value,) = json.loads((run / "evaluation.json").read_text())["availability"]["value"]
    ignorable, realised = value["sweep"]
    # the same patients, all of whom have labs
    checkpoint = run / "checkpoints" / "best.ckpt"
    everyone = (VIEWS[0], replace(VIEWS[1], rate=1.0))
    whole = data(store, samples, everyone, schema_of=str(checkpoint), predict_splits=["test"])
    model = MultimodalOutcomeModule.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu")
    p = predict_hidden(whole, model, {"accelerator": "cpu"})
    difference = np.square(p.hidden["labs"] - p.targets) - np.square(p.whole - p.targets)
    truth, error = difference.mean(), difference.std() / len(difference) ** 0.5
    # the truth is a mean over the same 20,000 patients, so that its own error is no excuse
    assert abs(ignorable["low"] - truth) > 3 * error
    assert not ignorable["interval_low"] <= truth <= ignorable["interval_high"]
    assert realised["low"] <= truth <= realised["high"]
