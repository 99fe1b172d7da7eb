"""Precision against recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmnar_lightning.evaluation.figures.canvas import (
    FOREGROUND,
    axes_at,
    floats,
    legend_below,
    line,
    nothing,
    own_style,
    sheet,
)
from mmnar_lightning.evaluation.figures.lettering import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 200


@own_style()
def draw_precision_recall(
    curves: Mapping[str, Mapping[str, Sequence[float | None]]], prevalence: float | None = None
) -> Figure:
    """Precision-recall curves, as steps.

    Args:
        curves: By version or task, `precision` and `recall`, each [n], along the threshold in either direction.
        prevalence: Share of samples with the outcome, the precision of a score that tells nothing; drawn as a line.
    """
    kept = []
    for name, curve in curves.items():
        recall, precision = floats(curve.get("recall", ())), floats(curve.get("precision", ()))
        known = np.isfinite(recall) & np.isfinite(precision)
        recall, precision = recall[known], precision[known]
        if len(recall):
            if recall[0] > recall[-1]:
                recall, precision = recall[::-1], precision[::-1]
            # a curve of every sample would make a file of megabytes and look the same
            drawn = np.unique(np.linspace(0, len(recall) - 1, min(_POINTS, len(recall))).round().astype(int))
            kept.append((name, recall[drawn], precision[drawn]))
    if not kept:
        return nothing("no precision-recall curve")
    below = (len(kept) + 2) // 2 * 15
    figure = sheet(280 + below)
    axes = axes_at(figure, 46, 8, 300, 230)
    if prevalence is not None:
        axes.axhline(prevalence, color=FOREGROUND, linewidth=1, linestyle=(0, (2, 2)), label="prevalence")
    for position, (name, recall, precision) in enumerate(kept):
        style = {**line(name, position), "markevery": max(1, len(recall) // 8), "drawstyle": "steps-pre"}
        axes.plot(recall, precision, label=shorten(name, 22), **style)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid(True)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    legend_below(figure, axes, 36, 2)
    return figure
