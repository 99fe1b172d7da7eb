"""Turns the TeX of the pages into MathML while the site is built: a reader's browser loads nothing from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what pymdownx.arithmatex leaves in generic mode: \( … \) inline, \[ … \] displayed
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a page."""

    def mathml(display: str) -> Any:
        return lambda found: convert(html.unescape(found.group(1)).strip(), display=display)

    return INLINE.sub(mathml("inline"), DISPLAY.sub(mathml("block"), content))
