"""What a person at a terminal sees, and a log file: one console, one place that decides what is said.

*Results* are what a command is for (a path, a table that was asked for) and go to stdout, also with ``--quiet``.
*News* is everything else (progress, closing tables, log lines, warnings); it goes to stderr, and ``--quiet`` leaves it
out. Where a stream is no terminal there are no colours and no bars, unless ``FORCE_COLOR`` asks for them; ``NO_COLOR``
takes the colours from a terminal, too. Nothing heavy is imported before something is shown.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

# columns that a table may take in a file, which has no width that lines would have to be broken for
WIDE = 200
_LIBRARIES = ("lightning.pytorch", "lightning.fabric", "mmnar_lightning")
# what Lightning and torch say of each other; nothing a user could do about
_NOISE = (
    ".*isinstance.treespec, LeafSpec.*",
    # a frozen encoder is in evaluation mode on purpose
    "Found .* module.s. in eval mode",
    # a run has one folder, which a continuation finds as it left it
    "Checkpoint directory .* exists and is not empty",
    # every process computes the metrics of an epoch from the rows of all
    ".*when logging on epoch level in distributed setting",
)
_quiet = False
# levels of loggers before they were quiet
_levels: dict[str, int] = {}


def set_quiet(quiet: bool) -> None:
    """Say whether this process keeps to errors and results; loggers made quiet speak again when it does not."""
    global _quiet
    _quiet = quiet
    if not quiet:
        for name, level in _levels.items():
            logging.getLogger(name).setLevel(level)
        _levels.clear()


def is_quiet() -> bool:
    """Whether news is left out."""
    return _quiet


def quiet_flag() -> list[str]:
    """What another process of the same command must be told: Lightning starts the others by repeating `sys.argv`."""
    return ["--quiet"] if _quiet else []


def console(*, stderr: bool = False) -> Console:
    """Make the console of a stream: as wide as its terminal, or as `WIDE` in a file."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=WIDE)


def show(news: RenderableType) -> None:
    """Show news on stderr, a table or a line; nothing with ``--quiet``."""
    if not _quiet:
        _print(news, stderr=True)


def result(shown: RenderableType) -> None:
    """Show what the command was asked for on stdout, a table or a line, whatever `is_quiet` says."""
    _print(shown, stderr=False)


def table(title: str, *columns: str, right: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """Make a table whose title and headings are taken as they stand, a bracket being no markup.

    Args:
        title: Stands above it.
        columns: Headings.
        right: Those of columns of numbers, which are never broken.
        whole: Those of further columns whose cells are never broken.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title, style="bold"), title_justify="left")
    for name in columns:
        kept = name in right or name in whole
        made.add_column(Text(name), justify="right" if name in right else "left", overflow="fold", no_wrap=kept)
    return made


def add_row(to: Table, *cells: str | Text) -> None:
    """Add a row; a cell that is a string is taken as it stands, a bracket being no markup."""
    from rich.text import Text

    to.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def marked(text: str, good: bool | None) -> Text:
    """Colour a cell: good, bad, or (None) worth a look. The words must tell it without the colour."""
    from rich.text import Text

    return Text(text, style={True: "green", False: "bold red", None: "yellow"}[good])


@contextmanager
def working(what: str) -> Iterator[None]:
    """Turn a spinner on stderr while something is done; nothing where no bar would be in place."""
    if not shows_bars():
        yield
        return
    with console(stderr=True).status(what):
        yield


def _print(shown: RenderableType, *, stderr: bool) -> None:
    if isinstance(shown, str):
        # as it is: a path is not broken in two where the window ends, and a bracket in it is no markup
        (sys.stderr if stderr else sys.stdout).write(f"{shown}\n")
    else:
        console(stderr=stderr).print(shown)


def shows_bars(*, stderr: bool = True) -> bool:
    """Whether a progress bar is in place: the stream is a terminal that can move its cursor, and nothing is quiet."""
    stream = sys.stderr if stderr else sys.stdout
    return not _quiet and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def begin() -> None:
    """Set up logging and warnings for a command: log lines to stderr, no noise, and with ``--quiet`` errors alone."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.basicConfig(format="%(message)s")
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _no_advertisement not in rank_zero.filters:
        rank_zero.addFilter(_no_advertisement)
    logging.getLogger("mmnar_lightning").setLevel(logging.INFO)
    if not shows_bars():
        # a download has a bar of its own
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if _quiet:
        warnings.simplefilter("ignore")
        for name in (*_LIBRARIES, ""):
            _levels.setdefault(name, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.ERROR)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
