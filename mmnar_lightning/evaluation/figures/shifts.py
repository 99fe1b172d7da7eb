"""What the rectifier adds to predictions of each pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmnar_lightning.evaluation.figures.canvas import (
    FAINT,
    FOREGROUND,
    WIDTH,
    axes_at,
    legend_below,
    line,
    nothing,
    own_style,
    page,
    sheet,
)
from mmnar_lightning.evaluation.figures.lettering import shorten
from mmnar_lightning.evaluation.figures.matrix import (
    column_width,
    draw_matrix,
    heading_height,
    in_order,
    write_heading,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@own_style()
def draw_shifts(shifts: Sequence[Mapping[str, Any]], modalities: Sequence[str] = (), unit: str = "log-odds") -> Figure:
    """Shift of each pattern, one marker a task, beside the dots that say which pattern it is.

    Args:
        shifts: Each with `task`, `modalities` of the pattern, and `shift`; those without a shift are left out.
        modalities: Names of all modalities, in the order of the columns; any that a pattern adds come after them.
        unit: Scale of the shifts.
    """
    shifts = [shift for shift in shifts if shift["shift"] is not None and math.isfinite(shift["shift"])]
    if not shifts:
        return nothing("predictions of no pattern are shifted")
    patterns = list(dict.fromkeys(tuple(shift["modalities"]) for shift in shifts))
    tasks = list(dict.fromkeys(str(shift["task"]) for shift in shifts))
    names = in_order(patterns, modalities)
    step, head = column_width(len(names)), heading_height(names) + 6
    row = max(15.0, 6.0 * len(tasks) + 4)
    left, body = 18 + step * len(names), row * len(patterns)
    width = max(WIDTH, left + 160)
    below = 40 + 15 * len(tasks)
    figure = sheet(head + body + below, width)
    paper = page(figure)
    columns = [8 + step * (i + 0.5) for i in range(len(names))]
    rows = [head + row * (i + 0.5) for i in range(len(patterns))]
    write_heading(paper, columns, head - 4, names)
    draw_matrix(paper, columns, rows, patterns, names)
    axes = axes_at(figure, left, head, width - left - 14, body)
    axes.axvline(0, color=FOREGROUND, linewidth=1)
    for position, task in enumerate(tasks):
        mine = [shift for shift in shifts if str(shift["task"]) == task]
        dodge = 6.0 * (position - (len(tasks) - 1) / 2)
        y = [row * (patterns.index(tuple(shift["modalities"])) + 0.5) + dodge for shift in mine]
        x = [float(shift["shift"]) for shift in mine]
        style = {**line(task, position), "linestyle": "none", "markersize": 4.5}
        axes.hlines(y, 0, x, color=style["color"], linewidth=1)
        axes.plot(x, y, label=shorten(task, 48), **style)
    for i in range(1, len(patterns)):
        axes.axhline(row * i, color=FOREGROUND, alpha=FAINT, linewidth=0.5)
    largest = max(abs(float(shift["shift"])) for shift in shifts) or 1.0
    axes.set_xlim(-1.12 * largest, 1.12 * largest)
    axes.set_ylim(body, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"shift ({unit})")
    legend_below(figure, axes, 36, 1)
    return figure
