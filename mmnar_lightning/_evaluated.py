"""Rows of an evaluation pass: collected on each device, then the same on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmnar_lightning.metrics import OutcomeMetrics
from mmnar_lightning.objectives import binary_cross_entropy, masked_mean
from mmnar_lightning.records import PatientBatch, RecordSchema, pattern_id, pattern_names

PREFIXES = {"raw": "", "recalibrated": "recalibrated/", "rectified": "rectified/"}
"""Where the metrics of each kind of probabilities stand."""


@dataclass(frozen=True)
class EvaluatedRows:
    """What a pass over a split said, rows of all devices in the order of the samples, on the CPU.

    Args:
        logits: float32 [n, K], not rectified.
        targets: float32 [n, K], 0 where unlabelled.
        labelled: bool [n, K].
        pattern: int64 [n].
        sample: int64 [n], row in the record store, ascending.
    """

    logits: Tensor
    targets: Tensor
    labelled: Tensor
    pattern: Tensor
    sample: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def metrics(
        self, probabilities: Mapping[str, Tensor], schema: RecordSchema, chosen: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Compute the loss and the metrics of each kind of probabilities.

        Args:
            probabilities: [n, K] by a name of `PREFIXES`.
            schema: For the names of tasks and of the patterns that are most frequent in train.
            chosen: Names of metrics; None for all.
        """
        values = masked_mean(binary_cross_entropy(self.logits, self.targets), self.labelled, counts=_local, dim=0)
        found: dict[str, Tensor] = {"loss": values.mean()}
        for kind, p in probabilities.items():
            # rows of all devices are here already
            metrics = OutcomeMetrics(schema.task_names, pattern_words(schema), chosen, sync_on_compute=False)
            metrics.update(p, self.targets, self.labelled, self.pattern)
            found |= {f"{PREFIXES[kind]}{name}": value for name, value in metrics.compute().items()}
        return found


def pattern_words(schema: RecordSchema) -> dict[int, str]:
    """Names of the patterns that are most frequent in train."""
    return {p: "+".join(pattern_names(p, schema.names)) or "none" for p in schema.patterns}


def _local(count: Tensor) -> Tensor:
    return count.clamp(min=1)


@dataclass
class Collector:
    """Keeps the rows of a pass on the device until it ends: reading them any earlier would make a GPU wait."""

    rows: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, logits: Tensor, batch: PatientBatch) -> None:
        """Keep the rows of a batch."""
        row = (logits.detach().float(), batch.targets, batch.labelled, pattern_id(batch.observed), batch.sample)
        self.rows.append(row)

    def gathered(self) -> EvaluatedRows | None:
        """Return the rows of all devices, None where there are none; every device must call it, and gets the same."""
        if not self.rows:
            return None
        own = tuple(torch.cat(column).cpu() for column in zip(*self.rows, strict=True))
        shards = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shards = [own] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shards, own)
        columns = [torch.cat(column) for column in zip(*shards, strict=True)]
        order = columns[-1].argsort()
        return EvaluatedRows(*(column[order] for column in columns))
