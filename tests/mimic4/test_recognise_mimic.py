"""A folder of MIMIC-IV is known as one, with its release, its modules and what it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmnar_lightning.extract.recognised import Recognised
from mmnar_mimic4.recognise import recognise
from mmnar_mimic4.simulate import simulate


@pytest.fixture(scope="module")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "extract"
    simulate(folder, patients=20, film_size=32, progress=False)
    return folder


@pytest.fixture
def root(simulated_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(simulated_root, tmp_path / "a" / "mimiciv" / "2.2")


def seen(root: Path) -> Recognised:
    found = recognise(root)
    assert found is not None
    return found


def where(found: Recognised) -> dict[str, Path | None]:
    return {part.name: part.folder for part in found.parts}


@pytest.mark.shared_data
def test_the_demo(demo_root: Path) -> None:
    found = seen(demo_root)
    assert (found.dataset, found.version, found.edition, found.problems) == ("MIMIC-IV", "2.2", "demo", ())
    assert found.size == "67 patients"
    parts = {part.name: (part.found, part.of) for part in found.parts}
    assert parts["hosp"] == parts["icu"] == (5, 5)
    assert (parts["notes"], parts["chest films"]) == ((0, 2), (0, 1))


def test_a_simulated_extract_with_notes_and_films_in_it(root: Path) -> None:
    found = seen(root)
    assert (found.version, found.edition, found.problems) == ("2.2", "simulated", ())
    assert where(found)["notes"] == root
    options = {"--data.init_args.root": str(root), "--data.init_args.cxr_root": str(root / "cxr")}
    words = found.command[4:]
    assert found.command[:4] == ("mmnar", "prepare", "--config", "mimic4")
    assert dict(zip(words[::2], words[1::2], strict=True)) == options


def test_3_1_with_embeddings(tmp_path: Path) -> None:
    simulate(tmp_path / "extract", patients=20, release="3.1", films="embeddings", progress=False)
    found = seen(tmp_path / "extract")
    assert found.version == "3.1"
    assert found.command[-2:] == ("--data.init_args.cxr", "embeddings")


def test_notes_and_films_are_found_beside_it_as_they_are_downloaded(root: Path) -> None:
    files = root.parents[1]
    (files / "mimic-iv-note" / "2.2").mkdir(parents=True)
    (root / "note").rename(files / "mimic-iv-note" / "2.2" / "note")
    (files / "mimic-cxr-jpg").mkdir()
    (root / "cxr").rename(files / "mimic-cxr-jpg" / "2.1.0")
    found = seen(root)
    assert where(found)["notes"] == files / "mimic-iv-note" / "2.2"
    assert where(found)["chest films"] == files / "mimic-cxr-jpg" / "2.1.0"
    assert found.command[-4:] == (
        *("--data.init_args.note_root", str(files / "mimic-iv-note" / "2.2")),
        *("--data.init_args.cxr_root", str(files / "mimic-cxr-jpg" / "2.1.0")),
    )


def test_what_is_missing_is_named(root: Path) -> None:
    shutil.rmtree(root / "icu")
    found = seen(root)
    assert found.problems[0].startswith(f"{root}: missing tables icu/icustays, ")
    assert "physionet.org/content/mimiciv" in found.problems[-1]
    assert found.command == ()
    assert where(found)["icu"] is None


def test_a_release_that_cannot_be_read_says_which_can(root: Path) -> None:
    (root / "core").mkdir()
    (root / "hosp" / "admissions.csv.gz").rename(root / "core" / "admissions.csv.gz")
    found = seen(root)
    assert found.version is None
    (problem,) = found.problems
    assert "layout of MIMIC-IV 1.0" in problem
    assert "use MIMIC-IV 2.2 or 3.1" in problem


def test_the_notes_alone_are_told_from_the_tables(root: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (root / "note").rename(tmp_path / "notes" / "note")
    found = seen(tmp_path / "notes")
    assert found.dataset == "MIMIC-IV-Note"
    assert "--data.init_args.note_root" in found.problems[0]


def test_another_source_is_none(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None
    (tmp_path / "hosp").mkdir()
    assert recognise(tmp_path) is None
