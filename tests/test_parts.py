from __future__ import annotations

import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from mmnar_lightning._parts import as_part, build_part
from mmnar_lightning.fusion import ConcatFusion, Fusion, MMNARFusion
from mmnar_lightning.records import FusionShape

SHAPE = FusionShape(8, ("a", "b"), (3, 3), 1)
PATH = "mmnar_lightning.fusion.mmnar.MMNARFusion"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (MMNARFusion, {"class_path": PATH, "init_args": {}}),
        (partial(MMNARFusion, blocks=2), {"class_path": PATH, "init_args": {"blocks": 2}}),
        ({"class_path": PATH}, {"class_path": PATH, "init_args": {}}),
        ({"class_path": PATH, "init_args": None}, {"class_path": PATH, "init_args": {}}),
        ({"class_path": PATH, "init_args": {"blocks": 2}}, {"class_path": PATH, "init_args": {"blocks": 2}}),
    ],
)
def test_a_part_in_any_form_becomes_plain_and_can_be_built(given: Any, expected: dict[str, Any]) -> None:
    assert as_part(given) == expected
    assert as_part(as_part(given)) == expected
    built = build_part(as_part(given), Fusion, SHAPE)
    assert type(built) is MMNARFusion
    assert len(built.blocks) == expected["init_args"].get("blocks", 1)


def test_what_was_given_is_not_shared_with_what_is_kept() -> None:
    given: dict[str, Any] = {"class_path": PATH, "init_args": {"blocks": 2}}
    as_part(given)["init_args"]["blocks"] = 3
    assert given["init_args"] == {"blocks": 2}


@pytest.mark.parametrize("given", [lambda shape: None, "MMNARFusion", 3, None, {"init_args": {}}])
def test_what_a_checkpoint_could_not_hold_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="a part is a class, a partial of one, or"):
        as_part(given)


def test_a_partial_with_positional_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="keyword arguments only"):
        as_part(partial(MMNARFusion, SHAPE))


def test_a_class_that_only_exists_here_is_refused() -> None:
    class Local(MMNARFusion):
        pass

    with pytest.raises(ValueError, match="a part is a class"):
        as_part(Local)


def test_a_class_of_main_is_refused() -> None:
    made = type("Mine", (ConcatFusion,), {"__module__": "__main__"})
    with pytest.raises(ValueError, match=r"Mine is defined in __main__.*move it to a module"):
        as_part(made)
    with pytest.raises(ValueError, match="defined in __main__"):
        as_part(partial(made))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.system", "os.system is no Fusion"),
        ("subprocess.Popen", "subprocess.Popen is no Fusion"),
        ("torch.nn.Linear", "torch.nn.Linear is no Fusion"),
        ("mmnar_lightning.fusion.fusions", "fusions is no Fusion"),
        ("mmnar_lightning.fusion.Nothing", "cannot find 'mmnar_lightning.fusion.Nothing'"),
        ("no_such_package.Fusion", "cannot find 'no_such_package.Fusion'"),
        ("MMNARFusion", "cannot find 'MMNARFusion'"),
        ("", "cannot find ''"),
    ],
)
def test_a_checkpoint_can_have_nothing_called_but_a_part(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_part({"class_path": path, "init_args": {}}, Fusion, SHAPE)


def test_an_argument_that_a_part_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot build .*MMNARFusion: .*'colour'"):
        build_part({"class_path": PATH, "init_args": {"colour": "red"}}, Fusion, SHAPE)


def test_a_part_of_somebody_elses_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebody_elses")
    theirs = type("Theirs", (ConcatFusion,), {"__module__": "somebody_elses"})
    monkeypatch.setattr(module, "Theirs", theirs, raising=False)
    monkeypatch.setitem(sys.modules, "somebody_elses", module)
    assert type(build_part(as_part(theirs), Fusion, SHAPE)) is theirs
