"""Pictures of what was found: each takes plain data and gives a matplotlib figure; `svg` and `pixels` write it."""

from mmnar_lightning.evaluation.figures.calibration import draw_calibration
from mmnar_lightning.evaluation.figures.canvas import pixels
from mmnar_lightning.evaluation.figures.decision import draw_decision
from mmnar_lightning.evaluation.figures.flow import draw_flow
from mmnar_lightning.evaluation.figures.gates import draw_gates
from mmnar_lightning.evaluation.figures.group_metric import draw_group_metric
from mmnar_lightning.evaluation.figures.patterns import draw_patterns
from mmnar_lightning.evaluation.figures.precision_recall import draw_precision_recall
from mmnar_lightning.evaluation.figures.shifts import draw_shifts
from mmnar_lightning.evaluation.figures.vector import svg

__all__ = [
    "draw_calibration",
    "draw_decision",
    "draw_flow",
    "draw_gates",
    "draw_group_metric",
    "draw_patterns",
    "draw_precision_recall",
    "draw_shifts",
    "pixels",
    "svg",
]
