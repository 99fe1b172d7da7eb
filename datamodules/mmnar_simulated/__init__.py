"""Simulated patients of a structural causal model, with the Bayes-optimal probabilities beside them."""

from mmnar_lightning.simulation import Mechanism, Outcome, View
from mmnar_simulated.datamodule import SimulatedDataModule
from mmnar_simulated.extractor import SimulatedExtractor
from mmnar_simulated.population import OUTCOMES, VIEWS, Population, Site

__all__ = [
    "OUTCOMES",
    "VIEWS",
    "Mechanism",
    "Outcome",
    "Population",
    "SimulatedDataModule",
    "SimulatedExtractor",
    "Site",
    "View",
]
