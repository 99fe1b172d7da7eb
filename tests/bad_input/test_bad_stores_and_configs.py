"""Stores that are mixed or broken, own tables that are described wrongly, configs that are none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WORD = "sesame-7313-secret"  # as in conftest.py, where every message is searched for it
Refused = Callable[[Path], str]


@pytest.mark.parametrize("file", ["samples.arrow", "modality/labs.arrow", "modality/notes.items.arrow"])
@pytest.mark.parametrize("how", ["mixed", "missing", "truncated"])
@pytest.mark.parametrize("root", ["with the extract", "without"])
def test_two_stores_mixed_or_one_broken(
    file: str,
    how: str,
    root: str,
    sound: Path,
    sound_stores: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Any,
    write_config: Any,
) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(sound_stores, stores)
    landmark, discharge = sorted(path for path in stores.iterdir() if path.name.startswith("eicu-"))
    (landmark / file).unlink()
    if how == "mixed":
        shutil.copy(discharge / file, landmark / file)
    elif how == "truncated":
        (landmark / file).write_bytes((discharge / file).read_bytes()[:200])
    given = sound if root == "with the extract" else None
    config = write_config(tmp_path / "config.yaml", {"root": given, "store": stores})
    before = contents(stores)
    line = refused(config)
    assert landmark.name in line
    assert file in line
    assert contents(stores) == before


def with_keys(**changed: Any) -> Callable[[dict[str, Any]], str]:
    return lambda described: yaml.safe_dump(described | changed)


# fmt: off
TABLES: dict[str, tuple[Callable[[dict[str, Any]], str | None], str]] = {
    "no schema.yaml": (lambda _: None, r"schema\.yaml: missing"),
    "empty": (lambda _: "", r"schema\.yaml: the file: must be a mapping"),
    "not YAML": (lambda _: f"tasks: [{WORD}", r"schema\.yaml, line \d+: not readable as YAML"),
    "a key twice": (lambda _: "dataset: a\ndataset: b\n", r"schema\.yaml, line 2: key 'dataset' is written twice"),
    "a list": (lambda _: "- a\n- b\n", r"schema\.yaml: the file: must be a mapping"),
    "unknown key": (with_keys(modality={}), r"schema\.yaml: unknown key 'modality'; allowed: .*modalities"),
    "no tasks": (with_keys(tasks=None), r"schema\.yaml: missing key 'tasks'"),
    "unknown kind": (with_keys(modalities={"labs": {"kind": "vectors"}}),
                     r"schema\.yaml: modalities\.labs\.kind: 'vectors' is no kind; .*vector, codes"),
    "unknown parent": (with_keys(tasks={"death": {"parent": "birth"}}), r"schema\.yaml: .*birth"),
    "table that isn't there": (with_keys(modalities={"scans": {"kind": "vector"}}), r"scans\.parquet: missing"),
    "column that isn't there": (with_keys(groups=["planet"]), r"samples\.parquet: column 'planet' is missing"),
    "file outside the folder": (with_keys(modalities={"labs": {"kind": "vector", "file": "../labs"}}),
                                r"schema\.yaml: modalities\.labs\.file: must be a path below the folder"),
}
# fmt: on


@pytest.mark.parametrize("case", TABLES)
def test_wrong_schema_of_own_tables(
    case: str, own_tables: Path, tmp_path: Path, refused: Refused, contents: Any, write_config: Any
) -> None:
    change, pattern = TABLES[case]
    root = tmp_path / "tables"
    shutil.copytree(own_tables, root)
    described = yaml.safe_load((root / "schema.yaml").read_text(encoding="utf-8"))
    (root / "schema.yaml").unlink()
    if (text := change(described)) is not None:
        (root / "schema.yaml").write_text(text, encoding="utf-8")
    config = write_config(tmp_path / "c.yaml", {"root": root, "store": tmp_path / "stores"}, "TablesDataModule")
    before = contents(tmp_path)
    line = refused(config)
    assert re.search(pattern, line), line
    assert contents(tmp_path) == before, "something was written"


def test_config_that_is_none(tmp_path: Path, refused: Refused, write_config: Any) -> None:
    line = refused(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in line
    assert "eicu" in line, "the configs that ship are not named"
    (tmp_path / "broken.yaml").write_text("data: [")
    refused(tmp_path / "broken.yaml")
    refused(write_config(tmp_path / "c.yaml", {}, "NoSuchDataModule"))
    assert {path.name for path in tmp_path.iterdir()} == {"broken.yaml", "c.yaml"}
