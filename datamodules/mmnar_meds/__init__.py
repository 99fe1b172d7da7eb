"""Datasets in the Medical Event Data Standard (MEDS), with tasks from its label files."""

from mmnar_meds.datamodule import MEDSDataModule
from mmnar_meds.extractor import MEDSExtractor
from mmnar_meds.selection import DEFAULT, Labels, Selection

__all__ = ["DEFAULT", "Labels", "MEDSDataModule", "MEDSExtractor", "Selection"]
