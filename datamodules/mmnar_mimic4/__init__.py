"""MIMIC-IV with notes and chest films: turns its raw files into record stores, and simulates such files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmnar_mimic4.cohort import CohortName, build_cohort
    from mmnar_mimic4.datamodule import MIMIC4DataModule
    from mmnar_mimic4.extractor import MIMIC4Extractor

__all__ = ["CohortName", "MIMIC4DataModule", "MIMIC4Extractor", "build_cohort"]

_HOME = {
    "CohortName": "cohort",
    "MIMIC4DataModule": "datamodule",
    "MIMIC4Extractor": "extractor",
    "build_cohort": "cohort",
}


def __getattr__(name: str) -> Any:
    # imported when asked for: the simulator of this package needs no torch
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
