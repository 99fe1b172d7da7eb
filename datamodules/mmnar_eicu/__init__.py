"""eICU-CRD 2.0: the plugin that turns its raw tables into a record store."""

from mmnar_eicu.cohort import CohortName, build_cohort
from mmnar_eicu.datamodule import EICUDataModule
from mmnar_eicu.extractor import EICUExtractor

__all__ = ["CohortName", "EICUDataModule", "EICUExtractor", "build_cohort"]
