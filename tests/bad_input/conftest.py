"""What every bad input meets: the real command, and the checks of how it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmnar_eicu.simulate import simulate
from mmnar_lightning.__main__ import main

# Values that no message, row number or count would hold by chance; cases plant them.
SECRETS = ("sesame-7313-secret", "7313.25")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound extract; cases link its files."""
    folder = tmp_path_factory.mktemp("sound") / "extract"
    simulate(folder, patients=40, seed=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def sound_stores(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores of both cohorts of the sound extract."""
    folder = tmp_path_factory.mktemp("stores")
    for cohort in ("landmark", "unit_discharge"):
        config = _write_config(folder / "c.yaml", {"root": sound, "store": folder / "stores", "cohort": cohort})
        assert main(["prepare", "--config", str(config)]) == 0
    return folder / "stores"


def _write_config(path: Path, init_args: dict[str, Any], class_path: str = "EICUDataModule") -> Path:
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in init_args.items()}
    path.write_text(yaml.safe_dump({"data": {"class_path": class_path, "init_args": plain}}))
    return path


def _contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, hidden ones too; a folder counts by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def write_config() -> Callable[..., Path]:
    """`write_config(path, init_args, class_path="EICUDataModule")` writes a config with only a `data` section."""
    return _write_config


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """`contents(folder)` tells of every file by its hash."""
    return _contents


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """`refused(config)` runs `mmnar prepare`, which must fail, checks how, and returns its one line."""

    def run(config: Path) -> str:
        capsys.readouterr()
        status = main(["prepare", "--config", str(config)])
        out, err = capsys.readouterr()
        assert status != 0
        assert out == "", "something was printed as if it were a result"
        lines = err.splitlines()
        assert [line.startswith("mmnar prepare: error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        assert "Traceback" not in err
        assert not any(secret in err for secret in SECRETS), "the message holds a value"
        assert "\x1b" not in err
        assert "Namespace(" not in err, "the line is for programmers"
        return lines[-1]

    return run
