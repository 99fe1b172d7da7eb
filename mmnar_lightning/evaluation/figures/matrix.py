"""The dot matrix that says which modalities a pattern has: rows are patterns, columns modalities (Lex et al., UpSet,
IEEE TVCG 20, 2014, turned on its side so that it fits a phone)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmnar_lightning.evaluation.figures.canvas import FAINT, FOREGROUND, SMALL
from mmnar_lightning.evaluation.figures.lettering import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTERS = 18


def column_width(modalities: int) -> float:
    """Points from one column to the next."""
    return 15.0 if modalities <= 12 else 11.0


def heading_height(modalities: Sequence[str]) -> float:
    """Points that the names of the modalities take above the matrix, written upwards."""
    return 8 + SMALL * 0.6 * min(_LETTERS, max(map(len, modalities), default=0))


def write_heading(axes: Axes, columns: Sequence[float], bottom: float, modalities: Sequence[str]) -> None:
    """Write names upwards, on a page in points: one above each of `columns`, from `bottom` on."""
    for x, name in zip(columns, modalities, strict=True):
        axes.text(x, bottom, shorten(name, _LETTERS), rotation=90, ha="center", va="bottom", fontsize=SMALL)


def draw_matrix(
    axes: Axes,
    columns: Sequence[float],
    rows: Sequence[float],
    patterns: Sequence[Sequence[str]],
    modalities: Sequence[str],
) -> None:
    """Draw a dot where a pattern has a modality and a faint one where it doesn't, on a page in points."""
    full, faint = [], []
    for y, pattern in zip(rows, patterns, strict=True):
        there = [x for x, name in zip(columns, modalities, strict=True) if name in set(pattern)]
        full += [(x, y) for x in there]
        faint += [(x, y) for x in columns if x not in there]
        if there:
            axes.plot([there[0], there[-1]], [y, y], color=FOREGROUND, linewidth=0.9)
    for dots, alpha in ((faint, 1.6 * FAINT), (full, 1.0)):
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=FOREGROUND, markersize=6, markeredgewidth=0, alpha=alpha)


def in_order(patterns: Sequence[Sequence[str]], modalities: Sequence[str]) -> list[str]:
    """The modalities as given, then any that only a pattern names."""
    return list(dict.fromkeys([*modalities, *(name for pattern in patterns for name in pattern)]))
