"""eICU-CRD 2.0: the plugin that turns its raw tables into a record store, and simulates an extract of that layout."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmnar_eicu.cohort import CohortName, build_cohort
    from mmnar_eicu.datamodule import EICUDataModule
    from mmnar_eicu.extractor import EICUExtractor

__all__ = ["CohortName", "EICUDataModule", "EICUExtractor", "build_cohort"]

_HOME = {"CohortName": "cohort", "EICUDataModule": "datamodule", "EICUExtractor": "extractor", "build_cohort": "cohort"}


def __getattr__(name: str) -> Any:
    # imported when asked for: the simulator of this package needs no torch
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
