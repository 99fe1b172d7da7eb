"""The post-hoc correction of predictions: global bias and temperature, then shrunk pattern intercepts. Pure maths."""

from mmnar_lightning.rectifier.patterns import PatternTree, Reduce
from mmnar_lightning.rectifier.rectifier import RUNGS, Rectifier

__all__ = ["RUNGS", "PatternTree", "Rectifier", "Reduce"]
