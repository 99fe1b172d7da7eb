"""Observed rate against predicted probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
def draw_calibration(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """Calibration curves with the intervals of their bins; a perfect one lies on the diagonal.

    Args:
        curves: By version, `predicted` and `observed` of each bin, and `low` and `high` of its interval if known;
            the fields of a `CalibrationCurve`.

    Returns:
        Both axes run from 0 to just above the largest value drawn, since rare outcomes use little of 0 to 1.
    """
    kept: list[tuple[str, list[NDArray[np.float64]]]] = []
    for version, curve in curves.items():
        predicted, observed = floats(curve.get("predicted", ())), floats(curve.get("observed", ()))
        blank = [None] * len(predicted)
        low, high = floats(curve.get("low") or blank), floats(curve.get("high") or blank)
        known = np.isfinite(predicted) & np.isfinite(observed)
        if known.any():
            kept.append((version, [part[known] for part in (predicted, observed, low, high)]))
    if not kept:
        return nothing("no bin of probabilities has ten people")
    most = max(float(np.nanmax(np.concatenate(parts))) for _, parts in kept)
    limit = min(1.02, most * 1.06 + 1e-3)
    below = (len(kept) + 2) // 2 * 15
    figure = sheet(340 + below)
    axes = axes_at(figure, 46, 8, 300, 290)
    axes.plot([0, limit], [0, limit], color=FOREGROUND, alpha=0.5, linewidth=1, linestyle=(0, (2, 2)), label="perfect")
    for position, (version, (predicted, observed, low, high)) in enumerate(kept):
        style = line(version, position)
        bounded = np.isfinite(low) & np.isfinite(high)
        axes.vlines(predicted[bounded], low[bounded], high[bounded], color=style["color"], linewidth=1, alpha=0.85)
        axes.plot(predicted, observed, label=shorten(version, 22), **style)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, limit)
    axes.grid(True)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed rate")
    legend_below(figure, axes, 36, 2)
    return figure
