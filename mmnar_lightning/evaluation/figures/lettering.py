"""Names as they can be written in a picture: printable, and no longer than there is room."""

from __future__ import annotations

import textwrap

# Letters are about this wide, in units of their size: the mean of DejaVu Sans, wider than what browsers use.
_LETTER = 0.58


def printable(name: str) -> str:
    """The name on one line; what XML can't hold or nobody can see becomes the replacement character."""
    return "".join(x if x.isprintable() else "\N{REPLACEMENT CHARACTER}" for x in " ".join(str(name).split()))


def room(width: float, size: float) -> int:
    """How many letters of a size fit into a width, both in points; at least four."""
    return max(4, int(width / (size * _LETTER)))


def shorten(name: str, letters: int) -> str:
    """A name of at most so many letters; the middle is left out, since names of one kind tend to begin alike."""
    name = printable(name)
    if len(name) <= letters:
        return name
    tail = (letters - 1) // 3
    return f"{name[: letters - 1 - tail].rstrip()}…{name[-tail:].lstrip() if tail else ''}"


def wrap(text: str, letters: int, lines: int) -> str:
    """The text over at most so many lines; what doesn't fit is left out of the middle of the last line."""
    broken = textwrap.wrap(printable(text), letters, break_on_hyphens=False) or [""]
    if len(broken) > lines:
        broken = [*broken[: lines - 1], shorten(" ".join(broken[lines - 1 :]), letters)]
    return "\n".join(broken)
