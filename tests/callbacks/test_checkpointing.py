from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmnar_lightning.callbacks import AtomicCheckpointIO, checkpointing

CONF = Path(__file__).parents[1] / "conf"


def test_a_checkpoint_is_written_and_the_one_before_is_kept(tmp_path: Path) -> None:
    writer, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for step in range(3):
        writer.save_checkpoint({"step": step}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert torch.load(path.with_name("last.ckpt.previous"), weights_only=True) == {"step": 1}
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint last\.ckpt: No space left on device"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_random_states_travel_through_a_checkpoint(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), random.random(), np.random.rand(), np.random.normal()]

    draw()
    torch.save(checkpointing._random_state(), tmp_path / "state.pt")
    expected = [draw(), draw()]
    checkpointing._set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(), draw()] == expected


@pytest.fixture(scope="module")
def still(mmnar: Any, own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run that learns nothing, so that its metrics never change: two epochs of pretraining, then until it stops."""
    folder = tmp_path_factory.mktemp("still")
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", folder / "stores")
    model = ("--model.init_args.lr", "0", "--model.init_args.pretrain_epochs", "2")
    epochs = ("--trainer.max_epochs", "30")
    done = mmnar("fit", "--config", CONF / "impatient.yaml", *data, *model, *epochs, "--run_dir", folder / "run")
    assert done.status == 0, done.out
    return folder / "run", done.trace


def test_the_best_is_chosen_after_pretraining(still: tuple[Path, list[dict[str, Any]]]) -> None:
    best = torch.load(still[0] / "checkpoints" / "best.ckpt", weights_only=True)
    # the first that counts: later ones are equal, none is better
    assert best["epoch"] == 2


def test_stopping_counts_no_pretraining(still: tuple[Path, list[dict[str, Any]]]) -> None:
    validations = [r for r in still[1] if "validation" in r]
    assert len({r["metrics"]["val/auroc"] for r in validations}) == 1
    # two of pretraining, the best, and a patience of two
    assert [r["validation"] for r in validations] == [0, 1, 2, 3, 4]


def test_what_chooses_is_what_was_asked_for(still: tuple[Path, list[dict[str, Any]]]) -> None:
    best = torch.load(still[0] / "checkpoints" / "best.ckpt", weights_only=True)
    (state,) = (s for key, s in best["callbacks"].items() if key.startswith("BestCheckpoint"))
    auroc = next(r["metrics"]["val/auroc"] for r in still[1] if r.get("validation") == 2)
    assert float(state["best_model_score"]) == pytest.approx(float.fromhex(auroc))
