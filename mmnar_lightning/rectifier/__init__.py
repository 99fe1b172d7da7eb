"""The post-hoc correction: bias and temperature, shrunk pattern intercepts and slopes; conformal sets. Pure maths."""

from mmnar_lightning.rectifier.calibration import patient_keys
from mmnar_lightning.rectifier.conformal import Conformal, Coverage
from mmnar_lightning.rectifier.correction import RUNGS, SCALES, Rung, Scale
from mmnar_lightning.rectifier.ladder import Choice, choose_rungs
from mmnar_lightning.rectifier.patterns import PatternTree, Reduce
from mmnar_lightning.rectifier.ppi import PoweredMean, powered_mean
from mmnar_lightning.rectifier.rectifier import Rectifier

__all__ = [
    "RUNGS",
    "SCALES",
    "Choice",
    "Conformal",
    "Coverage",
    "PatternTree",
    "PoweredMean",
    "Rectifier",
    "Reduce",
    "Rung",
    "Scale",
    "choose_rungs",
    "patient_keys",
    "powered_mean",
]
