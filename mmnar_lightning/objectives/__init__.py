"""What is minimised: pure, masked losses that are reduced last, by counts taken over all devices."""

from mmnar_lightning.objectives.availability import availability_cross_entropy, pattern_cross_entropy
from mmnar_lightning.objectives.contrast import info_nce
from mmnar_lightning.objectives.gathering import gather_rows
from mmnar_lightning.objectives.outcomes import binary_cross_entropy, focal, hierarchical
from mmnar_lightning.objectives.reconstruction import reconstruction_error
from mmnar_lightning.objectives.reduction import Counts, global_count, join_unused, masked_mean

__all__ = [
    "Counts",
    "availability_cross_entropy",
    "binary_cross_entropy",
    "focal",
    "gather_rows",
    "global_count",
    "hierarchical",
    "info_nce",
    "join_unused",
    "masked_mean",
    "pattern_cross_entropy",
    "reconstruction_error",
]
