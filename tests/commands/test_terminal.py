"""What is said where: terminals have colours and bars, files have neither, and --quiet leaves results alone."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmnar_lightning import _terminal
from mmnar_lightning.__main__ import GROUPS, LIGHTNING, commands, main, usage

if TYPE_CHECKING:
    from tests.conftest import MakeStore

CONF = Path(__file__).parents[1] / "conf" / "tables.yaml"
COLOUR = re.compile(r"\x1b\[(\d+;)*(3|4|9|10)\d(;\d+)*m")


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def loud() -> Any:
    yield
    _terminal.set_quiet(False)


def data(own_tables: Path, tmp_path: Path) -> tuple[Any, ...]:
    return ("--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores")


@pytest.fixture(scope="module")
def said(mmnar: Any, own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands write into a file, by name; `quiet` ones with --quiet."""
    folder = tmp_path_factory.mktemp("said")
    found = {}
    for name, flags in (("loud", []), ("quiet", ["--quiet"])):
        where = data(own_tables, folder / name)
        bars = ("--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "true")
        run = ("--run_dir", folder / name / "run", "--trainer.max_epochs", "2", *bars)
        for command, more in (("prepare", ()), ("fit", run), ("test", run)):
            done = mmnar(command, "--config", CONF, *where, *more, *flags)
            assert done.status == 0, done.out
            found[f"{name} {command}"] = done.out
        found[f"{name} stores"] = str(folder / name / "stores")
    return found


@pytest.mark.parametrize("command", ["prepare", "fit", "test"])
def test_a_file_gets_no_colours_no_bars_and_no_moves_of_the_cursor(said: dict[str, str], command: str) -> None:
    for name in ("loud", "quiet"):
        assert not re.search("[\x1b\r\b]", said[f"{name} {command}"])
        assert "━━━ " not in said[f"{name} {command}"].replace("┏", "").replace("┓", ""), "a bar of Lightning's"


def test_a_fit_that_writes_to_a_file_says_how_each_epoch_went(said: dict[str, str]) -> None:
    lines = re.findall(r"^epoch (\d)/2 .*val/auroc 0\.\d{4} .* s$", said["loud fit"], re.MULTILINE)
    assert lines == ["1", "2"]


def test_a_quiet_prepare_prints_the_store_and_a_quiet_fit_nothing(said: dict[str, str]) -> None:
    (line,) = said["quiet prepare"].splitlines()
    assert Path(line).parent == Path(said["quiet stores"])
    assert (Path(line) / "manifest.json").is_file()
    assert said["quiet fit"] == ""


def test_a_quiet_test_prints_its_table_all_the_same(said: dict[str, str]) -> None:
    assert "death" in said["quiet test"]
    assert "GPU available" in said["loud test"]
    assert "GPU available" not in said["quiet test"]


def test_a_quiet_error_is_still_told(mmnar: Any) -> None:
    done = mmnar("prepare", "--config", "nothing", "--quiet")
    assert done.status == 1
    assert done.out.startswith("mmnar prepare: error: no config file 'nothing'")


def in_a_terminal(*arguments: str | Path, **environment: str) -> str:
    """What a command shows in a terminal."""
    here, there = pty.openpty()
    words = [sys.executable, "-m", "mmnar_lightning", *map(str, arguments)]
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        words, stdout=there, stderr=there, stdin=there, env=inherited | {"TERM": "xterm-256color"} | environment
    ) as process:
        os.close(there)
        shown = b""
        while True:
            try:
                part = os.read(here, 65536)
            except OSError:
                # Linux says so when the last writer is gone
                break
            if not part:
                break
            shown += part
    os.close(here)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_terminal_gets_colours_but_not_with_no_color(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / f"{store.name}.derived" / "x-1").mkdir(parents=True)
    (tmp_path / f"{store.name}.derived" / "x-1" / "manifest.json").write_text('{"files": {}}')
    assert COLOUR.search(in_a_terminal("describe", store))
    assert not COLOUR.search(in_a_terminal("describe", store, NO_COLOR="1"))


def test_bars_need_a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(True))
    monkeypatch.setenv("TERM", "xterm")
    assert _terminal.shows_bars()
    monkeypatch.setenv("TERM", "dumb")
    assert not _terminal.shows_bars()
    monkeypatch.setenv("TERM", "xterm")
    _terminal.set_quiet(True)
    assert not _terminal.shows_bars()
    _terminal.set_quiet(False)
    monkeypatch.setattr(sys, "stderr", Stream(False))
    # a forced colour is no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not _terminal.shows_bars()


def test_a_long_path_is_one_line_and_brackets_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/stores/" + "[bold]a long name/" * 20
    _terminal.result(path)
    _terminal.show(path)
    table = _terminal.table("[red]title", "[blue]name")
    _terminal.add_row(table, "mmnar-lightning[lora]")
    _terminal.result(table)
    found = capsys.readouterr()
    assert found.err == f"{path}\n"
    assert found.out.startswith(f"{path}\n[red]title")
    assert "mmnar-lightning[lora]" in found.out
    assert "[blue]name" in found.out


def test_every_command_stands_in_one_group_and_the_flags_of_all_are_told() -> None:
    shown = usage()
    for name in [*LIGHTNING, *commands()]:
        assert len(re.findall(rf"^  {name}  ", shown, re.MULTILINE)) == 1, name
    assert re.findall(r"^(\w+):$", shown, re.MULTILINE) == list(GROUPS)
    assert re.search("--quiet +Say nothing but errors and the result", shown)


@pytest.mark.parametrize("command", ["describe", "prepare", "simulate"])
def test_the_help_of_a_command_tells_of_quiet(mmnar: Any, command: str) -> None:
    done = mmnar(command, "--help")
    assert done.status == 0
    assert "--quiet    Say nothing but errors and the result" in done.out


def test_quiet_ends_with_its_command(tmp_path: Path) -> None:
    log = logging.getLogger("mmnar_lightning")
    before = log.level
    assert main(["describe", str(tmp_path), "--quiet"]) == 1
    assert log.level in (before, logging.INFO)
    assert not _terminal.is_quiet()
