"""Structural causal models with a known missingness mechanism."""

from mmnar_lightning.simulation.causal_model import CausalModel, Draw, Outcome, View, concatenate
from mmnar_lightning.simulation.mechanism import Floats, Mechanism, MechanismKind, intercept, sigmoid

__all__ = [
    "CausalModel",
    "Draw",
    "Floats",
    "Mechanism",
    "MechanismKind",
    "Outcome",
    "View",
    "concatenate",
    "intercept",
    "sigmoid",
]
