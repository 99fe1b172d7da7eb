"""Named float features, any of them missing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmnar_lightning.encoders.base import Encoder, statistics
from mmnar_lightning.records import Elements, Inputs, Modality


class VectorEncoder(Encoder):
    """Standardise, fill, indicate, and pass through an MLP: e = LN(W₂ Drop(GELU(LN(W₁ u)))).

    u = [x̃; 1 − k] for each element, x̃ = clip((x − μ)/σ, ±c) with μ, σ of training samples and 0 where x was not
    measured, k = 1 where it was. Several elements a sample are averaged before W₂.

    Args:
        modality: Of kind ``vector``, with mean and std.
        width: D.
        hidden: Width of the hidden layers; None takes D.
        depth: Number of hidden layers, ≥ 1.
        dropout: Probability in Drop, after each hidden layer.
        clip: c > 0, in standard deviations: one wild value does not rule a patient.
        hours_before: Append log(1 + hours/24), and whether the hours are known, to u; for several elements a sample.

    Raises:
        ValueError: If an option is out of range or the statistics are missing.

    Source: Encoder common to all methods compared here; the indicator as in Lipton, Kale, Wetzel, *Directly Modeling
    Missing Data in Sequences with RNNs*, 2016.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector",)
    default: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modality: Modality,
        width: int,
        *,
        hidden: int | None = None,
        depth: int = 1,
        dropout: float = 0.2,
        clip: float = 5.0,
        hours_before: bool = False,
    ) -> None:
        super().__init__(modality, width)
        if depth < 1 or not clip > 0:
            raise ValueError(f"modality {modality.name!r}: depth must be ≥ 1 and clip > 0, are {depth} and {clip}")
        mean, std = statistics(modality)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.input_width = len(modality.items)
        self.clip, self.hours_before = clip, hours_before
        hidden = hidden or width
        features = 2 * self.input_width + 2 * hours_before
        # no feature at all: one constant column stands in, so that the shapes hold
        self._constant = features == 0
        self.body = nn.Sequential(*_hidden_layers(max(features, 1), hidden, depth, dropout))
        self.project = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode, see `Encoder.forward`.

        Raises:
            ValueError: If the elements' width is not the number of items.
        """
        if not isinstance(elements.values, Tensor) or elements.values.shape[1] != self.input_width:
            raise ValueError(f"a vector modality needs values of width {self.input_width}")
        known = ~elements.values.isnan()
        standard = (elements.values.float() - self.mean.float()) / self.std.float()
        x = torch.where(known, standard.clamp(-self.clip, self.clip), 0.0)
        features = [x, (~known).to(x.dtype)]
        if self.hours_before:
            timed = ~elements.hours_before.isnan()
            hours = torch.where(timed, elements.hours_before, 0.0).clamp(min=0)
            features += [torch.log1p(hours / 24)[:, None], timed.to(x.dtype)[:, None]]
        if self._constant:
            features.append(x.new_ones(len(x), 1))
        h = self.body(torch.cat(features, 1).to(self.project.weight.dtype))
        if len(h) == len(rows):  # one element a sample, the common case
            return self.norm(self.project(h)), Inputs(x, known)
        place = torch.searchsorted(rows, elements.row)
        h = _mean_by(h, torch.ones_like(h[:, :1]), place, len(rows))
        inputs = Inputs(_mean_by(x, known, place, len(rows)), _any_by(known, place, len(rows)))
        return self.norm(self.project(h)), inputs


def _hidden_layers(features: int, hidden: int, depth: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(hidden if i else features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)]
    return layers


def _mean_by(values: Tensor, weight: Tensor, place: Tensor, rows: int) -> Tensor:
    weight = weight.to(values.dtype)
    total = values.new_zeros(rows, values.shape[1]).index_add(0, place, values * weight)
    count = values.new_zeros(rows, weight.shape[1]).index_add(0, place, weight)
    return total / count.clamp(min=1)


def _any_by(flags: Tensor, place: Tensor, rows: int) -> Tensor:
    counted = torch.zeros(rows, flags.shape[1], device=flags.device).index_add(0, place, flags.float())
    return counted > 0
