"""The sheet every figure is drawn on: size, type, colours that colour-blind people can tell apart, and no global state.

Lengths are points (1/72 inch). A sheet is 360 wide, so that 10 pt letters are read on a phone as they are.
Colours: Okabe & Ito, Color Universal Design, 2008, without yellow and black, which one of the two backgrounds hides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360.0
SMALL = 8.5
# No other colour is this one: `svg` turns it into currentColor, so that text and axes follow the page, light or dark.
FOREGROUND = "#1a1b1c"
FAINT = 0.15
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"

# Each line has its own colour, dash and marker: any one of them is enough.
_LINES: tuple[tuple[str, str, str], ...] = (
    (BLUE, "-", "o"),
    (VERMILLION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (ORANGE, "-", "v"),
    (SKY, "--", "P"),
    (FOREGROUND, "-.", "X"),
)
# A version looks the same in every figure of a report, also where one is absent.
_VERSIONS = {"raw": 2, "recalibrated": 1, "rectified": 0}

_SETTINGS: dict[str, Any] = {
    "font.size": 10.0,
    "font.family": ["sans-serif"],
    "text.color": FOREGROUND,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.edgecolor": FOREGROUND,
    "axes.labelcolor": FOREGROUND,
    "axes.labelsize": 10.0,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "grid.color": FOREGROUND,
    "grid.alpha": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "mmnar-lightning",
}


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with these settings whatever the user's matplotlibrc says; give the user's back afterwards."""
    import matplotlib

    settings: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
    }
    settings.update(_SETTINGS)
    with warnings.catch_warnings(), matplotlib.rc_context():
        # A glyph that the font lacks: in an SVG the browser finds it, in pixels a box says so.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        matplotlib.rcParams.update(settings)
        yield


def sheet(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of that size in points, without pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=144)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in a box given in points from the sheet's upper left corner."""
    whole_width, whole_height = figure.get_size_inches() * 72
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def page(figure: Figure) -> Axes:
    """Axes over the whole sheet without frame; coordinates are points from the upper left corner."""
    width, height = (float(x) for x in figure.get_size_inches() * 72)
    axes = axes_at(figure, 0, 0, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return axes


def nothing(what: str) -> Figure:
    """A sheet that says that there is nothing to show, and of what."""
    figure = sheet(48)
    page(figure).text(WIDTH / 2, 24, f"nothing to show: {what}", ha="center", va="center", alpha=0.7)
    return figure


def line(name: str, position: int) -> dict[str, Any]:
    """Colour, dash and marker of a line.

    Args:
        name: What it is of; the versions of a probability always look the same.
        position: Its place among the lines of this figure, for any other name.
    """
    colour, dash, marker = _LINES[_VERSIONS.get(name, position) % len(_LINES)]
    # the first is widest and lies lowest, so that curves which coincide are all seen
    widths = {"markersize": max(4.0, 6.5 - 1.2 * position), "linewidth": max(1.3, 2.6 - 0.6 * position)}
    return {"color": colour, "linestyle": dash, "marker": marker, **widths}


def legend_below(figure: Figure, axes: Axes, offset: float, columns: int) -> None:
    """A legend under the axes, `offset` points below their lower edge, from the left of the sheet."""
    box = axes.get_position()
    width, height = figure.get_size_inches() * 72
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(10 / width, box.y0 - offset / height),
        bbox_transform=figure.transFigure,
        ncols=columns,
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.2,
        handlelength=2.6,
    )


def floats(values: Iterable[float | None]) -> NDArray[np.float64]:
    """Numbers as float64 [n]; None, which stands for a value withheld or unknown, as NaN."""
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def pixels(figure: Figure, dpi: float = 144) -> NDArray[np.uint8]:
    """The figure on white as uint8 [height, width, 3], as `SummaryWriter.add_image(…, dataformats="HWC")` takes it.

    Args:
        figure: Any of this room's figures.
        dpi: Dots an inch; a sheet is five inches wide.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with own_style():
        figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()
