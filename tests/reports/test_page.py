"""The page holds what it should, as text, in the form that readers and screen readers need."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmnar_lightning.reports import read_run, render_page
from mmnar_lightning.reports.summary import notices

VOID = {"meta", "path", "use", "line", "br", "input", "img", "link"}


class Outline(HTMLParser):
    """Tags, ids, headings and texts of a page; checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def outline(rendered: str) -> Outline:
    return Outline(rendered)


def test_nothing_of_the_data_is_markup(outline: Outline, rendered: str, made: ModuleType) -> None:
    assert outline.of("script") == []
    text = "".join(outline.words)
    # in a site, a modality, a task, an exclusion, a condition, the configuration and a given table
    assert text.count(made.HOSTILE) >= 7
    assert "<script" not in rendered
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]


def test_it_loads_nothing(outline: Outline, rendered: str) -> None:
    policy = next(m for m in outline.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    fetched = [(tag, a) for tag, a in outline.tags if tag in ("link", "img", "iframe", "object", "embed", "image")]
    assert fetched == []
    links = [a.get("href") or a.get("xlink:href") or "" for _, a in outline.tags]
    assert {link[0] for link in links if link} == {"#"}
    assert not re.search(r"url\((?!#)|@import|@font-face", rendered)


def test_it_can_be_read_without_seeing_it(outline: Outline) -> None:
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in outline.of("a")]
    assert links[0] == "#main"
    assert {str(link)[1:] for link in links} <= set(ids)
    # every table has a caption, every header cell a scope, every picture a name and a description
    assert len(outline.of("table")) == len(outline.of("caption")) > 10
    assert all(a.get("scope") in ("col", "row") for a in outline.of("th"))
    pictures = outline.of("svg")
    assert len(pictures) > 8
    assert all(a["role"] == "img" and set(str(a["aria-labelledby"]).split()) <= set(ids) for a in pictures)
    assert len(outline.of("figcaption")) == len(pictures)


def test_it_says_what_matters(outline: Outline) -> None:
    text = " ".join("".join(outline.words).split())
    for said in (
        "0.807 [0.751, 0.855]",
        "Recalibration took the log loss from 0.287 to 0.260; rectification by availability pattern, on top of it, to",
        "Few events.",
        "5b1c3db67123b363",
        "step-down unit, no ICU",
        "Under ignorability",
        "E[y | xobs, δ]",
        "It says nothing about what would have happened had a test been ordered",
        "reflect care, not biology",
        "Not a medical device",
        "stay under the terms of the source",
        "Settings that differ",
        "calibration A (rectifier)",
    ):
        assert said in text, said
    assert "tiny" not in text
    assert "someone" not in text


def test_the_same_run_gives_the_same_bytes(made: ModuleType, tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    first = render_page(read_run(run))
    assert render_page(read_run(run)) == first
    assert len(first.encode()) < 400_000


def told(made: ModuleType, folder: Path, measured: dict[str, float], **changes: Any) -> list[str]:
    found = made.findings() | changes
    run = made.write_run(folder, found=found, measured=made.metrics() | measured)
    said = notices(read_run(run))
    return [f"{n.level}: {n.title}: {item.split(':')[0]}" for n in said for item in n.items or ("",)]


def test_alarms(made: ModuleType, tmp_path: Path) -> None:
    jump = "alarm: Rectification made AUROC jump: mortality"
    assert jump not in told(made, tmp_path / "a", {"rectified/mortality/auroc": 0.82})
    assert told(made, tmp_path / "b", {"rectified/mortality/auroc": 0.83})[0] == jump
    alone = "alarm: Availability alone does as well as the model: mortality"
    assert alone in told(made, tmp_path / "c", {"delta_only/mortality/auroc": 0.81})
    close = {"delta_only/mortality/auroc": 0.72, "delta_only/mortality/auroc/high": 0.76}
    assert "caution: Not clearly better than availability alone: mortality" in told(made, tmp_path / "d", close)
    worse = "caution: Correction made it worse: mortality"
    assert worse in told(made, tmp_path / "e", {"rectified/mortality/log_loss": 0.3})
    extreme = "caution: Calibration is off after rectification: mortality"
    assert extreme in told(made, tmp_path / "f", {"rectified/mortality/calibration_slope": 0.5})
    rectifier = made.findings()["rectifier"] | {"fitted": False}
    assert "alarm: The fit has not come to its end: " in told(made, tmp_path / "g", {}, rectifier=rectifier)
    assert "caution: There are no conformal sets: " in told(made, tmp_path / "h", {}, coverage=[])


def test_val_is_said_to_be_val(made: ModuleType, tmp_path: Path) -> None:
    found = made.findings("val") | {"calibration": {}, "decision": {}, "groups": []}
    page = render_page(read_run(made.write_run(tmp_path / "run", "val", found=found, evaluated=False)))
    assert "These are numbers of val, not of test" in page
    assert "Value of modalities" not in page
    assert "Tables given" not in page


def test_runs_on_other_data_are_not_compared_silently(made: ModuleType, tmp_path: Path) -> None:
    found = made.findings() | {"calibration": {}, "decision": {}, "groups": []}
    run = read_run(made.write_run(tmp_path / "run", found=found))
    found["data"] |= {"fingerprint": "0000", "splits": found["data"]["splits"] | {"split_seed": 1}}
    other = read_run(made.write_run(tmp_path / "elsewhere" / "run", found=found))
    assert "Not comparable" not in render_page(run, [run])
    page = render_page(run, [other])
    assert "Not comparable.</b> run (2) and run (1) differ in data fingerprints, splits" in page


def test_a_run_with_next_to_nothing_has_a_page(made: ModuleType, tmp_path: Path) -> None:
    found = made.findings()
    found["cohort"] = {name: [] for name in found["cohort"]}
    found |= {"calibration": {}, "decision": {}, "groups": [], "worst": [], "coverage": []}
    found["rectifier"] = {"fitted": True, "rungs": [], "shifts": []}
    run = made.write_run(tmp_path / "run", found=found, evaluated=False)
    (run / "metrics-test.json").write_text("{}")
    Outline(render_page(read_run(run)))


def test_an_old_evaluation_is_named(made: ModuleType, tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    (run / "evaluation.json").write_text('{"availability": {}, "probabilities": "raw"}')
    with pytest.raises(ValueError, match=r"evaluation.json of run .* run `mmnar evaluate` again"):
        render_page(read_run(run))
