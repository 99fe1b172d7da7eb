"""The collapse watch over whole trainings of the shipped configs, read back from what TensorBoard shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmnar_eicu.simulate import simulate

FLOOR = 0.25
"""Least deviation over patients, mean over dimensions. Tokens leave their encoder through a layer norm, so that their
mean square is near 1: at a deviation of 1/4 only 1/16 of it tells patients apart, and the rest says the same of
everyone. h is made of tokens that left a layer norm too. Whole trainings of the defaults stay above 0.6, the collapse
below ends at 0.1 or less (h at 0.2)."""
VIEWS = ("structured", "labs", "notes", "film")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
# few patients, but every epoch of the config's schedule, and every step in the log
SMALL = ("--data.init_args.samples", "600", "--data.init_args.batch_size", "64", "--trainer.log_every_n_steps", "1")
EPOCHS = 20
COLLAPSE = {
    "pretrain_epochs": EPOCHS,  # no outcome loss at all
    "fusion": {
        "class_path": "MMNARFusion",
        "init_args": {
            "reconstruction": "latent",
            "stop_gradient": False,
            "contrast": False,
            "missingness": "none",
            "modality_dropout": 0.0,
        },
    },
    "auxiliary_weights": {"reconstruction": 50.0},
}


def logged(run: Path) -> dict[str, list[float]]:
    """Every logged value of each `train/spread/…`, in order of steps."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("train/spread/"):
                rows = [(event.step, event.value) for event in events.Scalars(tag)]
                found.setdefault(tag.removeprefix("train/spread/"), []).extend(rows)
    return {name: [value for _, value in sorted(rows)] for name, rows in found.items()}


def fitted(mmnar: Any, folder: Path, *arguments: str | Path) -> dict[str, list[float]]:
    done = mmnar("fit", *arguments, "--data.init_args.store", folder / "stores", *QUIET, "--run_dir", folder / "run")
    assert done.status == 0, done.out
    return logged(folder / "run")


def trained(mmnar: Any, folder: Path, epochs: int, overlay: dict[str, Any] | None = None) -> dict[str, list[float]]:
    """Train configs/simulated.yaml, or that with other settings of the model laid over it, without stopping early."""
    laid: tuple[str | Path, ...] = ()
    if overlay is not None:
        path = folder / "overlay.yaml"
        path.write_text(yaml.safe_dump({"model": {"init_args": overlay}}))
        laid = ("--config", path)
    schedule = ("--trainer.max_epochs", str(epochs), "--trainer.min_epochs", str(epochs))
    return fitted(mmnar, folder, "--config", "simulated", *laid, *SMALL, *schedule)


def stays_above(found: dict[str, list[float]], epochs: int) -> None:
    assert set(found) == {*VIEWS, "patient"}
    for name, values in found.items():
        # some 360 patients to train on, in batches of 64: every step is in the log
        assert len(values) == len(found["patient"]) >= 5 * epochs
        assert min(values) > FLOOR, f"{name} fell to {min(values):.3f}"


def test_simulated_does_not_collapse_in_its_first_epochs(mmnar: Any, tmp_path: Path) -> None:
    stays_above(trained(mmnar, tmp_path, 4), 4)


@pytest.mark.slow
def test_simulated_does_not_collapse_over_its_whole_schedule(mmnar: Any, tmp_path: Path) -> None:
    stays_above(trained(mmnar, tmp_path, EPOCHS), EPOCHS)


@pytest.mark.slow
def test_demo_does_not_collapse_over_its_whole_schedule(mmnar: Any, tmp_path: Path) -> None:
    simulate(tmp_path / "extract", patients=300, seed=0, progress=False)
    epochs = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())["trainer"]["max_epochs"]
    where = ("--data.init_args.root", tmp_path / "extract")
    every = ("--trainer.log_every_n_steps", "1", "--trainer.min_epochs", str(epochs))
    found = fitted(mmnar, tmp_path, "--config", "demo", *where, *every)
    assert "patient" in found
    assert len(found) > 3
    for name, values in found.items():
        assert len(values) >= epochs
        # a batch with fewer than two patients who have it says nothing; NaN is not below anything
        known = [value for value in values if value == value]
        assert len(known) > len(values) / 2
        assert min(known) > FLOOR, f"{name} fell to {min(known):.3f}"


@pytest.mark.slow
def test_a_collapse_falls_below_the_floor(mmnar: Any, tmp_path: Path) -> None:
    """Tokens as targets with a gradient through them, a huge weight, and no outcome that would need the patients."""
    found = trained(mmnar, tmp_path, EPOCHS, COLLAPSE)
    for name in VIEWS:
        assert found[name][0] > FLOOR, "it starts as any other"
        assert found[name][-1] < FLOOR
    with pytest.raises(AssertionError, match="fell to 0"):
        stays_above(found, EPOCHS)
