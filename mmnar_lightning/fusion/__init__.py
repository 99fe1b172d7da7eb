"""From tokens of what was observed to one vector a patient: the paper's method and what it is compared with."""

from mmnar_lightning.fusion.attention import AttentionBlock
from mmnar_lightning.fusion.base import Fused, Fusion, drop_modalities, fusion_class, fusions, tokens_per_modality
from mmnar_lightning.fusion.concat import ConcatFusion
from mmnar_lightning.fusion.delta_only import DeltaOnlyFusion
from mmnar_lightning.fusion.evidence import EvidenceFusion
from mmnar_lightning.fusion.mmnar import MMNARFusion
from mmnar_lightning.fusion.reconstruction import LeaveOneOutReconstruction

__all__ = [
    "AttentionBlock",
    "ConcatFusion",
    "DeltaOnlyFusion",
    "EvidenceFusion",
    "Fused",
    "Fusion",
    "LeaveOneOutReconstruction",
    "MMNARFusion",
    "drop_modalities",
    "fusion_class",
    "fusions",
    "tokens_per_modality",
]
