"""Simulated patients as a Lightning datamodule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.extract import prepare
from mmnar_lightning.records import RecordDataModule, RecordStore, SplitSettings
from mmnar_lightning.simulation import CausalModel, Draw, Mechanism, Outcome, View, bayes_risk, realised_gamma
from mmnar_simulated.extractor import SimulatedExtractor
from mmnar_simulated.population import OUTCOMES, VIEWS, Population, Site
from mmnar_simulated.truth import read_truth, truth_file


class SimulatedDataModule(RecordDataModule):
    """Patients of a `CausalModel`, for whom the best attainable predictions are known.

    Every view is a modality of kind ``vector``. A policy shift is two sites with different mechanisms and a split that
    tests on one of them: ``sites: [{name: here}, {name: there, kind: mcar}]`` with
    ``splits: {by: site, test_values: [there]}``.

    Args:
        store: Folder that record stores are kept in.
        samples: Number of patients; each has one sample.
        views: What is measured of a patient. One with rate 1 is observed for everyone; ``mar`` needs one.
            None takes `VIEWS`: structured, labs, notes and film.
        outcomes: What is predicted; None takes `OUTCOMES`: death, long_stay and readmission.
        mechanism: What decides about availability; ``bound`` keeps its odds ratios finite, see `realised_gamma`.
        sites: Sites with policies of their own; empty is one place without a name.
        latent: L, dimension of the latent health.
        form: ``linear`` or ``nonlinear``, see `CausalModel`.
        data_seed: Decides about the causal model's parameters and its patients.
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided; `by` may be ``patient`` or ``site``.
        min_patients: Least number of training patients for an item to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it.

    Raises:
        ValueError: If the options make no causal model; says which.
    """

    def __init__(
        self,
        store: Path | str = "stores",
        *,
        samples: int = 8000,
        views: Sequence[View] | None = None,
        outcomes: Sequence[Outcome] | None = None,
        mechanism: Mechanism = Mechanism("mnar", 1.5),  # noqa: B008 - frozen
        sites: Sequence[Site] = (),
        latent: int = 3,
        form: Literal["linear", "nonlinear"] = "linear",
        data_seed: int = 0,
        modalities: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        splits: SplitSettings = SplitSettings(),  # noqa: B008 - frozen
        min_patients: int = 10,
        batch_size: int = 128,
        workers: int = 0,
        seed: int | None = None,
        predict_splits: Sequence[Literal["train", "val", "calibration", "test"]] = ("calibration", "test"),
        schema_of: str | None = None,
    ) -> None:
        super().__init__(
            store,
            modalities=modalities,
            tasks=tasks,
            splits=splits,
            min_patients=min_patients,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            predict_splits=predict_splits,
            schema_of=schema_of,
        )
        # not as defaults of the signature: jsonargparse can't print a default that is a list of dataclasses
        chosen = VIEWS if views is None else tuple(views)
        predicted = OUTCOMES if outcomes is None else tuple(outcomes)
        model = CausalModel(chosen, predicted, mechanism, latent, form, data_seed)
        self.population = Population(model, samples, tuple(sites))

    def prepare_store(self) -> Path:
        """Return the store of these options, drawn where it is not there yet, with the truth beside it."""
        self.store_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # there is no raw extract: the folder of stores stands in for its place
        path = prepare(SimulatedExtractor(self.population), self.store_folder, self.store_folder)
        truth_file(RecordStore(path), self.population)
        return path

    def truth(self) -> Draw:
        """Everything known about the patients; row i is sample i of the store. All in memory, as float64."""
        return read_truth(truth_file(self.records, self.population))[0]

    def bayes(
        self, *splits: str, views: Sequence[str] | None = None, policy: str | None = None, draws: int | None = None
    ) -> pl.DataFrame:
        """Bayes-optimal probabilities of the samples in any of these splits, see `bayes_risk`.

        Args:
            splits: ``train``, ``val``, ``calibration``, ``conformal`` or ``test``.
            views: Names of the modalities that are conditioned on, or None for all.
            policy: Name of the site whose mechanism is taken to hold at every site, as one would who has learnt there;
                None takes each site's own.
            draws: Importance draws a row, where quadrature doesn't do; None leaves their number to `bayes_risk`.

        Returns:
            ``sample`` and for each task ``<task>/target``, ``<task>/risk`` P(y = 1 | u), ``<task>/bayes``
            P(y = 1 | x_obs), which takes availability for ignorable, and ``<task>/bayes_pattern`` P(y = 1 | x_obs, δ).

        Raises:
            ValueError: If the policy is not a site's.
            BayesError: If rows have too few effective draws.
        """
        rows = self.samples_of(*splits)
        draw, site = read_truth(truth_file(self.records, self.population), rows)
        models = self._policies(policy)
        columns: dict[str, NDArray[np.generic]] = {"sample": rows}
        for name, pattern in (("bayes", False), ("bayes_pattern", True)):
            risk = np.empty((len(draw), len(self.population.model.outcomes)))
            for k, model in enumerate(models):
                here = np.flatnonzero(site == k)
                risk[here] = bayes_risk(model, _rows(draw, here), pattern=pattern, views=views, draws=draws)
            columns |= {f"{task}/{name}": risk[:, k] for k, task in enumerate(self.population.model.outcome_names)}
        for k, task in enumerate(self.population.model.outcome_names):
            columns |= {f"{task}/target": draw.outcomes[:, k], f"{task}/risk": draw.risk[:, k]}
        return pl.DataFrame(columns)

    def realised_gamma(self, *splits: str, views: Sequence[str]) -> dict[str, float]:
        """Γ of the marginal sensitivity model that holds in these splits, for w the values of some modalities.

        Bounds of `mmnar evaluate` at this Γ, with these modalities as what everyone has, hold the truth.

        Args:
            splits: ``train``, ``val``, ``calibration``, ``conformal`` or ``test``.
            views: Names of modalities that everyone has.

        Returns:
            Γ by modality, see `mmnar_lightning.simulation.realised_gamma`; the largest of all sites'.

        Raises:
            ValueError: If someone lacks one of these modalities.
        """
        draw, site = read_truth(truth_file(self.records, self.population), self.samples_of(*splits))
        models = self._policies(None)
        found = [realised_gamma(m, _rows(draw, np.flatnonzero(site == k)), views) for k, m in enumerate(models)]
        return dict(zip(self.population.model.names, np.max(found, axis=0).tolist(), strict=True))

    def _policies(self, policy: str | None) -> list[CausalModel]:
        """The causal model that is taken to hold at each site."""
        sites = self.population.sites
        if policy is not None and policy not in [site.name for site in sites]:
            raise ValueError(f"policy {policy!r} is not a site: {', '.join(s.name for s in sites) or 'there are none'}")
        chosen = [next((s for s in sites if s.name == policy), site) for site in sites]
        return [self.population.model_of(site) for site in chosen] or [self.population.model]


def _rows(draw: Draw, rows: NDArray[np.int64]) -> Draw:
    return replace(
        draw,
        index=draw.index[rows],
        latent=draw.latent[rows],
        values={name: x[rows] for name, x in draw.values.items()},
        available=draw.available[rows],
        propensity=draw.propensity[rows],
        outcomes=draw.outcomes[rows],
        risk=draw.risk[rows],
    )
