"""Metrics of binary outcomes: exact, masked by known labels, per availability pattern, on any number of devices."""

from mmnar_lightning.metrics.binary import (
    BINARY_METRICS,
    BinaryMetric,
    auprc,
    auroc,
    binary_metric,
    brier,
    calibration_intercept,
    calibration_slope,
    excess_ece,
    log_loss,
)
from mmnar_lightning.metrics.outcomes import OutcomeMetrics, frequent_patterns

__all__ = [
    "BINARY_METRICS",
    "BinaryMetric",
    "OutcomeMetrics",
    "auprc",
    "auroc",
    "binary_metric",
    "brier",
    "calibration_intercept",
    "calibration_slope",
    "excess_ece",
    "frequent_patterns",
    "log_loss",
]
