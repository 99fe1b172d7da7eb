"""A figure as an inline SVG: text stays text, foreground follows the page, same figure gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mmnar_lightning.evaluation.figures.canvas import FOREGROUND, own_style
from mmnar_lightning.evaluation.figures.lettering import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points are CSS pixels in the viewBox; on a wide page letters of 10 become 14 px, and no larger.
_LARGEST = 1.4
# Hundredths of a point are finer than any screen.
_NUMBERS = frozenset({"d", "x", "y", "transform", "width", "height"})
_FONT = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def svg(figure: Figure, title: str, description: str) -> str:
    """The figure as one `<svg role="img">` element for a page of HTML.

    It has a viewBox and no fixed size; its foreground is `currentColor`; all text is escaped; ids begin with a hash
    of title and content, so that several figures can stand in one page.

    Args:
        figure: Any of this room's figures.
        title: Its short text alternative, `<title>`.
        description: What can be seen in it, and names that the picture shortens, `<desc>`.

    Returns:
        XML without header, date or script.
    """
    written = io.StringIO()
    with own_style():
        figure.savefig(written, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    drawing = ElementTree.fromstring(written.getvalue())
    # clip paths lie in <defs>; a <style> there would hold for the whole page, and its settings are the root's
    body = [child for child in drawing if _local(child.tag) in ("g", "defs") and not child.findall("{*}style")]
    title, description = printable(title), printable(description)
    content = title + description + "".join(ElementTree.tostring(part, encoding="unicode") for part in body)
    prefix = f"f{hashlib.sha256(content.encode()).hexdigest()[:10]}-"
    _, _, width, height = (float(x) for x in drawing.attrib["viewBox"].split())
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "role": "img",
            "viewBox": f"0 0 {width:g} {height:g}",
            "aria-labelledby": f"{prefix}title {prefix}desc",
            "style": f"width: 100%; max-width: {width * _LARGEST:.0f}px; height: auto; fill: currentColor; "
            f"font-family: {_FONT}; stroke-linejoin: round; stroke-linecap: butt",
        },
    )
    ElementTree.SubElement(root, "title", id=f"{prefix}title").text = title
    ElementTree.SubElement(root, "desc", id=f"{prefix}desc").text = description
    used = set(re.findall(r"#([\w-]+)", content))
    for part in body:
        _tidy(part, prefix, used)
        root.append(part)
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(part: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Plain names, own ids, the page's colour and font; in place."""
    for element in part.iter():
        element.tag, element.tail = _local(element.tag), None
        element.text = element.text if element.tag == "text" else None
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id" and value not in used:
                continue
            if name == "id":
                value = prefix + value
            elif name == "href":
                value = f"#{prefix}{value[1:]}"
            elif name == "clip-path":
                value = value.replace("#", f"#{prefix}")
            elif name == "style":
                # matplotlib 3.9 writes the font shorthand, 3.11 its parts; the family is the root's
                value = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;]+", _font, value)
                value = re.sub(r"font-family: [^;]+; ", "", value).replace(FOREGROUND, "currentColor")
            elif name in _NUMBERS:
                value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
            element.set(name, value.strip())


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1].strip()}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}"


def _local(name: str) -> str:
    return name.rpartition("}")[2]
