"""The control that every method has to beat."""

from __future__ import annotations

import torch
from torch import nn

from mmnar_lightning.fusion.base import Fused, Fusion
from mmnar_lightning.records import Encoded, FusionShape


class ConcatFusion(Fusion):
    """Concatenation with missing indicator: h = MLP([δ_1 e_1; …; δ_M e_M; δ]), or without δ (zero imputation).

    The zeros are put after the encoders' last layer, so no constant of an encoder leaks. The network can read δ from
    the zeros also without the indicator: neither form is blind to availability. Assumes nothing about the mechanism,
    and predicts E[y | x_obs, δ] as well as its MLP can.

    Args:
        shape: Sizes it is built for.
        layers: Number of hidden layers, ≥ 1.
        dropout: Probability after each hidden layer.
        indicator: Append δ.
        modality_dropout: See `Fusion`.

    Raises:
        ValueError: If `layers` is less than 1.

    Source: Lipton, Kale, Wetzel, *Directly Modeling Missing Data in Sequences with RNNs*, 2016 (the indicator); the
    common control of the compared methods.
    """

    def __init__(
        self,
        shape: FusionShape,
        *,
        layers: int = 1,
        dropout: float = 0.2,
        indicator: bool = True,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(shape, modality_dropout=modality_dropout)
        if layers < 1:
            raise ValueError(f"layers must be at least 1, is {layers}")
        M, D = len(shape.modalities), shape.width
        self.indicator = indicator
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [nn.Linear(D if i else M * (D + indicator), D), nn.LayerNorm(D), nn.GELU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*parts, nn.Linear(D, D))

    def forward(self, encoded: Encoded) -> Fused:
        """Fuse, see `Fusion.forward`. Views: ``observed`` [B, M]."""
        slots, observed = self.shown(encoded)
        x = slots.flatten(1)
        if self.indicator:
            x = torch.cat([x, observed.to(x.dtype)], 1)
        return Fused(self.mlp(x), views={"observed": observed})
