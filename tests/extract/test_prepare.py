from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts, ExtractError, Extraction, find_store, prepare
from mmnar_lightning.extract.closing import closing_table
from mmnar_lightning.records import RecordStore


def manifest(store: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((store / "manifest.json").read_text())
    return described


def test_same_input_same_bytes_wherever_it_lies(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    first = prepare(toy.ToyExtractor(), root, tmp_path / "a", progress=False)
    moved = root.rename(tmp_path / "elsewhere")
    os.utime(moved / "lab.csv", (0, 0))
    second = prepare(toy.ToyExtractor(), moved, tmp_path / "b", progress=False)
    assert toy.hashes(first) == toy.hashes(second)
    assert first.name == second.name


def test_a_finished_store_is_found_and_left_alone(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    first = prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.joinpath("s").rglob("*")}
    assert prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.joinpath("s").rglob("*")} == before


@pytest.mark.parametrize("change", ["options", "raw", "version"])
def test_the_fingerprint_follows_what_can_change_the_result(
    change: str, root: Path, tmp_path: Path, toy: ModuleType
) -> None:
    first = prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    extractor = toy.ToyExtractor(minutes=720 if change == "options" else 1440)
    if change == "raw":
        with (root / "lab.csv").open("a") as file:
            file.write("9999,0,10,20,Na,140,mmol/L,,\n")
    if change == "version":
        extractor.version = "2"
    assert prepare(extractor, root, tmp_path / "s", progress=False) != first


def test_another_cohort_reuses_the_tables(
    root: Path, tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)

    def fail(*_: object) -> None:
        raise AssertionError("a raw table was read again")

    # by import_module: the room's `scan` is the function
    monkeypatch.setattr(importlib.import_module("mmnar_lightning.extract.scan"), "_sink", fail)
    assert prepare(toy.ToyExtractor("later", 2880), root, tmp_path / "s", progress=False).name.startswith("toy-later-")


def test_the_manifest_tells_where_it_came_from(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    described = manifest(prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False))
    counts = {(table, what): n for table, what, n in described["counts"]}
    # counted here by hand from the raw lines
    ages = pl.read_csv(root / "stay.csv.gz")["age"]
    assert counts["stay", "rows read"] == len(ages)
    assert counts["stay", "excluded: under 30"] == sum(age < 30 for age in ages)
    assert counts["samples", "kept"] == described["samples"] == sum(age >= 30 for age in ages)
    assert [s["file"] for s in described["sources"]] == ["lab.csv", "stay.csv.gz"]
    assert described["data_use"] == "synthetic, free to use"
    assert described["options"] == {"minutes": 1440}
    assert str(tmp_path) not in json.dumps(described)


def test_folders_are_private(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    store = prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    for folder in (store, store.parent, store.parent / ".tables"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_values_are_cut_at_the_prediction_time(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    """Rows that become known later, and columns that are on no list, change no byte of what is stored."""
    before = RecordStore(prepare(toy.ToyExtractor(), root, tmp_path / "a", progress=False))
    lines = (root / "lab.csv").read_text().splitlines()
    changed = [lines[0]] + [line.rsplit(",", 1)[0] + ",corrupt" for line in lines[1:]]
    changed += ["9000,1,1381,,Na,81,mmol/L,late,x", "9001,2,10,1441,Glu,5,mmol/L,late,x"]
    (root / "lab.csv").write_text("\n".join(changed) + "\n")
    after = RecordStore(prepare(toy.ToyExtractor(), root, tmp_path / "b", progress=False))
    assert after.samples.equals(before.samples)
    for name in before.manifest["files"]:
        if "modality" in name:
            assert (
                (before.column(name, "sample") == after.column(name, "sample")).all() if "items" not in name else True
            )
    assert after.codes("drugs") == before.codes("drugs")
    both = [store.column("modality/labs.arrow", "values").tobytes() for store in (before, after)]
    assert both[0] == both[1]


def no_lab(root: Path) -> None:
    (root / "lab.csv").unlink()


def drop_column(root: Path) -> None:
    pl.read_csv(root / "lab.csv").drop("result").write_csv(root / "lab.csv")


def line(text: str) -> Callable[[Path], None]:
    def append(root: Path) -> None:
        with (root / "lab.csv").open("a") as file:
            file.write(text + "\n")

    return append


def truncate(root: Path) -> None:
    packed = (root / "stay.csv.gz").read_bytes()
    (root / "stay.csv.gz").write_bytes(packed[: len(packed) * 3 // 4])


def empty(root: Path) -> None:
    (root / "lab.csv").write_bytes(b"")


def no_root(root: Path) -> None:
    root.rename(root.with_name("gone"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_lab, ["missing table lab"]),
        (drop_column, ["lab.csv", "missing column result"]),
        (line("500,1,10,20,Na,secret,mmol/L,,"), ["lab.csv", "column result", "1 row (row 401)", "number"]),
        (line("3,1,10,20,Na,140,mmol/L,,"), ["lab.csv", "column labid", "row 401", "repeat a key"]),
        (line("500,1,10,20,Na,140,secret,,"), ["lab.csv", "column unit", "1 row (row 401)", "toy.csv"]),
        (line("500,,10,20,Na,140,mmol/L,,"), ["lab.csv", "column stayid", "row 401", "without a value"]),
        (line("500,1,10,20,Na"), ["lab.csv", "row 401", "number of fields"]),
        (line('500,1,10,20,"Na,1,2,,'), ["lab.csv", "quote", "row 401"]),
        (truncate, ["stay.csv.gz", "truncated"]),
        (empty, ["lab.csv", "empty"]),
        (no_root, ["does not exist"]),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(
    spoil: Callable[[Path], None], says: list[str], root: Path, tmp_path: Path, toy: ModuleType
) -> None:
    spoil(root)
    with pytest.raises(ExtractError) as caught:
        prepare(toy.ToyExtractor(), root, tmp_path / "deep" / "store", progress=False)
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not (tmp_path / "deep").exists()


def test_problems_of_all_tables_come_at_once(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    truncate(root)
    line("3,1,10,20,Na,x,mmol/L,,")(root)
    with pytest.raises(ExtractError) as caught:
        prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    assert len(caught.value.problems) == 2


def test_bad_input_leaves_an_older_store_as_it_was(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    before = sorted(p for p in (tmp_path / "s").rglob("*"))
    line("500,1,10,20,Na,secret,mmol/L,,")(root)
    with pytest.raises(ExtractError, match="column result"):
        prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)
    assert sorted(p for p in (tmp_path / "s").rglob("*")) == before


def test_an_error_of_the_extractor_writes_nothing(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    class Refusing(toy.ToyExtractor):  # type: ignore[misc,name-defined]
        def extract(self, tables: object, log: Counts) -> Extraction:
            raise ExtractError("stay.csv.gz: column age: 3 rows")

    with pytest.raises(ExtractError, match="column age"):
        prepare(Refusing(), root, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def test_others_wait_and_get_the_same_store(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    made: list[Path] = []
    work = [
        threading.Thread(target=lambda: made.append(prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=False)))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) == 3


def test_find_store_without_the_extract(root: Path, tmp_path: Path, toy: ModuleType) -> None:
    store = tmp_path / "s"
    with pytest.raises(ExtractError, match="none at all"):
        find_store(store, "toy", "landmark", {"minutes": 1440})
    made = prepare(toy.ToyExtractor(), root, store, progress=False)
    assert prepare(toy.ToyExtractor(), None, store) == made
    with pytest.raises(ExtractError, match="with other options"):
        find_store(store, "toy", "landmark", {"minutes": 5})
    line("500,1,10,20,Na,140,mmol/L,,")(root)
    prepare(toy.ToyExtractor(), root, store, progress=False)
    with pytest.raises(ExtractError, match="2 stores fit"):
        find_store(store, "toy", "landmark", {"minutes": 1440})


def test_the_closing_table_shows_counts_and_hides_small_patterns(
    root: Path, tmp_path: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(toy.ToyExtractor(), root, tmp_path / "s", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "rows read" in shown.err
    assert "excluded: under 30" in shown.err
    samples = pl.DataFrame({"label/died": [True] + [False] * 11, "observed/labs": [True] * 11 + [False]})
    cells = [list(column.cells) for column in closing_table("t", [["lab", "rows read", 3]], samples).columns]
    assert "< 10" in cells[2]
    assert "1" not in cells[2]
