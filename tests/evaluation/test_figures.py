"""Figures: they draw whatever they are given, and the SVG is well-formed, safe, and always the same."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from mmnar_lightning.evaluation import figures
from mmnar_lightning.evaluation.figures.canvas import FOREGROUND
from mmnar_lightning.evaluation.figures.lettering import printable, shorten, wrap

Drawer = Callable[[int, str], Figure]
EVIL = "<script>alert('$x$ & \"y\"')</script>"
SVG = "{http://www.w3.org/2000/svg}"


def names(n: int, prefix: str) -> list[str]:
    return [f"{prefix} {i}" for i in range(n)]


def calibration(n: int, name: str) -> Figure:
    curve: dict[str, list[float | None]] = {
        "predicted": [0.1, 0.2, None],
        "observed": [0.12, 0.3, 0.2],
        "low": [0.1, None, 0.1],
        "high": [0.2, 0.4, 1],
    }
    return figures.draw_calibration(dict.fromkeys(names(n, name), curve))


def decision(n: int, name: str) -> Figure:
    curves = {version: [0.1, 0.05, None] for version in names(n, name)}
    return figures.draw_decision({"threshold": [0.1, 0.2, 0.3], "treat_all": [0.1, 0, -3], "net_benefit": curves})


def precision_recall(n: int, name: str) -> Figure:
    curve = {"precision": [0.1, 0.4, 1.0], "recall": [1.0, 0.5, 0.0]}
    return figures.draw_precision_recall(dict.fromkeys(names(n, name), curve), prevalence=0.1)


def patterns(n: int, name: str) -> Figure:
    columns = names(min(n, 12), name)
    rows = [{"modalities": columns[: i % 13], "samples": None if i == 3 else 9000 // (i + 1)} for i in range(n)]
    return figures.draw_patterns(rows, columns)


def group_metric(n: int, name: str) -> Figure:
    ends = ([0.7, 0.6, 0.8], [0.7, None, None], [None, None, None])
    rows = [
        {"variable": name, "group": group, "task": "t", "rate": None, "metrics": {"raw": {"auroc": ends[i % 3]}}}
        for i, group in enumerate(names(n, name))
    ]
    return figures.draw_group_metric(rows, "auroc", "raw")


def shifts(n: int, name: str) -> Figure:
    columns = names(12, name)
    rows = [
        {"task": f"{name} {k}", "modalities": columns[: i % 13], "shift": None if i == 5 else 0.1 * (i - k)}
        for i in range(n)
        for k in range(3)
    ]
    return figures.draw_shifts(rows, columns)


def gates(n: int, name: str) -> Figure:
    columns = names(min(n, 12), name)
    values = np.linspace(0, 1, n * len(columns)).reshape(n, len(columns))
    return figures.draw_gates(values, [columns[: 1 + i % 12] for i in range(n)], columns, name)


def flow(n: int, name: str) -> Figure:
    whats = [what for i in range(n) for what in (f"found {name} {i}", f"excluded: {name} {i}")]
    return figures.draw_flow([{"table": name, "what": w, "rows": None if "1" in w else 1234} for w in whats])


DRAWERS: list[Drawer] = [calibration, decision, precision_recall, patterns, group_metric, shifts, gates, flow]
each = pytest.mark.parametrize("draw", DRAWERS, ids=lambda draw: draw.__name__)


def texts(element: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in element.iter(f"{SVG}text")]


@each
@pytest.mark.parametrize("n", [1, 40])
def test_one_and_many_are_drawn_as_wellformed_svg_with_alternatives(draw: Drawer, n: int) -> None:
    root = ElementTree.fromstring(figures.svg(draw(n, "some"), "Title & <b>", "What it shows"))
    assert root.attrib["role"] == "img"
    assert (root[0].tag, root[0].text) == (f"{SVG}title", "Title & <b>")
    assert (root[1].tag, root[1].text) == (f"{SVG}desc", "What it shows")
    assert root.attrib["aria-labelledby"].split() == [root[0].attrib["id"], root[1].attrib["id"]]
    assert "width" not in root.attrib
    assert "height" not in root.attrib
    assert "viewBox" in root.attrib
    assert not any("nothing to show" in text for text in texts(root))


@each
def test_nothing_is_said_to_be_nothing(draw: Drawer) -> None:
    root = ElementTree.fromstring(figures.svg(draw(0, "some"), "t", "d"))
    assert any("nothing to show: " in text for text in texts(root))


@each
def test_names_are_shown_and_never_run(draw: Drawer) -> None:
    written = figures.svg(draw(2, EVIL), EVIL, EVIL)
    root = ElementTree.fromstring(written)
    assert "<script" not in written
    assert not list(root.iter(f"{SVG}script"))
    # names may be shortened in the middle, but begin as they do
    shown = " ".join(texts(root))
    assert "<script>al" in shown or "<script>\n" in shown


@each
def test_control_characters_line_ends_and_any_script_are_drawn(draw: Drawer) -> None:
    name = "a\x00b\nc \x1b[31m\ud800 東京 \N{GRINNING FACE} \u202e"
    ElementTree.fromstring(figures.svg(draw(2, name), name, name).encode())
    figures.pixels(draw(1, name), dpi=20)


@each
def test_long_names_stay_on_the_sheet(draw: Drawer) -> None:
    figure = draw(2, "an_extraordinarily_long_name_of_something " * 8)
    width, height = figure.get_size_inches()
    figures.pixels(figure, dpi=72)
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, box


@each
def test_same_input_gives_same_bytes_and_ids_are_unique_in_a_page(draw: Drawer) -> None:
    first, again = (figures.svg(draw(3, "some"), "t", "d") for _ in range(2))
    assert first == again
    other = figures.svg(draw(3, "some"), "another title", "d")
    ids = re.findall(r'\bid="([^"]+)"', first + other)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#)([\w-]+)', first):
        assert f'id="{reference}"' in first


@each
def test_pyplot_is_not_used_and_settings_are_left_alone(draw: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    before = dict(matplotlib.rcParams)
    figures.svg(draw(2, "some"), "t", "d")
    assert figures.pixels(draw(2, "some"), dpi=40).shape[2] == 3
    assert dict(matplotlib.rcParams) == before


@each
def test_settings_of_the_user_change_nothing(draw: Drawer) -> None:
    usual = figures.svg(draw(2, "some"), "t", "d")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.grid": True, "svg.fonttype": "path"}):
        assert figures.svg(draw(2, "some"), "t", "d") == usual


@each
def test_foreground_follows_the_page_and_text_is_text(draw: Drawer) -> None:
    written = figures.svg(draw(2, "some"), "t", "d")
    assert FOREGROUND not in written
    assert "currentColor" in written
    assert "<text" in written
    assert "<style" not in written
    assert not re.search(r"#000000|#ffffff|black|white|\d{4}-\d\d-\d\d", written)


def test_curves_are_told_apart_without_colour() -> None:
    lines = calibration(6, "v").axes[0].get_lines()[1:]
    assert len({(str(line.get_linestyle()), str(line.get_marker())) for line in lines}) == 6


def test_a_version_looks_the_same_where_others_are_absent() -> None:
    curve = {"predicted": [0.1], "observed": [0.1]}
    both = figures.draw_calibration({"raw": curve, "rectified": curve}).axes[0].get_lines()[2]
    alone = figures.draw_calibration({"rectified": curve}).axes[0].get_lines()[1]
    assert (both.get_color(), both.get_marker()) == (alone.get_color(), alone.get_marker())


def test_unknown_values_are_skipped_and_small_counts_not_shown() -> None:
    written = figures.svg(group_metric(3, "g"), "t", "d")
    assert "g 1" in written
    assert "g 2" not in written
    assert "nan" not in written.lower()
    assert "&lt; 10" in figures.svg(patterns(5, "m"), "t", "d")
    assert "&lt; 10" in figures.svg(flow(2, "f"), "t", "d")


def test_the_curve_beyond_the_axes_is_cut_off() -> None:
    root = ElementTree.fromstring(figures.svg(decision(1, "v"), "t", "d"))
    clips = {clip.attrib["id"] for clip in root.iter(f"{SVG}clipPath")}
    used = {found for e in root.iter() for found in re.findall(r"url\(#([\w-]+)\)", e.attrib.get("clip-path", ""))}
    assert used
    assert used <= clips


def test_gates_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        figures.draw_gates(np.zeros((1, 3)), [["a"], ["b"]], ["a", "b", "c"], "t")


def test_lettering() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("hospital of the north, campus 2", 16) == "hospital o…pus 2"
    assert wrap("one two three four five six", 9, 2) == "one two\nthree…ix"
    assert printable("a\n\tb\x07") == "a b\N{REPLACEMENT CHARACTER}"
    assert all(len(line) <= 8 for line in wrap("x" * 100, 8, 3).split("\n"))


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "assets" / "make_figures.py"
    spec = importlib.util.spec_from_file_location("make_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_of_the_docs_are_those_the_script_draws(tmp_path: Path) -> None:
    shown = Path(__file__).parents[2] / "docs" / "assets"
    made: Any = script()
    written = made.write(tmp_path)
    assert len(written) == 8
    for path in written:
        root, committed = (ElementTree.parse(folder / path.name).getroot() for folder in (tmp_path, shown))
        # paths may differ in the last digit between versions of matplotlib, words may not
        words = [[e.text for e in tree.iter() if e.tag in (f"{SVG}text", f"{SVG}title")] for tree in (root, committed)]
        assert words[0] == words[1], f"run docs/assets/make_figures.py: {path.name} is not what it draws"
