"""Simulated patients as a data source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from mmnar_lightning.records import RecordStore, SplitSettings
from mmnar_lightning.simulation import MechanismKind
from mmnar_simulated import Mechanism, Outcome, Population, SimulatedDataModule, Site, View

VIEWS = (View("structured", 4, rate=1.0), View("labs", 6, rate=0.6), View("film", 3, noise=0.5, rate=0.3))
OUTCOMES = (Outcome("death", 0.2, 2.0), Outcome("readmission", 0.3, 1.0))
HERE_AND_THERE = (Site("here", 3.0), Site("there", 1.0, "mcar", shift=1.0))
TESTED_THERE = SplitSettings(by="site", test_values=("there",))


def simulated(folder: Path, samples: int = 2000, **options: Any) -> SimulatedDataModule:
    return SimulatedDataModule(folder, samples=samples, **{"views": VIEWS, "outcomes": OUTCOMES, **options})


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.arrow"))
    }


def test_the_store_holds_what_was_observed_and_the_truth_all(tmp_path: Path) -> None:
    data = simulated(tmp_path)
    store, truth = data.records, data.truth()
    assert store.schema.names == ("structured", "labs", "film")
    assert all(m.kind == "vector" for m in store.schema.modalities)
    assert store.schema.modalities[1].items == tuple(f"labs_{f:02d}" for f in range(6))
    assert store.schema.task_names == ("death", "readmission")
    assert store.samples["patient"].is_unique().all()
    for m, view in enumerate(VIEWS):
        observed = store.samples[f"observed/{view.name}"].to_numpy()
        assert np.array_equal(observed, truth.available[:, m])
        file = f"modality/{view.name}.arrow"
        assert np.array_equal(store.column(file, "sample"), np.flatnonzero(observed))
        assert np.array_equal(store.column(file, "values"), truth.values[view.name][observed].astype(np.float32))
    for k, outcome in enumerate(OUTCOMES):
        assert np.array_equal(store.samples[f"label/{outcome.name}"].to_numpy(), truth.outcomes[:, k])
    model = data.population.model
    assert np.array_equal(truth.risk, model.risk(truth.latent))
    drawn = model.draw(2000)
    assert np.array_equal(truth.propensity, drawn.propensity)
    assert np.array_equal(truth.values["film"], drawn.values["film"])


@pytest.mark.parametrize("kind", ["mcar", "mar", "mnar"])
def test_rates_are_met(kind: MechanismKind, tmp_path: Path) -> None:
    data = simulated(tmp_path, 10_000, mechanism=Mechanism(kind, 2.0))
    found = data.records.samples.select(pl.col("^observed/.*$").mean()).row(0)
    # five standard errors of 0.005, and as much for the pilot that sets the intercepts
    assert found == pytest.approx([1.0, 0.6, 0.3], abs=0.03)


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = simulated(tmp_path / "one"), simulated(tmp_path / "other")
    assert one.prepare_store().name == other.prepare_store().name
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")
    before = one.prepare_store().stat().st_mtime_ns
    assert one.prepare_store().stat().st_mtime_ns == before
    for options in ({"data_seed": 1}, {"samples": 1999}, {"mechanism": Mechanism("mnar", 1.0)}, {"form": "nonlinear"}):
        assert simulated(tmp_path / "one", **options).prepare_store() != one.prepare_store()


def test_more_patients_leave_the_first_as_they_are(tmp_path: Path) -> None:
    few, many = (simulated(tmp_path, n, sites=HERE_AND_THERE) for n in (1000, 2500))
    assert few.records.samples["site"].equals(many.records.samples["site"].head(1000))
    assert np.array_equal(few.truth().available, many.truth().available[:1000])


def test_splits_are_by_patient_and_stable(tmp_path: Path) -> None:
    data = simulated(tmp_path)
    data.setup("fit")
    shares = np.bincount(data.split, minlength=4) / 2000
    assert shares == pytest.approx([0.6, 0.1, 0.1, 0.2], abs=0.04)
    more = simulated(tmp_path, 3000)
    assert np.array_equal(data.split, more.split[:2000])
    batch = next(iter(data.train_dataloader()))
    assert batch.observed.shape[1] == 3


def test_a_policy_shift_is_a_site_that_is_tested(tmp_path: Path) -> None:
    data = simulated(tmp_path, 8000, sites=HERE_AND_THERE, splits=TESTED_THERE)
    samples, truth = data.records.samples, data.truth()
    there = (samples["site"] == "there").to_numpy()
    assert there.mean() == pytest.approx(0.25, abs=0.03)
    assert np.array_equal(data.samples_of("test"), np.flatnonzero(there))
    # the same people, other decisions
    assert np.array_equal(truth.outcomes, data.population.model.draw(8000).outcomes)
    assert truth.available[there, 1].mean() > truth.available[~there, 1].mean() + 0.1
    assert np.ptp(truth.propensity[there, 1]) == 0
    assert np.ptp(truth.propensity[~there, 1]) > 0.5
    # there, the pattern says nothing; who believes it does, as it did here, is worse off
    right, wrong = data.bayes("test"), data.bayes("test", policy="here")
    assert np.array_equal(right["death/bayes"], right["death/bayes_pattern"])
    assert np.array_equal(right["death/bayes"], wrong["death/bayes"])
    assert mean_loss(right, "bayes_pattern") < mean_loss(wrong, "bayes_pattern")


def mean_loss(found: pl.DataFrame, name: str) -> float:
    return float(np.mean([log_loss(found[f"{o.name}/target"], found[f"{o.name}/{name}"]) for o in OUTCOMES]))


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
def test_nothing_fitted_beats_bayes(form: Literal["linear", "nonlinear"], tmp_path: Path) -> None:
    data = simulated(tmp_path, 4000, form=form, mechanism=Mechanism("mnar", 2.0))
    truth, train, test = data.truth(), data.samples_of("train"), data.samples_of("test")
    found = data.bayes("test")
    assert np.array_equal(found["sample"], test)
    filled = [np.where(truth.available[:, [m]], truth.values[v.name], 0.0) for m, v in enumerate(VIEWS)]
    features = np.hstack([*filled, truth.available])
    for k, outcome in enumerate(OUTCOMES):
        fit = LogisticRegression(max_iter=2000).fit(features[train], truth.outcomes[train, k])
        fitted = fit.predict_proba(features[test])[:, 1]
        y, bayes = found[f"{outcome.name}/target"].to_numpy(), found[f"{outcome.name}/bayes_pattern"].to_numpy()
        gain = log_score(bayes, y) - log_score(fitted, y)
        drawn = gain[np.random.default_rng(0).integers(len(gain), size=(500, len(gain)))].mean(1)
        assert np.quantile(drawn, 0.975) > 0
        assert roc_auc_score(y, bayes) > roc_auc_score(y, fitted) - 0.01
        # who knew latent health itself would be better still: the bound can be broken
        assert (log_score(found[f"{outcome.name}/risk"].to_numpy(), y) - log_score(bayes, y)).mean() > 0


def log_score(p: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scores: np.ndarray[Any, Any] = np.log(np.where(y, p, 1 - p))
    return scores


def test_views_that_bayes_is_given_can_be_chosen(tmp_path: Path) -> None:
    data = simulated(tmp_path, 3000)
    whole, part = data.bayes("test"), data.bayes("test", views=["structured"])
    assert mean_loss(whole, "bayes") < mean_loss(part, "bayes")
    assert data.bayes("calibration").height < data.bayes("calibration", "conformal").height


WRONG: dict[str, Callable[[Path], object]] = {
    "samples 0: at least 1": lambda p: simulated(p, 0),
    "site name occurs twice: a": lambda p: simulated(p, sites=(Site("a"), Site("a"))),
    "share 0.0 must be above 0": lambda p: Site("a", 0.0),
    "mechanism 'often' is not one of": lambda p: simulated(p, sites=(Site("a", kind="often"),)),  # type: ignore[arg-type]
    "mar needs a view that is always observed": lambda p: simulated(
        p, views=(View("labs", 3),), sites=(Site("a", kind="mar"),)
    ),
    "shift inf must be a finite": lambda p: simulated(p, mechanism=Mechanism("mnar", 1.0, float("inf"))),
    "policy 'x' is not a site: there are none": lambda p: simulated(p, 200).bayes("test", policy="x"),
    "'bad name' must be letters": lambda p: simulated(p, 20, views=(View("bad name", 3),)).prepare_store(),
    "distinct names": lambda p: simulated(p, views=(VIEWS[0], VIEWS[0])),
    "not in the store|lists|labz": lambda p: simulated(p, 200, modalities=["labz"]).schema,
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_options_are_refused(message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message](tmp_path)


def test_a_site_without_a_policy_of_its_own_follows_the_usual_one() -> None:
    population = Population(simulated(Path("unused")).population.model, 100, (Site("a"), Site("b")))
    plain = replace(population, sites=())
    for (one, _), (other, site) in zip(plain.stream(), population.stream(), strict=True):
        assert np.array_equal(one.available, other.available)
        assert set(site.tolist()) == {0, 1}


def test_truth_is_written_beside_the_store(tmp_path: Path) -> None:
    data = simulated(tmp_path, 500)
    store = RecordStore(data.prepare_store())
    assert list((tmp_path / f"{store.path.name}.derived").glob("truth-*/truth.arrow"))
