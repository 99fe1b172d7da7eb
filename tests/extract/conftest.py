from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("toy_extractor.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy data source, from the file that the kill tests run as a script."""
    spec = importlib.util.spec_from_file_location("toy_extractor", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_extractor"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path, toy: ModuleType) -> Path:
    toy.write_extract(tmp_path / "raw")
    return tmp_path / "raw"
