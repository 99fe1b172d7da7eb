"""What docs/method.md names is there: code in its tables, switches with their values, configs and tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
WORDS = re.findall(r"`([^`\n]+)`", PAGE)
PRIVATE = ["module", "callbacks.finishing", "_heads", "_losses", "_watch"]
ROOMS = ["callbacks", "encoders", "evaluation", "fusion", "objectives", "records", "rectifier", "simulation"]


def find(name: str) -> Any:
    """Whatever the library calls by that name, or None."""
    for module in modules():
        found = getattr(importlib.import_module(module), name, None)
        if found is not None and not inspect.ismodule(found):
            return found
    return None


@cache
def modules() -> list[str]:
    """Where the library's names are: its rooms, what is in them, and the module."""
    found = [f"mmnar_lightning.{name}" for name in PRIVATE]
    for room in ROOMS:
        package = importlib.import_module(f"mmnar_lightning.{room}")
        found += [package.__name__, *(f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__))]
    return found


def has(owner: Any, attribute: str) -> bool:
    """Whether a class has it, as a field, a property, a parameter, or set when it is made."""
    if hasattr(owner, attribute) or attribute in inspect.signature(owner).parameters:
        return True
    # a dataclass's own `__init__` has no source, but its fields are parameters
    made = "" if is_dataclass(owner) else inspect.getsource(owner)
    return re.search(rf"\bself\.{attribute}\b", made) is not None


def columns(header: str) -> Iterator[str]:
    """Words in code of the table columns with that header."""
    place: int | None = None
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            place = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header in cells:
            place = cells.index(header)
        elif place is not None:
            yield from re.findall(r"`([^`]+)`", cells[place])


NAMES = sorted(set(columns("code")) | {word for word in WORDS if re.fullmatch(r"[A-Z]\w+", word)})
SWITCHES = sorted({word for word in WORDS if re.fullmatch(r"\w+\(.+\)", word)})


def problem(switch: str) -> str:
    """What is wrong with a switch, empty if nothing is."""
    call = ast.parse(switch, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    owner = find(call.func.id)
    if owner is None:
        return f"no {call.func.id}"
    hints = get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    for given in call.keywords:
        if given.arg is None or given.arg not in inspect.signature(owner).parameters:
            return f"{call.func.id} has no {given.arg}"
        value, hint = ast.literal_eval(given.value), hints[given.arg]
        if get_origin(hint) is Literal and value not in get_args(hint):
            return f"{given.arg} is none of {get_args(hint)}"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_in_the_library(name: str) -> None:
    owner, _, attribute = name.partition(".")
    found = find(owner)
    assert found is not None, f"nothing is called {owner}"
    assert not attribute or has(found, attribute), f"{owner} has no {attribute}"


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_a_parameter_that_takes_the_value(switch: str) -> None:
    assert not problem(switch)


@pytest.mark.parametrize("switch", ["MMNARFusion(gate=False)", 'MMNARFusion(pooling="sum")', "NoFusion(gates=False)"])
def test_a_wrong_switch_is_seen(switch: str) -> None:
    assert problem(switch)


def test_names_that_are_not_there_are_seen() -> None:
    assert find("NoFusion") is None
    assert not has(find("Fused"), "vector")
    assert has(find("Conformal"), "alpha")


@pytest.mark.parametrize(
    "path", sorted({word for word in WORDS if re.fullmatch(r"(tests|configs|benchmarks)/\S+", word)})
)
def test_a_file_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_page_has_its_parts() -> None:
    assert len(NAMES) > 50
    assert len(SWITCHES) > 30
    released = PAGE.split("## Differences from its released code")[1].split("\n## ")[0]
    items = re.split(r"^\d\. ", released, flags=re.MULTILINE)[1:]
    assert len(items) == 6
    for item in items:
        assert re.search(r"`tests/\S+\.py`", item), "each defect has a test that is named"


def test_formulas_do_not_break_tables() -> None:
    for line in PAGE.splitlines():
        if line.startswith("|"):
            for formula in re.findall(r"\\\(.*?\\\)", line):
                assert "|" not in formula, formula
