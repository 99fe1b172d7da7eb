"""Pictures of a run while it trains, in TensorBoard: calibration, patterns, gates, shifts, precision and recall."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmnar_lightning.callbacks.board import board_of, holds
from mmnar_lightning.callbacks.outcome_rows import (
    OutcomeRows,
    curve_counts,
    mean_views,
    pattern_shifts,
    train_patterns,
)
from mmnar_lightning.fusion.base import SHOWN_VIEWS
from mmnar_lightning.records import RecordDataModule, RecordSchema

DPI = 96
PATTERNS_TAG = "patterns/train"
VIEW_ROWS = 2048


class OutcomeFigures(Callback):
    """Draws val's outcomes every few epochs, and once more when training ends, on one process.

    By task: ``calibration/{task}`` (raw, recalibrated, rectified), ``pattern_rate/{task}`` and
    ``pattern_auroc/{task}`` (label rate and AUROC by pattern, with intervals), and the curves
    ``precision_recall/{task}/{version}``. Over tasks: ``rectifier/shifts``; ``fusion/gate``, ``fusion/attention`` and
    ``fusion/precision_share``, whichever the fusion has, as means by pattern over about 2,048 samples of val, those of
    the process that draws; once, ``patterns/train``.

    No group of fewer than 10 people is shown, and no patient is. Does nothing without TensorBoard. Drawing changes
    nothing in the run: it draws no random number and asks nothing of other processes.

    Args:
        every_n_epochs: Epochs between two drawings.
        share: Highest share of the training time so far that drawing may have taken. An epoch whose drawing would
            exceed it is left out; the last drawing, after the last epoch, never is.
        most: About how many samples of val the figures are of, all of a patient or none.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, every_n_epochs: int = 5, share: float = 0.03, most: int = 20_000) -> None:
        if every_n_epochs < 1 or most < 1 or not 0 < share <= 1:
            raise ValueError(
                f"every_n_epochs and most must be at least 1 and share in (0, 1], not {every_n_epochs}, {most}, {share}"
            )
        self.every_n_epochs, self.share, self.most = every_n_epochs, share, most
        self._began = self._spent = 0.0
        self._cost: float | None = None
        self._step: int | None = None
        self._watch: _Watch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began, self._spent, self._cost, self._step = time.perf_counter(), 0.0, None, None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the fusion."""
        self._let_go()
        fusion = getattr(pl_module, "fusion", None)
        if fusion is not None and trainer.state.fn == "fit" and not trainer.sanity_checking and board_of(trainer):
            self._watch = _Watch(fusion)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch batches that lie evenly in val."""
        if self._watch is not None:
            batches: Any = trainer.num_val_batches
            every = math.ceil(max(1.0, batches[0] * len(batch) / VIEW_ROWS)) if dataloader_idx == 0 else 1
            self._watch.open(dataloader_idx == 0 and batch_idx % every == 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the fusion showed of a batch."""
        if self._watch is not None:
            self._watch.keep(batch.sample, batch.observed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, every few epochs and if there is time for it."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or board_of(trainer) is None:
            return
        if self._watch is not None:
            self._watch.stop()
        self._step = trainer.global_step
        elapsed = time.perf_counter() - self._began
        # the first drawing's cost is not known: it is let be where there would be time for a slow one
        cost = 2.0 if self._cost is None else self._cost
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 and self._spent + cost <= self.share * elapsed:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last epoch, unless it has been drawn."""
        if self._step is not None:
            self._draw(trainer, pl_module)
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the fusion as it was."""
        self._let_go()

    def _let_go(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._watch = None

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the rows of the last validation, unless they are drawn already."""
        board, data, step = board_of(trainer), getattr(trainer, "datamodule", None), self._step
        schema, kept = getattr(module, "schema", None), getattr(module, "evaluated", {}).get("val")
        self._step = None
        if board is None or step is None or kept is None:
            return
        if not isinstance(data, RecordDataModule) or not isinstance(schema, RecordSchema):
            return
        began = time.perf_counter()
        from mmnar_lightning.evaluation.figures import pixels

        rows = OutcomeRows.of(module, kept, data, self.most)
        for tag, figure in self._figures(module, rows, data, board):
            board.experiment.add_image(tag, pixels(figure, dpi=DPI), step, dataformats="HWC")
        for task, version, counts in curve_counts(rows):
            tag = f"precision_recall/{task}/{version}"
            board.experiment.add_pr_curve_raw(tag, *counts, global_step=step, num_thresholds=counts.shape[1])
        board.experiment.flush()
        self._cost = time.perf_counter() - began
        self._spent += self._cost

    def _figures(
        self, module: Any, rows: OutcomeRows, data: RecordDataModule, board: TensorBoardLogger
    ) -> Iterator[tuple[str, Any]]:
        """Figures by tag, one at a time."""
        from mmnar_lightning.evaluation import figures

        schema = rows.schema
        if not holds(board, PATTERNS_TAG):
            yield PATTERNS_TAG, figures.draw_patterns(train_patterns(data, schema), schema.names)
        groups = rows.by_pattern()
        for k, task in enumerate(schema.task_names):
            yield f"calibration/{task}", figures.draw_calibration(rows.calibration(k))
            own = [group for group in groups if group["task"] == task]
            yield f"pattern_rate/{task}", figures.draw_group_metric(own, "rate", "raw")
            yield f"pattern_auroc/{task}", figures.draw_group_metric(own, "auroc", "raw")
        yield "rectifier/shifts", figures.draw_shifts(pattern_shifts(module.rectifier, data, schema))
        kept = [] if self._watch is None else self._watch.kept
        for name, (values, patterns, columns) in mean_views(kept, data, schema).items():
            yield f"fusion/{name}", figures.draw_gates(values, patterns, columns, SHOWN_VIEWS[name])


class _Watch:
    """Keeps what a fusion shows of itself in the batches it is told to, on their device.

    Args:
        fusion: The module's; one that can keep its attention does so while it is watched.
    """

    def __init__(self, fusion: Any) -> None:
        self.kept: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        self._fusion = fusion
        self._attention: bool | None = getattr(fusion, "keep_attention", None)
        self._handle: RemovableHandle | None = fusion.register_forward_hook(self._see)
        self._open = False
        self._seen: dict[str, Tensor] = {}

    def open(self, wanted: bool) -> None:
        """Watch the next batch, or don't."""
        self._open, self._seen = wanted, {}
        if self._attention is not None:
            self._fusion.keep_attention = wanted or self._attention

    def _see(self, module: Any, inputs: Any, fused: Any) -> None:
        if self._open:
            self._seen = {name: fused.views[name].detach() for name in SHOWN_VIEWS if name in fused.views}

    def keep(self, sample: Tensor, observed: Tensor) -> None:
        """Keep what was seen of the batch with these samples [B] and modalities [B, M]."""
        if self._open and self._seen:
            self.kept.append((sample, observed, self._seen))
        self.open(False)

    def stop(self) -> None:
        """Leave the fusion as it was; what was kept stays."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            if self._attention is not None:
                self._fusion.keep_attention = self._attention
