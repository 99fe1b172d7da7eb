"""Net benefit against the threshold at which one would act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


@own_style()
def draw_decision(decision: Mapping[str, Any]) -> Figure:
    """Decision curves beside treating all and treating none (Vickers & Elkin, Med Decis Making 26, 2006).

    Args:
        decision: `threshold` and `treat_all`, each [n], and `net_benefit`, by version [n]: the fields of a
            `DecisionCurve` and its likes.

    Returns:
        The vertical axis ends a little below zero: how much worse than doing nothing is not the question.
    """
    threshold = floats(decision.get("threshold", ()))
    curves = {version: floats(values) for version, values in (decision.get("net_benefit") or {}).items()}
    curves = {version: values for version, values in curves.items() if np.isfinite(values).any()}
    if not len(threshold) or not curves:
        return nothing("no decision curve")
    treat_all = floats(decision.get("treat_all", ()))
    finite = np.concatenate([values[np.isfinite(values)] for values in [*curves.values(), treat_all]])
    top = max(float(finite.max()), 1e-3)
    below = (len(curves) + 3) // 2 * 15
    figure = sheet(260 + below)
    axes = axes_at(figure, 56, 8, 284, 210)
    axes.axhline(0, color=FOREGROUND, linewidth=1, label="treat none")
    if len(treat_all) == len(threshold):
        axes.plot(threshold, treat_all, color=FOREGROUND, linewidth=1, linestyle=(0, (2, 2)), label="treat all")
    for position, (version, values) in enumerate(curves.items()):
        every = max(1, len(threshold) // 8)
        # markers at different places, so that curves that coincide are both seen
        axes.plot(
            threshold,
            values,
            label=shorten(version, 22),
            markevery=(position % every, every),
            **line(version, position),
        )
    axes.set_xlim(float(np.nanmin(threshold)), float(np.nanmax(threshold)) or 1)
    axes.set_ylim(-0.15 * top, 1.08 * top)
    axes.grid(True)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("threshold probability")
    axes.set_ylabel("net benefit")
    legend_below(figure, axes, 36, 2)
    return figure
