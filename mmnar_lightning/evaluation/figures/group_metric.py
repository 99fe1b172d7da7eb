"""A metric, or the rate of the outcome, by group."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmnar_lightning.evaluation.figures.canvas import (
    BLUE,
    FOREGROUND,
    SMALL,
    WIDTH,
    axes_at,
    nothing,
    own_style,
    page,
    sheet,
)
from mmnar_lightning.evaluation.figures.lettering import room, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 11.5
_MARGIN = 12.0


@own_style()
def draw_group_metric(rows: Sequence[Mapping[str, Any]], metric: str, version: str) -> Figure:
    """Forest plot: an estimate and its interval a group, under the group's name, groups of a variable together.

    Args:
        rows: Each with `variable`, `group`, `task`, `samples`, and `rate` or `metrics`, as `GroupRow` has them.
            Groups without an estimate are left out, as is an interval with an unknown end.
        metric: A name in `metrics`, or `rate` for the share of samples with the outcome.
        version: Version of the probabilities: `raw`, `recalibrated` or `rectified`; without meaning for `rate`.
    """
    estimates = [(row, *_estimate(row, metric, version)) for row in rows]
    estimates = [found for found in estimates if found[1] is not None]
    if not estimates:
        return nothing(f"{metric} of no group is known")
    several = len({row["task"] for row, *_ in estimates}) > 1
    lines: list[tuple[float, str, Any]] = []
    height, heading = 4.0, None
    for row, estimate, low, high in estimates:
        above = f"{row['task']}, {row['variable']}" if several else str(row["variable"])
        if above != heading:
            heading = above
            lines.append((height + 2, wrap(above, room(WIDTH - 2 * _MARGIN, 12), 1), None))
            height += 17
        said = f"{estimate:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")
        label = wrap(_spaced(row["group"]), room(WIDTH - 2 * _MARGIN - 96, SMALL), 3)
        lines.append((height, label, (said, estimate, low, high)))
        height += _LINE * (1 + label.count("\n")) + 14
    figure = sheet(height + 42)
    paper = page(figure)
    axes = axes_at(figure, _MARGIN, 0, WIDTH - 2 * _MARGIN, height)
    points: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []
    for top, label, drawn in lines:
        bold = "bold" if drawn is None else "normal"
        paper.text(_MARGIN, top, label, va="top", fontsize=10 if drawn is None else SMALL, fontweight=bold)
        if drawn is None:
            continue
        said, estimate, low, high = drawn
        paper.text(WIDTH - _MARGIN, top, said, ha="right", va="top", fontsize=SMALL)
        y = top + _LINE * (1 + label.count("\n")) + 2
        points.append((estimate, y))
        if low is not None and high is not None:
            ends += [(low, y), (high, y)]
    if ends:
        ends_x, ends_y = zip(*ends, strict=True)
        axes.hlines(ends_y[::2], ends_x[::2], ends_x[1::2], color=BLUE, linewidth=1.4)
        axes.plot(ends_x, ends_y, "|", color=BLUE, markersize=6)
    axes.plot(*zip(*points, strict=True), "s", color=BLUE, markersize=5)
    _axis(axes, metric, version, height, [x for _, *found in estimates for x in found if x is not None])
    return figure


def _spaced(group: Any) -> str:
    """A pattern with room between its modalities, where its name can be broken."""
    return re.sub(r"(?<=\w)\+(?=\w)", " + ", str(group))


def _estimate(row: Mapping[str, Any], metric: str, version: str) -> tuple[float | None, float | None, float | None]:
    found = row.get("rate") if metric == "rate" else ((row.get("metrics") or {}).get(version) or {}).get(metric)
    estimate, low, high = (x if x is not None and math.isfinite(x) else None for x in found or (None, None, None))
    return estimate, low, high


def _axis(axes: Any, metric: str, version: str, height: float, drawn: Sequence[float]) -> None:
    low, high = min(drawn), max(drawn)
    margin = 0.06 * (high - low) or 0.05
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(height, 0)
    if metric == "auroc" and low - margin < 0.5 < high + margin:
        axes.axvline(0.5, color=FOREGROUND, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("share with the outcome" if metric == "rate" else f"{metric}, {version}")
