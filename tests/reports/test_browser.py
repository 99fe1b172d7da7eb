"""The page in a browser: at the desk and on a phone, light and dark, nothing fails, loads or sticks out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: playwright is not installed")
    path = os.environ.get("MMNAR_CHROMIUM") or next((p for p in map(shutil.which, NAMES) if p), None)
    if path is None:
        pytest.skip(f"NOT TESTED: there is none of {', '.join(NAMES)}; set MMNAR_CHROMIUM to a Chromium")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page(browser: Any, rendered: str, made: ModuleType, tmp_path: Path, width: int, scheme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(rendered, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    happened: list[str] = []
    page.on("console", lambda message: happened.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: happened.append(f"error: {error}"))

    def dismiss(dialog: Any) -> None:
        happened.append("dialog")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("request", lambda request: happened.append(request.url))
    page.goto(file.as_uri())
    assert happened == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # also where everything is opened
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # the name of a site is there to read, and is not run
    assert page.get_by_role("rowheader", name=made.HOSTILE, exact=True).first.is_visible()
    assert page.evaluate("document.scripts.length") == 0
    paper, ink = page.evaluate("['background-color', 'color'].map(n => getComputedStyle(document.body)[n])")
    assert (brightness(paper) < brightness(ink)) == (scheme == "dark")
    page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
    assert happened == [file.as_uri()]
    page.close()


def test_print(browser: Any, rendered: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(rendered, encoding="utf-8")
    page = browser.new_page(viewport={"width": 794, "height": 1123}, color_scheme="dark")
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    # black on white, without links to click, and with the tables that are folded away on a screen
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("details.printed table").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
