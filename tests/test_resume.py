"""A run that is stopped anywhere and continued is the run that was not stopped, to the last bit."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CONF = Path(__file__).with_name("conf")
# dropout is on everywhere; epoch 0 is a pretraining epoch
SETTINGS = {
    "trainer.max_epochs": 4,
    "model.init_args.pretrain_epochs": 1,
    "model.init_args.anneal_epochs": 2,
    "model.init_args.fusion.init_args.modality_dropout": 0.3,
}
Fit = Callable[..., Any]
Fitted = tuple[list[dict[str, Any]], dict[str, Any], str]


@pytest.fixture(scope="module")
def fit(mmnar: Any, own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit(run_dir, settings, end=…)` continues the run in the folder, or starts it."""
    stores = tmp_path_factory.mktemp("stores")

    def run(run_dir: Path, settings: dict[str, Any] = SETTINGS, conf: str = "tables.yaml", **options: Any) -> Any:
        given = {"data.init_args.root": own_tables, "data.init_args.store": stores, "run_dir": run_dir} | settings
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        command = options.pop("command", ("fit", "--resume", "auto"))
        return mmnar(command[0], "--config", CONF / conf, *words, *command[1:], **options)

    return run


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The run that nothing stops: its trace, what it left, and its metrics on test."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = fit(folder)
    assert done.status == 0, done.out
    checkpoints = left(folder)
    assert fit(folder, command=("test",)).status == 0
    return done.trace, checkpoints, (folder / "metrics-test.json").read_text()


def left(run_dir: Path) -> dict[str, Any]:
    """All that a run's two checkpoints hold, in a form that `==` compares bit by bit."""
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
    found = {}
    for name in ("last", "best"):
        checkpoint = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
        found[name] = plain({key: checkpoint[key] for key in kept})
    return found


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        # the score of the last validation is shown to people only, and not restored
        return {plain(k): plain(v) for k, v in value.items() if k != "current_score"}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    # where the run lies is no part of it
    return re.sub(r"^/.*/checkpoints", "checkpoints", value) if isinstance(value, str) else value


