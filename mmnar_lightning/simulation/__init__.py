"""Structural causal models with a known missingness mechanism."""

from mmnar_lightning.simulation.bayes import BayesError, bayes_risk, realised_gamma
from mmnar_lightning.simulation.causal_model import CausalModel, Draw, Outcome, View, concatenate
from mmnar_lightning.simulation.extract_writer import MARKER, TRUTH, ExtractWriter, write_extract
from mmnar_lightning.simulation.mechanism import Floats, Mechanism, MechanismKind, intercept, sigmoid
from mmnar_lightning.simulation.posterior import Evidence

__all__ = [
    "MARKER",
    "TRUTH",
    "BayesError",
    "CausalModel",
    "Draw",
    "Evidence",
    "ExtractWriter",
    "Floats",
    "Mechanism",
    "MechanismKind",
    "Outcome",
    "View",
    "bayes_risk",
    "concatenate",
    "intercept",
    "realised_gamma",
    "sigmoid",
    "write_extract",
]
