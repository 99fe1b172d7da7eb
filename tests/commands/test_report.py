"""`mmnar report`: a page and a card from a run's folder, or one line that says what to do."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mmnar_lightning.__main__ import main


@pytest.fixture
def made(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).parents[1] / "reports" / "run_folder.py")


def test_it_writes_page_and_card(made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = made.write_run(tmp_path / "run"), made.write_run(tmp_path / "other")
    table = tmp_path / "ablation.json"
    table.write_text(json.dumps([{"method": "concat", "auroc": 0.79}]))
    out, card = tmp_path / "new" / "page.html", tmp_path / "new" / "card.md"
    options = ["--compare", str(other), "--tables", str(table), "--out", str(out), "--model-card", str(card)]
    assert main(["report", str(run), *options]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out), str(card)]
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>\n")
    assert "Runs beside each other" in page
    assert "ablation.json" in page
    assert "# Model card: run" in card.read_text(encoding="utf-8")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (out, card)] == [0o600, 0o600]
    # nothing half-written is left
    assert sorted(path.name for path in out.parent.iterdir()) == ["card.md", "page.html"]
    assert main(["report", str(run), *options]) == 0
    assert out.read_text(encoding="utf-8") == page


def test_the_page_lies_in_the_run_unless_told(made: ModuleType, tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()


def test_errors_are_one_line_with_the_fix(made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: object) -> str:
        assert main(["report", *map(str, arguments)]) != 0
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "holds no run: there is no config.yaml" in told(tmp_path)
    run = made.write_run(tmp_path / "run")
    assert "not an .html file" in told(run, "--out", tmp_path / "report.pdf")
    assert "not an .md file" in told(run, "--model-card", tmp_path / "card.html")
    assert "holds no run" in told(run, "--compare", tmp_path / "absent")
    assert "no such table" in told(run, "--tables", tmp_path / "absent.csv")
    assert "--help lists the options" in told(run, "--quick")
    assert "--help lists the options" in told()
    (run / "findings-test.json").write_text(json.dumps(made.findings() | {"format": 7}))
    assert "format 7, but this release reads 1" in told(run)
    (run / "findings-test.json").unlink()
    assert "run `mmnar test`" in told(run)
    assert not (run / "report.html").exists()
