"""Checkpoints that survive a kill, and the choice of the best one."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from typing_extensions import override

from mmnar_lightning.records import RecordDataModule, RecordSchema


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it; the one it replaces is kept as ``NAME.previous``.

    Killed at any moment, or with the disk full, there is a whole checkpoint.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save `checkpoint` under `path`, whole or not at all.

        Raises:
            OSError: If it cannot be written; what was there stays.
        """
        final = Path(path)
        parts = final.with_name(f".{final.name}.writing")
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with parts.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            parts.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"cannot write the checkpoint {final.name}: {error.strerror}", str(final)
            ) from error
        if final.exists():
            previous = final.with_name(f"{final.name}.previous")
            previous.unlink(missing_ok=True)
            os.link(final, previous)
        parts.replace(final)


class OneCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that keeps one file, in a run's folder that may be moved between two sessions."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a run that goes on, its file being here now; without it, begin anew."""
        file = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
        if not file.is_file():
            return
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: str(file) if state_dict[name] else "" for name in paths}
        models = {str(file): score for score in state_dict["best_k_models"].values()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": models, "dirpath": self.dirpath})


class BestCheckpoint(OneCheckpoint):
    """Keeps the checkpoint with the highest ranking metric on val as ``best.ckpt``; pretraining epochs don't count.

    Args:
        monitor: A ranking metric: calibration never chooses a checkpoint, since the rectifier corrects it afterwards.
        mode: Whether more (`max`) or less (`min`) is better.
    """

    def __init__(self, monitor: str = "val/auroc", mode: str = "max") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
            auto_insert_metric_name=False,
            # at the end of the epoch ResumeCheckpoint saves, and must know of this choice
            save_on_train_epoch_end=False,
        )

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the checkpoint if it is the best so far.

        Raises:
            ValueError: If val has not the metric; says which labels val lacks.
        """
        if not getattr(pl_module, "pretraining", False):
            _refuse_absent(trainer, str(self.monitor))
            super().on_validation_end(trainer, pl_module)


class SelectionStopping(EarlyStopping):
    """Early stopping that does not count the pretraining epochs.

    Args:
        monitor: The metric that `BestCheckpoint` monitors.
        mode: Whether more (`max`) or less (`min`) is better.
        patience: Validation epochs without an improvement before training ends.
        min_delta: Least change that is an improvement.
    """

    def __init__(
        self, monitor: str = "val/auroc", mode: str = "max", patience: int = 15, min_delta: float = 0.0
    ) -> None:
        super().__init__(
            monitor=monitor, mode=mode, patience=patience, min_delta=min_delta, check_on_train_epoch_end=False
        )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a run that goes on; the patience is the config's."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once where the run that is resumed had stopped: Lightning forgets it and would train on."""
        exhausted = self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
        if self.wait_count >= self.patience if exhausted else self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop when the metric has not improved for `patience` epochs.

        Raises:
            ValueError: If val has not the metric; says which labels val lacks.
        """
        if not getattr(pl_module, "pretraining", False):
            _refuse_absent(trainer, self.monitor)
            super().on_validation_end(trainer, pl_module)


class ResumeCheckpoint(OneCheckpoint):
    """Keeps ``last.ckpt``, from which a run continues exactly, also in the middle of an epoch.

    The random states of every process go into the checkpoint and are put back before the first batch after a resume.

    Args:
        every_n_steps: Steps between two checkpoints; one more is written at the end of each epoch.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self._random: dict[str, Any] | None = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the random states back, once, after a resume."""
        if self._random is not None:
            _set_random_state(self._random)
            self._random = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, except on the last batch: a run resumed there would skip the epoch's validation."""
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the epoch is not over yet."""

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the epoch, after validation, stopping and the choice of the best."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the random states of all processes."""
        own = _random_state()
        states = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [own] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        return {**super().state_dict(), "random": states}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of this process; with another number of processes, random numbers start anew."""
        states = state_dict.pop("random", [])
        in_use = torch.distributed.is_available() and torch.distributed.is_initialized()
        world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if in_use else (1, 0)
        self._random = states[rank] if len(states) == world else None
        super().load_state_dict(state_dict)


def _refuse_absent(trainer: Trainer, monitor: str) -> None:
    if monitor in trainer.callback_metrics or trainer.state.fn != "fit" or trainer.sanity_checking:
        return
    if getattr(trainer, "fast_dev_run", False):  # nothing is chosen, and a few batches may well lack a class
        return
    data: Any = getattr(trainer, "datamodule", None)
    lacking = _lacking(data) if isinstance(data, RecordDataModule) else {}
    if lacking and len(lacking) == len(data.schema["tasks"]):
        said = "; ".join(f"{task} has no {' and no '.join(classes)} sample" for task, classes in lacking.items())
        raise ValueError(
            f"{monitor} is not defined on val: {said}; change data.init_args.splits.split_seed, enlarge "
            "data.init_args.splits.val, or give more patients"
        )
    known = sorted(n for n in trainer.callback_metrics if n.startswith("val/") and "/pattern/" not in n)
    raise ValueError(f"{monitor} is not defined on val; what is: {', '.join(known) or 'nothing'}")


def _lacking(data: RecordDataModule) -> dict[str, list[str]]:
    """Which labels no sample of val has, by task that lacks any."""
    val = data.records.samples[data.samples_of("val")]
    found = {}
    for task in RecordSchema.from_dict(data.schema).task_names:
        there = set(val[f"label/{task}"].drop_nulls())
        if classes := [word for word, label in (("positive", True), ("negative", False)) if label not in there]:
            found[task] = classes
    return found


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
