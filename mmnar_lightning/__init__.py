"""Multimodal clinical prediction when modalities are missing not at random, on PyTorch Lightning."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmnar_lightning.module import MultimodalOutcomeModule
    from mmnar_lightning.notebook import datamodule, fit, report, simulate
    from mmnar_lightning.predictor import load_predictor

__version__ = "0.1.0"

# imported when first asked for: `mmnar --help` has no use for torch
_PLACES = {
    "MultimodalOutcomeModule": "module",
    "datamodule": "notebook",
    "fit": "notebook",
    "load_predictor": "predictor",
    "report": "notebook",
    "simulate": "notebook",
}

__all__ = ["MultimodalOutcomeModule", "datamodule", "fit", "load_predictor", "report", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # a library of a library misses a widget for its progress bars, of which none is shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
