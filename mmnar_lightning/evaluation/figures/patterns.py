"""Which modalities are observed together, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmnar_lightning.evaluation.figures.canvas import BLUE, SMALL, WIDTH, nothing, own_style, page, sheet
from mmnar_lightning.evaluation.figures.matrix import (
    column_width,
    draw_matrix,
    heading_height,
    in_order,
    write_heading,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 15.0


@own_style()
def draw_patterns(patterns: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> Figure:
    """Patterns as rows of dots, each with a bar as long as it has samples.

    Args:
        patterns: Each with `modalities`, names of what is observed, and `samples`, null for fewer than ten.
        modalities: Names of all modalities, in the order of the columns.
    """
    if not patterns:
        return nothing("no pattern has ten people")
    names = in_order([pattern["modalities"] for pattern in patterns], modalities)
    step, head = column_width(len(names)), heading_height(names) + 6
    left = 8 + step * len(names)
    width = max(WIDTH, left + 150)
    figure = sheet(head + _ROW * len(patterns) + 8, width)
    axes = page(figure)
    columns = [8 + step * (i + 0.5) for i in range(len(names))]
    rows = [head + _ROW * (i + 0.5) for i in range(len(patterns))]
    write_heading(axes, columns, head - 4, names)
    draw_matrix(axes, columns, rows, [pattern["modalities"] for pattern in patterns], names)
    most = max((pattern["samples"] or 0 for pattern in patterns), default=0) or 1
    longest = width - left - 12 - SMALL * 0.62 * len(f"{most:,}") - 8
    axes.text(left + 10, head - 4, "samples", ha="left", va="bottom", fontsize=SMALL)
    for y, pattern in zip(rows, patterns, strict=True):
        samples = pattern["samples"]
        length = longest * (samples or 0) / most
        axes.barh([y], [length], left=left + 10, height=_ROW * 0.62, color=BLUE)
        said = "< 10" if samples is None else f"{samples:,}"
        axes.text(left + 14 + length, y, said, ha="left", va="center", fontsize=SMALL)
    return figure
