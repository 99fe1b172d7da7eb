"""What is fitted once, after training: the rectifier's ladder on calibration A, the conformal sets on calibration B."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer

from mmnar_lightning.callbacks.checkpointing import AtomicCheckpointIO
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import RecordDataModule


def finish(trainer: Trainer, module: MultimodalOutcomeModule, data: RecordDataModule, path: Path) -> None:
    """Fit the ladder and the conformal sets on a checkpoint's predictions, and write them into it.

    `mmnar fit` does it to ``best.ckpt`` when training has ended. Every process must call it. Running it again changes
    nothing: both are functions of the weights and the calibration patients.

    Args:
        trainer: The one that trained.
        module: The model; afterwards it holds the checkpoint's weights.
        data: The datamodule it was trained with.
        path: The checkpoint; replaced whole, or left as it is.
    """
    # curves over the epochs must not get a point more
    loggers, trainer.loggers = trainer.loggers, []
    module.finishing = True
    try:
        trainer.validate(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    finally:
        module.finishing, trainer.loggers = False, loggers
    if trainer.is_global_zero:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]["_extra_state"] = module.get_extra_state()
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    trainer.strategy.barrier()
