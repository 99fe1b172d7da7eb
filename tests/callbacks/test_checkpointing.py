from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer

from mmnar_lightning.callbacks import AtomicCheckpointIO, BestCheckpoint, SelectionStopping, checkpointing
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Modality, RecordSchema, SplitSettings, Task, write_store

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


@pytest.mark.parametrize(
    ("known", "changed", "message"),
    [
        ([], {}, r"val/auroc is not defined on val: a has no positive and no negative sample; b has no positive and"),
        (
            [False],
            {},
            r"a has no positive sample; b has no positive sample; change data\.init_args\.splits\.split_seed,",
        ),
        ([True], {}, r"a has no negative sample; b has no negative sample"),
        (
            [False, True],
            {"monitor": "val/aurocc"},
            r"val/aurocc is not defined on val; what is: val/a.* val/auroc, .* val/loss, ",
        ),
    ],
)
@pytest.mark.parametrize("callback", [BestCheckpoint, SelectionStopping])
def test_a_val_without_what_chooses_says_which_labels_it_lacks(
    callback: Any, known: list[bool], changed: dict[str, Any], message: str, store_datamodule: Any, tmp_path: Path
) -> None:
    n = 120
    split = [("val", "train", "calibration")[k % 3] for k in range(n)]
    of_val: list[bool | None] = [*known] or [None]
    label = [of_val[k // 3 % len(of_val)] if k % 3 == 0 else k % 2 == 0 for k in range(n)]
    samples = {"patient": [f"p{k}" for k in range(n)], "site": ["s"] * n, "prediction_time": [0.0] * n, "split": split}
    labels = {f"label/{task}": pl.Series(label, dtype=pl.Boolean) for task in "ab"}
    schema = RecordSchema((Modality("vitals", "vector", ("x",)),), (Task("a"), Task("b")))
    vitals = {"sample": np.arange(n), "hours_before": np.ones(n, np.float32), "x": np.random.default_rng(0).random(n)}
    elements = {"vitals": pl.DataFrame(vitals)}
    path = write_store(tmp_path, "few", "all", "0" * 16, schema, pl.DataFrame(samples | labels), elements, {})
    data = store_datamodule(path, splits=SplitSettings(by="given"), min_patients=1, batch_size=40)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[callback(**changed)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(MultimodalOutcomeModule(data.schema, width=8), datamodule=data)
