"""A line an epoch, for a fit that is watched through a log file."""

from __future__ import annotations

import logging
import time

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
SHOWN = ("train/loss", "val/loss", "val/auroc")


class EpochLines(Callback):
    """Logs the loss and the mean AUROC of each epoch where a progress bar would be out of place; has no state."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the epoch went; its validation is over by now."""
        if not trainer.is_global_zero:
            return
        found = trainer.callback_metrics
        numbers = [f"{name} {float(found[name]):.4f}" for name in SHOWN if name in found]
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        seconds = f"{time.monotonic() - self._began:.1f} s"
        log.info("  ".join([f"epoch {trainer.current_epoch + 1}{last}", *numbers, seconds]))
