"""`mmnar doctor`: what is there, what is missing, and what comes next."""

from __future__ import annotations

import re
import shutil
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from mmnar_lightning.__main__ import main
from mmnar_lightning.commands import _config, _machine

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
RECOGNISERS = PYPROJECT["entry-points"]["mmnar.recognisers"]


@pytest.fixture(autouse=True)
def recognisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recognisers of pyproject.toml, also where the package was installed before it named them."""
    known = _config.plugins

    def plugins(kind: str) -> dict[str, EntryPoint]:
        if kind != "recogniser":
            return known(kind)
        return {name: EntryPoint(name, value, "mmnar.recognisers") for name, value in RECOGNISERS.items()}

    monkeypatch.setattr(_config, "plugins", plugins)


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> str:
    assert main(["doctor", *map(str, arguments)]) == status
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def test_recognisers_are_installed() -> None:
    installed = {point.name: point.value for point in entry_points(group="mmnar.recognisers")}
    assert installed == RECOGNISERS, "install the package again: pip install --no-deps -e ."


def test_versions_devices_extras_and_folders_are_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = told(capsys)
    for package in ("mmnar-lightning", "torch", "lightning", "polars"):
        assert re.search(rf"│ {package} +│ \d+\.\d+", shown), package
    assert re.search(r"│ cpu +│ \d+ cores.*GiB", shown)
    for extra in ("evaluation", "lora"):
        assert re.search(rf"│ {extra} +│ (not )?there", shown)
    assert re.search(rf"│ {tmp_path}/stores +│ record stores .*│ yes +│ \d", shown)
    assert re.search(r"│ eicu +│ yes +│ yes +│ yes", shown)
    assert shown.splitlines()[-1] == "nothing that is needed is missing"
    assert not list(tmp_path.iterdir()), "it changes nothing"


def test_a_missing_package_counts_and_a_missing_extra_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _machine.installed
    monkeypatch.setattr(_machine, "installed", lambda name: None if name == "peft" else known(name))
    shown = told(capsys)
    assert "pip install 'mmnar-lightning[lora]'" in shown
    monkeypatch.setattr(_machine, "installed", lambda name: "0.1" if name == "timm" else known(name))
    shown = told(capsys, status=1)
    assert re.search(r"│ timm +│ 0\.1 +│ >=\S+ +│ another version is needed", shown)
    assert re.search(r"^missing: package timm: pip install 'timm>=", shown, re.MULTILINE)


def test_own_tables_are_recognised_with_the_next_command(own_tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "--root", own_tables)
    assert "own tables (synthetic)" in shown
    assert f"\nnext: mmnar prepare --config tables --data.init_args.root {own_tables}\n" in shown
    assert f"\nthen: mmnar fit --config tables --data.init_args.root {own_tables}\n" in shown


def test_a_missing_table_is_named(own_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(own_tables, tmp_path / "own tables")
    (root / "labs.parquet").unlink()
    shown = told(capsys, "--root", root, status=1)
    assert f"missing: labs.parquet: missing in {root}" in shown
    assert "next:" not in shown


def test_the_folder_above_the_data_is_told_where_they_are(
    own_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "files" / "my data"
    shutil.copytree(own_tables, inside)
    assert f"give --root '{inside}' (own tables (synthetic))" in told(capsys, "--root", tmp_path, status=1)


@pytest.mark.parametrize("name", ["empty", "nowhere", "file"])
def test_what_is_none_of_it_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    words = {"empty": "is none of what", "nowhere": "no such folder", "file": "is a file, not a folder"}[name]
    assert f"missing: {tmp_path / name}: {words}" in told(capsys, "--root", tmp_path / name, status=1)
