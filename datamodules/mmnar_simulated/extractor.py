"""Turns simulated patients into samples and elements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.extract import Counts, Extraction, TableSpec
from mmnar_lightning.records import Modality, RecordSchema, Task
from mmnar_lightning.simulation import Draw, View
from mmnar_simulated.population import Population


class SimulatedExtractor:
    """Simulated patients as a data source: it reads no table, its options say all.

    Args:
        population: The patients.
    """

    version = "1"
    data_use = "Simulated from a causal model: no person's record went into it."
    dataset = "simulated"

    def __init__(self, population: Population) -> None:
        self.population = population

    @property
    def cohort(self) -> str:
        """Form of the model and kind of mechanism."""
        return f"{self.population.model.form}-{self.population.model.mechanism.kind}"

    def options(self) -> dict[str, Any]:
        """All that patients depend on."""
        described: dict[str, Any] = json.loads(json.dumps(asdict(self.population)))
        return described

    def tables(self) -> Sequence[TableSpec]:
        """None."""
        return []

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Draw the patients a chunk at a time; what was observed of them is held in memory, as float32.

        Args:
            tables: Not looked at.
            log: Receives the number of patients at each site.
        """
        model, sites = self.population.model, self.population.sites
        samples: list[pl.DataFrame] = []
        elements: dict[str, list[pl.DataFrame]] = {view.name: [] for view in model.views}
        for draw, site in self.population.stream():
            samples.append(self._samples(draw, site))
            for m, view in enumerate(model.views):
                elements[view.name].append(_elements(view, draw, m))
        whole = pl.concat(samples)
        for place in sites:
            log.add("patients", f"at site {place.name}", int((whole["site"] == place.name).sum()))
        modalities = tuple(Modality(view.name, "vector", items(view)) for view in model.views)
        tasks = tuple(Task(name, "", f"simulated outcome {name}") for name in model.outcome_names)
        return Extraction(
            RecordSchema(modalities, tasks), whole, {name: pl.concat(frames) for name, frames in elements.items()}
        )

    def _samples(self, draw: Draw, site: NDArray[np.int64]) -> pl.DataFrame:
        names = pl.Series([place.name for place in self.population.sites] or [None], dtype=pl.String)
        return pl.DataFrame(
            {
                "patient": pl.Series(draw.index).cast(pl.String).str.zfill(8),
                "site": names.gather(site),
                "id/patient": draw.index,
                "prediction_time": pl.Series([None] * len(draw), dtype=pl.Float64),
                **{f"label/{name}": draw.outcomes[:, k] for k, name in enumerate(self.population.model.outcome_names)},
            }
        )


def items(view: View) -> tuple[str, ...]:
    """Names of a view's numbers."""
    return tuple(f"{view.name}_{f:02d}" for f in range(view.width))


def _elements(view: View, draw: Draw, m: int) -> pl.DataFrame:
    there = draw.available[:, m]
    values = draw.values[view.name][there].astype(np.float32)
    columns = {name: values[:, f] for f, name in enumerate(items(view))}
    hours = np.zeros(len(values), dtype=np.float32)
    return pl.DataFrame({"sample": draw.index[there], "hours_before": hours, **columns})
