"""How much a fusion takes from each modality, by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mmnar_lightning.evaluation.figures.canvas import BLUE, SMALL, WIDTH, nothing, own_style, page, sheet
from mmnar_lightning.evaluation.figures.lettering import room, wrap
from mmnar_lightning.evaluation.figures.matrix import heading_height, write_heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 16.0
# The darkest cell is half the colour, half the page: figures are read on it, light or dark.
_DARKEST = 0.55


@own_style()
def draw_gates(values: ArrayLike, patterns: Sequence[Sequence[str]], modalities: Sequence[str], title: str) -> Figure:
    """Heat map of patterns by modalities, each cell with its number; what a pattern doesn't observe stays blank.

    Args:
        values: Float [patterns, modalities], means of a gate or an attention weight; NaN is blank.
        patterns: What each row observes, in the rows' order.
        modalities: Names of the columns.
        title: What the numbers are.

    Raises:
        ValueError: `values` isn't [patterns, modalities].
    """
    table = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return nothing(f"{title}: no pattern")
    if table.shape != (len(patterns), len(modalities)):
        raise ValueError(f"values are {table.shape}, patterns and modalities ({len(patterns)}, {len(modalities)})")
    seen = np.array([[name in set(pattern) for name in modalities] for pattern in patterns])
    table = np.where(seen & np.isfinite(table), table, np.nan)
    most = float(np.nanmax(np.abs(table))) if np.isfinite(table).any() else 1.0
    step = max(25.0, min(56.0, (WIDTH - 44) / len(modalities)))
    width = max(WIDTH, 44 + step * len(modalities))
    lettered = wrap(title, room(width - 16, 10), 3)
    top = 10 + 13 * (1 + lettered.count("\n"))
    head = top + heading_height(modalities) + 6
    figure = sheet(head + _ROW * len(patterns) + 8, width)
    axes = page(figure)
    axes.text(8, 8, lettered, ha="left", va="top")
    columns = [36 + step * (i + 0.5) for i in range(len(modalities))]
    write_heading(axes, columns, head - 4, modalities)
    axes.text(30, head - 4, "row", ha="right", va="bottom", fontsize=SMALL, alpha=0.7)
    cells: list[tuple[float, float, float]] = []
    for i, numbers in enumerate(table):
        y = head + _ROW * (i + 0.5)
        axes.text(30, y, str(i + 1), ha="right", va="center", fontsize=SMALL, alpha=0.7)
        for x, number in zip(columns, numbers, strict=True):
            if np.isfinite(number):
                cells.append((x, y - (_ROW - 1) / 2, _DARKEST * abs(number) / (most or 1.0)))
                axes.text(x, y, f"{number:.2f}", ha="center", va="center", fontsize=SMALL)
            else:
                axes.text(x, y, "·", ha="center", va="center", fontsize=SMALL, alpha=0.5)
    if cells:
        middles, lows, alphas = zip(*cells, strict=True)
        axes.bar(middles, _ROW - 1, step - 1, lows, color=[(BLUE, alpha) for alpha in alphas], linewidth=0)
    return figure
