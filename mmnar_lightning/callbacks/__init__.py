"""What watches a run: checkpoints, predictions, TensorBoard."""

from mmnar_lightning.callbacks.availability import AvailabilityOverview, overview
from mmnar_lightning.callbacks.checkpointing import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ResumeCheckpoint,
    SelectionStopping,
)
from mmnar_lightning.callbacks.predictions import PredictionWriter
from mmnar_lightning.callbacks.summary import MetricSummary

__all__ = [
    "AtomicCheckpointIO",
    "AvailabilityOverview",
    "BestCheckpoint",
    "MetricSummary",
    "PredictionWriter",
    "ResumeCheckpoint",
    "SelectionStopping",
    "overview",
]
