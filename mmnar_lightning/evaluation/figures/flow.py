"""From what was read to the samples: who was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmnar_lightning.evaluation.figures.canvas import FOREGROUND, nothing, own_style, page, sheet
from mmnar_lightning.evaluation.figures.lettering import room, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE, _LINE, _PAD, _GAP = 9.0, 12.0, 5.0, 14.0
_LEFT, _RIGHT = (4.0, 136.0), (152.0, 356.0)
# Where reasons begin; counts end just before, room for six digits.
_REASON = 204.0


@dataclass
class _Stage:
    text: str
    rows: str
    excluded: list[tuple[str, str]] = field(default_factory=list)

    @property
    def height(self) -> float:
        return _PAD * 2 + _LINE * (self.text.count("\n") + (2 if self.rows else 1))

    @property
    def side_height(self) -> float:
        return _PAD * 2 + sum(_LINE * (1 + reason.count("\n")) + 2 for _, reason in self.excluded)


@own_style()
def draw_flow(flow: Sequence[Mapping[str, Any]]) -> Figure:
    """Diagram of exclusions: boxes downwards for what is left, boxes beside them for what was taken out.

    Args:
        flow: Counts in order, each with `table`, `what` and `rows`, null for fewer than ten. Where `what` begins with
            `excluded` the count goes to the side of the box above.
    """
    stages = _stages(flow)
    if not stages:
        return nothing("no count of what was read and left out")
    tops, y = [], 4.0
    for stage in stages:
        tops.append(y)
        y += stage.height + (stage.side_height + _GAP * 2 if stage.excluded else _GAP)
    figure = sheet(y - _GAP + 6)
    axes = page(figure)
    middle = (_LEFT[0] + _LEFT[1]) / 2
    for i, (stage, top) in enumerate(zip(stages, tops, strict=True)):
        _box(axes, _LEFT, top, stage.height)
        _write(axes, _LEFT[0] + _PAD, top + _PAD, stage.text)
        _write(axes, _LEFT[0] + _PAD, top + stage.height - _PAD - _LINE, stage.rows, fontweight="bold")
        bottom = top + stage.height
        last = i + 1 == len(stages)
        if not last:
            _arrow(axes, (middle, bottom), (middle, tops[i + 1]))
        if stage.excluded:
            side = bottom + _GAP / 2
            across = side + stage.side_height / 2
            if last:
                axes.plot([middle, middle], [bottom, across], color=FOREGROUND, linewidth=1)
            _arrow(axes, (middle, across), (_RIGHT[0], across))
            _box(axes, _RIGHT, side, stage.side_height)
            y = side + _PAD + 1
            for rows, reason in stage.excluded:
                _write(axes, _REASON - 5, y, rows, ha="right", fontweight="bold")
                _write(axes, _REASON, y, reason)
                y += _LINE * (1 + reason.count("\n")) + 2
    return figure


def _stages(flow: Sequence[Mapping[str, Any]]) -> list[_Stage]:
    stages: list[_Stage] = []
    table = None
    inside = room(_LEFT[1] - _LEFT[0] - 2 * _PAD, _SIZE)
    for count in flow:
        said = "< 10" if count["rows"] is None else f"{count['rows']:,}"
        what = str(count["what"])
        if what.startswith("excluded"):
            if count["table"] != table:
                stages.append(_Stage(wrap(str(count["table"]), inside, 2), ""))
            reason = what.removeprefix("excluded").lstrip(": ") or "excluded"
            stages[-1].excluded.append((said, wrap(reason, room(_RIGHT[1] - _REASON - _PAD, _SIZE), 4)))
        else:
            stages.append(_Stage(wrap(f"{count['table']}: {what}", inside, 4), said))
        table = count["table"]
    return stages


def _box(axes: Axes, sides: tuple[float, float], top: float, height: float) -> None:
    left, right = sides
    corners = [(left, top), (right, top), (right, top + height), (left, top + height), (left, top)]
    axes.plot(*zip(*corners, strict=True), color=FOREGROUND, linewidth=1)


def _write(axes: Axes, x: float, y: float, text: str, **kind: Any) -> None:
    # line by line: line spacing is matplotlib's, and a browser's letters are not
    for i, part in enumerate(text.split("\n")):
        axes.text(x, y + _LINE * (i + 0.8), part, va="baseline", fontsize=_SIZE, **kind)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    props = {"arrowstyle": "-|>", "color": FOREGROUND, "linewidth": 1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", xy=end, xytext=start, arrowprops=props)
