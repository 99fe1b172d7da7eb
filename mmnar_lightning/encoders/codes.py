"""Sets of codes: diagnoses, drugs, paths of a note."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmnar_lightning.encoders.base import Encoder, statistics
from mmnar_lightning.records import UNKNOWN, Elements, Inputs, Modality


class CodesEncoder(Encoder):
    """Embedding bag: e = LN(W₂ Drop(GELU(LN(W₁ Σ_j a_j E[c_j])))).

    Mean: a_j = ω_j / Σ ω; sum: a_j = ω_j; ω_j = 2^(−hours_j / half_life), or 1 without decay and where the hours are
    unknown. Index 0, the unknown code, is embedded like any other: that something rare was recorded is information.
    The standardised input is the multi-hot vector of the codes a sample has, clip((x − p)/σ, ±c), p the share of
    training samples with the code.

    Args:
        modality: Of kind ``codes``, items the vocabulary with ``<unknown>`` first, with mean (shares) and std.
        width: D.
        hidden: Width of embedding and hidden layer; None takes D.
        dropout: Probability in Drop.
        pooling: ``mean`` or ``sum`` over the codes.
        half_life: Hours after which a code weighs half; None weighs all alike.
        clip: c > 0, in standard deviations; a rare code would be hundreds of them.
        inputs: Give the standardised multi-hot vector, which reconstruction needs; costs R × V floats.

    Raises:
        ValueError: If an option is out of range, the vocabulary doesn't start with ``<unknown>``, or the statistics are
            missing.

    Source: Encoder common to all methods compared here.
    """

    kinds: ClassVar[tuple[str, ...]] = ("codes",)
    default: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modality: Modality,
        width: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.2,
        pooling: Literal["mean", "sum"] = "sum",
        half_life: float | None = None,
        clip: float = 5.0,
        inputs: bool = True,
    ) -> None:
        super().__init__(modality, width)
        if pooling not in ("mean", "sum"):
            raise ValueError(f"modality {modality.name!r}: pooling {pooling!r} is not one of mean, sum")
        if not clip > 0 or (half_life is not None and not half_life > 0):
            raise ValueError(
                f"modality {modality.name!r}: clip and half_life must be positive, are {clip} and {half_life}"
            )
        if not modality.items or modality.items[0] != UNKNOWN:
            raise ValueError(
                f"modality {modality.name!r}: the vocabulary must start with {UNKNOWN}; it is fitted on training"
            )
        mean, std = statistics(modality)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.input_width = len(modality.items) if inputs else 0
        self.pooling, self.half_life, self.clip = pooling, half_life, clip
        hidden = hidden or width
        self.embedding = nn.Embedding(len(modality.items), hidden)
        self.body = nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Sequential(nn.Linear(hidden, width), nn.LayerNorm(width))

    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode, see `Encoder.forward`.

        Raises:
            ValueError: If the values are not code indices.
        """
        codes = self._codes(elements)
        place = torch.searchsorted(rows, elements.row)
        table = self.embedding.weight
        weight = self._weights(elements)
        if self.pooling == "mean":
            total = weight.new_zeros(len(rows)).index_add(0, place, weight)
            weight = weight / total[place]
        first = torch.searchsorted(elements.row, rows)
        bag = functional.embedding_bag(codes, table, first, mode="sum", per_sample_weights=weight.to(table.dtype))
        inputs = self._multi_hot(codes, place, len(rows)) if self.input_width else None
        return self.head(self.body(bag)), inputs

    def unknown_counts(self, elements: Elements) -> tuple[Tensor, int]:
        """Count code occurrences outside the training vocabulary, which all map to index 0.

        Returns:
            Their number (an int64 scalar, on the device), and the number of all occurrences. Sum both over batches:
            their ratio is the share of unknown codes.
        """
        codes = self._codes(elements)
        return (codes == 0).sum(), len(codes)

    @staticmethod
    def _codes(elements: Elements) -> Tensor:
        if not isinstance(elements.values, Tensor) or elements.values.is_floating_point():
            raise ValueError("a codes modality needs int64 indices into its vocabulary")
        return elements.values

    def _weights(self, elements: Elements) -> Tensor:
        if self.half_life is None:
            return torch.ones_like(elements.hours_before, dtype=torch.float32)
        hours = elements.hours_before.float().nan_to_num(0.0).clamp(min=0)
        # 60 half-lives are as good as never, and stay above underflow
        return torch.exp(-math.log(2) * (hours / self.half_life).clamp(max=60))

    def _multi_hot(self, codes: Tensor, place: Tensor, rows: int) -> Inputs:
        share, std = self.mean.float(), self.std.float()
        present = torch.zeros(rows, self.input_width, device=codes.device)
        present = present.index_put((place, codes), torch.ones((), device=codes.device))
        standard = ((present - share) / std).clamp(-self.clip, self.clip)
        return Inputs(standard, torch.ones_like(standard, dtype=torch.bool))