def keyed(trace: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {("step", r["step"]) if "step" in r else ("validation", r["validation"]): r for r in trace}


def assert_same(parts: list[list[dict[str, Any]]], run_dir: Path, whole: Fitted) -> None:
    """Every step and validation is that of the whole run, none is left out, and so are the checkpoints."""
    trace, checkpoints, _ = whole
    expected = keyed(trace)
    seen = set()
    for part in parts:
        for key, record in keyed(part).items():
            assert record == expected[key], key
            seen.add(key)
    assert seen == expected.keys()
    found = left(run_dir)
    for name, checkpoint in checkpoints.items():
        for key, value in checkpoint.items():
            assert found[name][key] == value, (name, key)


def test_the_whole_run_is_what_the_tests_below_suppose(whole: Fitted) -> None:
    steps = [r for r in whole[0] if "step" in r]
    assert len(steps) == 24
    assert [r["pretraining"] for r in steps] == [True] * 6 + [False] * 18
    assert len({r["loss"] for r in steps}) == 24
    assert len([r for r in whole[0] if "validation" in r]) == 4


def test_dropout_is_on_and_random(fit: Fit, whole: Fitted, tmp_path: Path) -> None:
    other = fit(tmp_path / "run", SETTINGS | {"seed_everything": 1, "data.init_args.seed": 0})
    assert {r["loss"] for r in other.trace if "step" in r}.isdisjoint(r["loss"] for r in whole[0] if "step" in r)


@pytest.mark.parametrize(
    ("moment", "count", "how"),
    [
        ("step", 1, "kill"),  # before there is any checkpoint
        ("step", 4, "raise"),  # in a pretraining epoch, a step behind the checkpoint
        ("step_end", 10, "kill"),  # at once after a checkpoint
        ("step_end", 12, "interrupt"),  # right before validation
        ("validation_step", 5, "kill"),  # in the middle of it
        ("validation_end", 2, "kill"),  # the best is chosen, the epoch not over
        ("epoch_end", 3, "raise"),  # the epoch is over, not yet saved
        ("epoch_start", 3, "interrupt"),  # saved
        ("write", 5, "kill"),  # half a checkpoint is on disk
        ("rename", 6, "kill"),
        ("renamed", 7, "kill"),
    ],
)
def test_stopped_and_continued_is_the_same_run(
    moment: str, count: int, how: str, fit: Fit, whole: Fitted, tmp_path: Path
) -> None:
    first = fit(tmp_path / "run", end={"moment": moment, "count": count, "how": how})
    assert first.status == {"kill": -9, "raise": 1, "interrupt": 1}[how], first.out
    second = fit(tmp_path / "run")
    assert second.status == 0, second.out
    assert_same([first.trace, second.trace], tmp_path / "run", whole)


def test_stopped_again_and_again_is_the_same_run(fit: Fit, whole: Fitted, tmp_path: Path) -> None:
    parts = [fit(tmp_path / "run", end={"moment": "step", "count": 5, "how": "kill"}).trace for _ in range(5)]
    done = fit(tmp_path / "run")
    assert done.status == 0, done.out
    assert len(done.trace) < len(whole[0])
    assert_same([*parts, done.trace], tmp_path / "run", whole)


def test_a_run_that_was_moved_is_the_same_run(fit: Fit, whole: Fitted, tmp_path: Path) -> None:
    first = fit(tmp_path / "here", end={"moment": "step", "count": 20, "how": "kill"})
    (tmp_path / "here").rename(tmp_path / "there")
    second = fit(tmp_path / "there")
    assert second.status == 0, second.out
    assert_same([first.trace, second.trace], tmp_path / "there", whole)


def test_a_run_that_is_complete_returns_at_once_and_changes_nothing(fit: Fit, tmp_path: Path) -> None:
    assert fit(tmp_path / "run").status == 0
    before = left(tmp_path / "run")
    again = fit(tmp_path / "run")
    assert (again.status, again.trace) == (0, [])
    assert left(tmp_path / "run") == before


def test_a_run_that_stopped_early_stays_stopped_unless_given_more_patience(fit: Fit, tmp_path: Path) -> None:
    # nothing is learned, so nothing gets better
    settings = {"trainer.max_epochs": 30, "model.init_args.lr": 0.0, "model.init_args.pretrain_epochs": 2}
    first = fit(tmp_path / "run", settings, conf="impatient.yaml")
    assert first.status == 0, first.out
    # two epochs of pretraining that do not count, one that is the best, and two without an improvement
    assert len([r for r in first.trace if "validation" in r]) == 5
    before = left(tmp_path / "run")
    again = fit(tmp_path / "run", settings, conf="impatient.yaml")
    assert (again.status, again.trace) == (0, [])
    assert left(tmp_path / "run") == before
    longer = fit(
        tmp_path / "run", settings, conf="tables.yaml", end={"moment": "epoch_start", "count": 2, "how": "kill"}
    )
    assert [r["validation"] for r in longer.trace if "validation" in r] == [5]


def killed(fit: Fit, whole: Fitted, folder: Path, seconds: list[float]) -> int:
    """Kill a run after each of these times, let it finish, and compare; returns how many kills hit it."""
    settings = SETTINGS | {"data.init_args.store": folder / "stores"}
    parts = [fit(folder / "run", settings, end={"seconds": s}) for s in seconds]
    last = fit(folder / "run", settings)
    assert last.status == 0, last.out
    assert_same([*(part.trace for part in parts), last.trace], folder / "run", whole)
    tested = fit(folder / "run", settings, command=("test",))
    assert tested.status == 0, tested.out
    assert (folder / "run" / "metrics-test.json").read_text() == whole[2]
    return sum(part.status == -9 for part in parts)


def test_killed_at_random_times_is_the_same_run(fit: Fit, whole: Fitted, tmp_path: Path) -> None:
    draw = random.Random(0)
    assert killed(fit, whole, tmp_path, [draw.uniform(0.3, 1.0) for _ in range(3)]) > 0


@pytest.mark.slow
def test_killed_at_many_random_times_is_the_same_run(fit: Fit, whole: Fitted, tmp_path: Path) -> None:
    draw, hits = random.Random(1), 0
    for attempt in range(30):
        # from the preparation of the store to the end of the run, on a slow machine too
        hits += killed(fit, whole, tmp_path / str(attempt), [draw.uniform(0.1, 2.5) for _ in range(3)])
        if hits >= 15:
            break
    assert hits >= 10
