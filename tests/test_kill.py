"""A preparation that is killed at any moment is finished by the next one, to the same bytes."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from mmnar_eicu.simulate import simulate


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "eicu"
    simulate(folder, patients=60, seed=1, progress=False)
    return folder


def prepare(mmnar: Any, extract: Path, stores: Path, **options: Any) -> Any:
    data = ("--data", "EICUDataModule", "--data.init_args.root", extract, "--data.init_args.store", stores)
    return mmnar("prepare", *data, **options)


def hashes(stores: Path) -> dict[str, str]:
    """Of every file of the stores, and of the tables cached for the next."""
    files = [p for p in sorted(stores.rglob("*")) if p.is_file() and p.suffix not in (".lock", ".json")]
    manifests = sorted(stores.glob("*/manifest.json"))
    assert manifests
    return {str(p.relative_to(stores)): hashlib.sha256(p.read_bytes()).hexdigest() for p in [*files, *manifests]}


@pytest.fixture(scope="module")
def whole(mmnar: Any, extract: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    stores = tmp_path_factory.mktemp("stores")
    done = prepare(mmnar, extract, stores)
    assert done.status == 0, done.out
    return hashes(stores)


def check(mmnar: Any, extract: Path, stores: Path, whole: dict[str, str], end: dict[str, Any]) -> bool:
    killed: bool = prepare(mmnar, extract, stores, end=end).status == -9
    done = prepare(mmnar, extract, stores)
    assert done.status == 0, done.out
    assert hashes(stores) == whole
    return killed


@pytest.mark.parametrize(("moment", "count"), [("rename", 7), ("renamed", 21)])
def test_killed_around_a_rename(
    moment: str, count: int, mmnar: Any, extract: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    assert check(mmnar, extract, tmp_path, whole, {"moment": moment, "count": count, "how": "kill"})


@pytest.mark.slow
def test_killed_at_random_times(mmnar: Any, extract: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    draw, kills = random.Random(3), 0
    for attempt in range(60):
        kills += check(mmnar, extract, tmp_path / str(attempt), whole, {"seconds": draw.uniform(0.05, 1.2)})
        if kills >= 12:
            break
    assert kills >= 10
