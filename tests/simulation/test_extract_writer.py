from __future__ import annotations

import gzip
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.simulation import MARKER, ExtractWriter, write_extract

TABLES = {"people": ("person", "name"), "icu/stays": ("stay", "person", "intime")}
SETTINGS: dict[str, Any] = {"simulator": "toy", "version": "1", "patients": 3, "seed": 0}
PEOPLE = pl.DataFrame({"person": [1, 2, 3], "name": ["a", 'b "c", d', None]})
STAYS = pl.DataFrame({"stay": [7], "person": [2], "intime": [datetime(2150, 6, 1, 12, 30)]})


def rows(extract: ExtractWriter) -> None:
    for person in range(3):
        extract.append("people", PEOPLE[person : person + 1])
        extract.advance(person + 1)
    extract.append("icu/stays", STAYS)
    extract.append_truth("people-0", PEOPLE)


def write(folder: Path, made: Callable[[ExtractWriter], None] = rows, **settings: Any) -> None:
    write_extract(folder, SETTINGS | settings, "No real patient.", TABLES, made, progress=False)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_tables_truth_and_marker(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "raw")
    raw = tmp_path / "deep" / "raw"
    assert set(hashes(raw)) == {"people.csv.gz", "icu/stays.csv.gz", "truth/people-0.parquet", MARKER}
    assert gzip.decompress((raw / "people.csv.gz").read_bytes()) == b'person,name\n1,a\n2,"b ""c"", d"\n3,\n'
    assert gzip.decompress((raw / "icu/stays.csv.gz").read_bytes()) == b"stay,person,intime\n7,2,2150-06-01 12:30:00\n"
    assert pl.read_parquet(raw / "truth" / "people-0.parquet").equals(PEOPLE)
    marker = json.loads((raw / MARKER).read_text())
    assert marker == {**SETTINGS, "about": "No real patient.", "rows": {"people": 3, "icu/stays": 1}}
    assert [p.name for p in raw.parent.iterdir()] == ["raw"], "no lock and no partial folder stays"


def test_neither_the_time_nor_the_name_is_in_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one")
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    # the clock is the one that gzip reads
    assert int.from_bytes(gzip.compress(b"", mtime=None)[4:8], "little") == 4_000_000_000
    write(tmp_path / "other")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")


def test_a_finished_extract_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()  # an empty one may be there
    write(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

    def never(extract: ExtractWriter) -> None:
        raise AssertionError("written again")

    write(folder, never)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_an_extract_of_other_settings_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    write(folder)
    before = hashes(folder)
    with pytest.raises(FileExistsError, match=r"another simulated extract \(version '1', not '2'; patients 3, not 4\)"):
        write(folder, version="2", patients=4)
    with pytest.raises(FileExistsError, match=r"release None, not '3\.1'"):
        write(folder, release="3.1")
    assert hashes(folder) == before


@pytest.mark.parametrize("place", ["own", "own/thesis.txt"])
def test_anything_else_is_not_overwritten(tmp_path: Path, place: str) -> None:
    thesis = tmp_path / "own" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(FileExistsError, match="holds no simulated extract"):
        write(tmp_path / place)
    assert hashes(tmp_path) == {"own/thesis.txt": hashlib.sha256(b"years of work").hexdigest()}


def test_a_failure_half_way_leaves_no_folder(tmp_path: Path) -> None:
    def fail(extract: ExtractWriter) -> None:
        rows(extract)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "raw", fail)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    write(tmp_path / "raw")
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


# Writes slowly, or dies, in a process of its own; each that begins to write leaves a line.
PROCESS = """
import sys, time
from pathlib import Path
import polars as pl
from mmnar_lightning.simulation import write_extract
folder, seconds, seed, ending = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def rows(extract):
    with (folder.parent / "begun").open("a") as begun:
        begun.write(ending + "\\n")
    extract.append("people", pl.DataFrame({"person": [1]}))
    time.sleep(seconds)
    if ending == "fails":
        raise SystemExit(3)
settings = {"simulator": "toy", "patients": 1, "seed": seed}
write_extract(folder, settings, "", {"people": ("person",)}, rows, progress=False)
"""


def start(folder: Path, seconds: float, seed: int = 0, ending: str = "succeeds") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROCESS, str(folder), str(seconds), str(seed), ending]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert file.exists(), process.communicate()


def test_a_kill_half_way_leaves_no_folder_and_the_next_run_finishes(tmp_path: Path) -> None:
    process = start(tmp_path / "raw", 60)
    until(tmp_path / "begun", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".raw.partial" / "people.csv.gz").is_file()
    assert not (tmp_path / "raw").exists()
    write(tmp_path / "raw")
    write(tmp_path / "fresh")
    assert hashes(tmp_path / "raw") == hashes(tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "fresh", "raw"]


def test_of_several_at_once_one_writes(tmp_path: Path) -> None:
    first = start(tmp_path / "raw", 2.0)
    until(tmp_path / "begun", first)
    others = [start(tmp_path / "raw", 0) for _ in range(2)] + [start(tmp_path / "raw", 0, seed=1)]
    errors = [process.communicate()[1] for process in (first, *others)]
    assert [process.returncode for process in (first, *others)] == [0, 0, 0, 1], errors
    assert "seed 0, not 1" in errors[-1]
    assert (tmp_path / "begun").read_text() == "succeeds\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "raw"]


def test_who_waits_for_one_that_fails_writes_alone(tmp_path: Path) -> None:
    first = start(tmp_path / "raw", 2.0, ending="fails")
    until(tmp_path / "begun", first)
    others = [start(tmp_path / "raw", 0.2) for _ in range(2)]
    errors = [process.communicate()[1] for process in (first, *others)]
    assert [process.returncode for process in (first, *others)] == [3, 0, 0], errors
    assert (tmp_path / "begun").read_text() == "fails\nsucceeds\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "raw"]
