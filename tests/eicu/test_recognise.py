"""A folder of eICU-CRD is known as one, with its edition and what it lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmnar_eicu.recognise import recognise
from mmnar_eicu.simulate import simulate


@pytest.fixture(scope="module")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "extract"
    simulate(folder, patients=20, progress=False)
    return folder


@pytest.fixture
def root(simulated_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(simulated_root, tmp_path / "eicu")


@pytest.mark.shared_data
def test_the_demo(demo_root: Path) -> None:
    found = recognise(demo_root)
    assert found is not None
    assert (found.dataset, found.version, found.edition, found.problems) == ("eICU-CRD", "2.0", "demo", ())
    assert found.size == "1,672 unit stays"
    assert all(part.found == part.of for part in found.parts)
    assert found.command == ("mmnar", "prepare", "--config", "eicu", "--data.init_args.root", str(demo_root))


def test_a_simulated_extract(root: Path) -> None:
    found = recognise(root)
    assert found is not None
    assert (found.edition, found.problems) == ("simulated", ())
    (root / "simulation.json").write_text(json.dumps({"other": 1}))
    demo = recognise(root)
    assert demo is not None
    assert demo.edition == "demo", "as few stays as the demo"


def test_what_is_missing_is_named_and_there_is_no_next_command(root: Path) -> None:
    (root / "lab.csv.gz").unlink()
    (root / "note.csv.gz").unlink()
    found = recognise(root)
    assert found is not None
    assert found.command == ()
    assert found.problems[0].startswith(f"{root}: missing tables lab, note ")
    assert "physionet.org/content/eicu-crd" in found.problems[-1]
    assert (found.parts[0].found, found.parts[0].of) == (12, 14)


def test_optional_tables_may_be_absent(root: Path) -> None:
    for name in ("carePlanEOL", "respiratoryCare", "microLab"):
        (root / f"{name}.csv.gz").unlink()
    found = recognise(root)
    assert found is not None
    assert found.problems == ()
    assert [(part.name, part.found, part.of) for part in found.parts[1:]] == [
        ("care limits", 1, 2),
        ("respiratory", 1, 2),
        ("cultures", 0, 1),
    ]


def test_without_its_first_table_it_is_recognised_still(root: Path) -> None:
    (root / "patient.csv.gz").unlink()
    found = recognise(root)
    assert found is not None
    assert "patient" in found.problems[0]
    assert (found.edition, found.size) == ("simulated", "")


def test_fewer_than_ten_stays_are_not_counted_out(root: Path) -> None:
    (root / "patient.csv.gz").unlink()
    (root / "patient.csv").write_text("patientunitstayid\n1\n2\n")
    found = recognise(root)
    assert found is not None
    assert found.size == "< 10 unit stays"
    assert "missing column" in found.problems[0]


def test_another_source_is_none(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None
    # a table of this name is nothing special
    (tmp_path / "patient.csv").write_text("id,age\n1,2\n")
    (tmp_path / "lab.csv").write_text("id,value\n1,2\n")
    assert recognise(tmp_path) is None
