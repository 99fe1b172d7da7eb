"""The TensorBoard of a run, and what it holds already."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def board_of(trainer: Trainer) -> TensorBoardLogger | None:
    """The run's TensorBoard on the process that writes; None on the others, and where there is another logger."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def holds(board: TensorBoardLogger, tag: str) -> bool:
    """Whether the run's files have that tag, so that a run that goes on does not write it again.

    Args:
        board: The run's.
        tag: Longer than any other that could hold it, and never part of a text.
    """
    return any(tag.encode() in path.read_bytes() for path in Path(board.log_dir).glob("events.out.tfevents.*"))
