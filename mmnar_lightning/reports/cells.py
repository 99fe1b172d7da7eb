"""How numbers and names are written, and what a table is."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mmnar_lightning.reports.reading import Estimate
from mmnar_lightning.reports.suppression import hidden

NONE = "–"
FEW = "< 10"


@dataclass(frozen=True)
class Table:
    """A table to show.

    Args:
        caption: What it holds.
        header: Names of the columns.
        rows: Cells, as text.
        words: Leading columns that hold words; the others hold numbers. The first names the row.
        note: What has to be read with it.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, – where there is none."""
    if value is None:
        return NONE
    # no -0.000
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def count(value: int | None) -> str:
    """Write a count; what came from 1 to 9 is not told."""
    return FEW if hidden(value) else f"{value:,}"


def share(value: float | None) -> str:
    """Write a share in per cent; None came from too few."""
    return FEW if value is None else f"{100 * value:.1f}\u00a0%"


def interval(found: Estimate | Sequence[float | None], digits: int = 3) -> str:
    """Write a number with its interval, where it has one."""
    estimate, low, high = found
    if estimate is None or low is None or high is None:
        return number(estimate, digits)
    return f"{number(estimate, digits)} [{number(low, digits)}, {number(high, digits)}]"


def rate(found: Estimate | Sequence[float | None]) -> str:
    """Write a share with its interval, in per cent."""
    estimate, low, high = found
    if estimate is None or low is None or high is None:
        return FEW if estimate is None else share(estimate)
    return f"{100 * estimate:.1f}\u00a0% [{100 * low:.1f}, {100 * high:.1f}]"


def pattern(observed: Collection[str], modalities: Sequence[str]) -> str:
    """Name a pattern shortly: by what it lacks where that is less."""
    absent = [m for m in modalities if m not in observed]
    if not absent:
        return "all"
    if not observed:
        return "none"
    if len(absent) < len(observed):
        return f"all but {', '.join(absent)}"
    return ", ".join(m for m in modalities if m in observed)


def written_pattern(group: str, modalities: Sequence[str]) -> str:
    """Name a pattern that stands as ``labs+notes``; other names stay as they are."""
    parts = [] if group == "none" else group.split("+")
    if set(parts) <= set(modalities):
        return pattern(parts, modalities)
    if group == "other":
        return "other patterns"
    return re.sub(r"^other_of_(\d+)$", r"other patterns of \1", group)
