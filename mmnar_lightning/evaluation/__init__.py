"""What is said about a method after training: intervals, comparisons, benchmarks."""

from mmnar_lightning.evaluation.assessment import Assessment, assess
from mmnar_lightning.evaluation.assignment import Assignment, assignment_weights, fit_assignment
from mmnar_lightning.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from mmnar_lightning.evaluation.calibration_curve import CalibrationCurve, calibration_curve
from mmnar_lightning.evaluation.decision_curve import DecisionCurve, decision_curve
from mmnar_lightning.evaluation.groups import GroupRow, by_group
from mmnar_lightning.evaluation.modality_value import ModalityValue, modality_value
from mmnar_lightning.evaluation.overlap import OverlapError, OverlapThresholds, overlap_report
from mmnar_lightning.evaluation.policy_shift import AsIf, Behaviour, shift_weights, shifted_metrics
from mmnar_lightning.evaluation.sensitivity import gamma_bounds, tipping_point
from mmnar_lightning.evaluation.subgroups import subgroups

__all__ = [
    "AsIf",
    "Assessment",
    "Assignment",
    "Behaviour",
    "CalibrationCurve",
    "DecisionCurve",
    "GroupRow",
    "Interval",
    "ModalityValue",
    "OverlapError",
    "OverlapThresholds",
    "assess",
    "assignment_weights",
    "bootstrap_difference",
    "bootstrap_interval",
    "by_group",
    "calibration_curve",
    "decision_curve",
    "fit_assignment",
    "gamma_bounds",
    "modality_value",
    "overlap_report",
    "shift_weights",
    "shifted_metrics",
    "subgroups",
    "tipping_point",
]
