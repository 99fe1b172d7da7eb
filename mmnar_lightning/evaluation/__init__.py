"""What is said about a method after training: intervals, comparisons, benchmarks."""

from mmnar_lightning.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_interval

__all__ = ["Interval", "bootstrap_difference", "bootstrap_interval"]
