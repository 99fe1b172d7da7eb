"""What goes with a run: checkpoints, predictions, TensorBoard, weights of its training samples."""

from mmnar_lightning.callbacks.assignment_weights import AssignmentWeights
from mmnar_lightning.callbacks.availability import AvailabilityOverview, overview
from mmnar_lightning.callbacks.checkpointing import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ResumeCheckpoint,
    SelectionStopping,
)
from mmnar_lightning.callbacks.figures import OutcomeFigures
from mmnar_lightning.callbacks.finishing import finish
from mmnar_lightning.callbacks.hparams import RunComparison
from mmnar_lightning.callbacks.layout import ScalarLayout
from mmnar_lightning.callbacks.predictions import PredictionWriter
from mmnar_lightning.callbacks.sample_weights import SampleWeights
from mmnar_lightning.callbacks.summary import MetricSummary

__all__ = [
    "AssignmentWeights",
    "AtomicCheckpointIO",
    "AvailabilityOverview",
    "BestCheckpoint",
    "MetricSummary",
    "OutcomeFigures",
    "PredictionWriter",
    "ResumeCheckpoint",
    "RunComparison",
    "SampleWeights",
    "ScalarLayout",
    "SelectionStopping",
    "finish",
    "overview",
]
