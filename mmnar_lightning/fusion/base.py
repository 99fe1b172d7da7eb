"""The interface of fusions, and the registry of those there are."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmnar_lightning.objectives import Counts
from mmnar_lightning.records import Encoded, FusionShape

SHOWN_VIEWS = {
    "gate": "mean gate of each modality",
    "attention": "mean attention that each modality gets",
    "precision_share": "share of the posterior precision",
}
"""Views that can be drawn, and what they are. Float [B, M], 0 where not shown: what each modality brings to a row. Or
[B, M, M]: what it (second) brings to each modality (first). A fusion without any of them has nothing drawn."""


@dataclass(frozen=True)
class Fused:
    """What a fusion makes of a batch.

    Args:
        patient: float [B, D], one vector a sample, for the outcome heads.
        logits: float [B, K] where a method predicts the outcomes itself, else None.
        views: What a method can show of itself, by name, first dimension B. ``observed`` (bool [B, M]) is what it was
            shown: less than the batch's where modalities were dropped in training. ``uncertainty`` (float [B]) goes
            into the predictions. Those of `SHOWN_VIEWS` are drawn in TensorBoard, as means by modality and pattern.
    """

    patient: Tensor
    logits: Tensor | None = None
    views: dict[str, Tensor] = field(default_factory=dict)


class Fusion(nn.Module, ABC):
    """Puts the tokens of what was observed together. A subclass is found by the registry under its class name.

    A row's output depends on its own observed values and pattern only; a row with nothing observed is finite. Every
    parameter gets a gradient from every batch (of zeros where a modality is absent), or DDP would wait for it; what has
    no use in a phase is joined by `mmnar_lightning.objectives.join_unused`.

    Args:
        shape: Sizes it is built for.
        modality_dropout: Probability with which an observed modality is hidden in training, at least one kept; the
            pattern the model sees is then the reduced one.

    Attributes:
        batch_independent: In evaluation a row does not depend on its batch mates.
        needs_complete_rows: Training needs rows in which every modality is observed.
        literal: Reproduces a released implementation with its defects.

    Raises:
        ValueError: If `modality_dropout` is not in [0, 1).
    """

    batch_independent: ClassVar[bool] = True
    needs_complete_rows: ClassVar[bool] = False
    literal: ClassVar[bool] = False

    def __init__(self, shape: FusionShape, *, modality_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout must be in [0, 1), is {modality_dropout}")
        self.shape = shape
        self.modality_dropout = modality_dropout

    @abstractmethod
    def forward(self, encoded: Encoded) -> Fused:
        """Fuse B samples."""

    def auxiliary(
        self, encoded: Encoded, fused: Fused, targets: Tensor, labelled: Tensor, counts: Counts
    ) -> dict[str, Tensor]:
        """Compute the terms, beside the outcomes' loss, that the method trains with.

        The same terms in every batch and on every device, 0 where a batch gives them nothing to do.

        Args:
            encoded: What was fused.
            fused: What `forward` made of it.
            targets: float [B, K].
            labelled: bool [B, K].
            counts: Turns a local count into the denominator over all devices (`global_count`).

        Returns:
            Scalars by name, unweighted; those without gradient are for the log.
        """
        return {}

    def shown(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return tokens [B, M, D], 0 where not shown, and bool [B, M], what is shown after modality dropout."""
        slots, observed = encoded.dense(), encoded.observed
        if self.training and self.modality_dropout:
            observed = drop_modalities(observed, self.modality_dropout)
            slots = slots * observed[:, :, None]
        return slots, observed


def drop_modalities(observed: Tensor, probability: float) -> Tensor:
    """Hide observed modalities at random, never a row's last one.

    Args:
        observed: bool [B, M].
        probability: Of hiding each observed modality; where all of a row would go, one chosen at random stays.

    Returns:
        bool [B, M], a subset of `observed`.
    """
    score = torch.rand(observed.shape, device=observed.device).masked_fill(~observed, -1.0)
    keep = score >= probability
    return observed & (keep | (score == score.amax(1, keepdim=True)))


def tokens_per_modality(encoded: Encoded) -> list[int]:
    """Number of tokens of each modality, in order.

    Read from the shapes of the inputs where all but one modality have them: asking the tensor makes a GPU wait.
    """
    known = [None if i is None else i.values.shape[0] for i in encoded.inputs]
    if len(known) != encoded.observed.shape[1] or known.count(None) > 1:
        return [int(n) for n in encoded.observed.sum(0).tolist()]
    rest = encoded.tokens.shape[0] - sum(n for n in known if n is not None)
    return [rest if n is None else n for n in known]


def fusions() -> dict[str, type[Fusion]]:
    """Return every concrete fusion that has been imported, by class name, sorted."""
    found: dict[str, type[Fusion]] = {}
    waiting = list(Fusion.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if not inspect.isabstract(cls):
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def fusion_class(name: str) -> type[Fusion]:
    """Return the fusion of that class name.

    Raises:
        ValueError: If there is none; lists those there are.
    """
    known = fusions()
    if name not in known:
        raise ValueError(f"no fusion {name!r}; there are: {', '.join(known)}")
    return known[name]
