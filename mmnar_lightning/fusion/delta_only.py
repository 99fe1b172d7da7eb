"""What availability alone predicts."""

from __future__ import annotations

from torch import nn

from mmnar_lightning.fusion.base import Fused, Fusion
from mmnar_lightning.objectives import join_unused
from mmnar_lightning.records import Encoded, FusionShape


class DeltaOnlyFusion(Fusion):
    """h = MLP(δ): no value is read, only which modalities there are.

    Reported beside every model: δ measures severity and throughput of care, so part of any gain from "modelling
    missingness" is had without a single measurement. It predicts E[y | δ], whatever the mechanism.

    Args:
        shape: Sizes it is built for.
        dropout: Probability after the hidden layer.
        modality_dropout: See `Fusion`.

    Source: Agniel, Kohane, Weber, *Biases in electronic health record data due to processes within the healthcare
    system*, BMJ 2018, where the presence of a laboratory test predicted survival better than its result.
    """

    def __init__(self, shape: FusionShape, *, dropout: float = 0.0, modality_dropout: float = 0.0) -> None:
        super().__init__(shape, modality_dropout=modality_dropout)
        D = shape.width
        self.mlp = nn.Sequential(
            nn.Linear(len(shape.modalities), D),
            nn.LayerNorm(D),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(D, D),
        )

    def forward(self, encoded: Encoded) -> Fused:
        """Fuse, see `Fusion.forward`. Views: ``observed`` [B, M]."""
        _, observed = self.shown(encoded)
        patient = self.mlp(observed.to(encoded.tokens.dtype))
        # the encoders are of no use here, but DDP waits for their gradients
        return Fused(join_unused(patient, [encoded.tokens]), views={"observed": observed})
