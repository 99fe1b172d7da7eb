"""Pre-norm self-attention over the tokens of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionBlock(nn.Module):
    """x ← x + Drop(Attn(LN x)); x ← x + Drop(MLP(LN x)).

    Args:
        width: D, divisible by `heads`.
        heads: Number of attention heads.
        feedforward: Width of the MLP's hidden layer, in D.
        dropout: Probability in Drop. The attention weights are not dropped: over a handful of tokens that hides whole
            modalities at random, which is modality dropout's task, and on a CPU it costs the fused kernel.

    Raises:
        ValueError: If `width` is not divisible by `heads`.

    Source: Vaswani et al., *Attention Is All You Need*, 2017; pre-norm as in Xiong et al., *On Layer Normalization in
    the Transformer Architecture*, 2020.
    """

    def __init__(self, width: int, heads: int, feedforward: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} attention heads")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, feedforward * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Attend.

        Args:
            x: float [B, T, D].
            keys: bool [B, T], True for tokens that may be attended to; at least one a row.

        Returns:
            float [B, T, D].
        """
        q, k, v = self._project(x)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        attended: Tensor = x + self.mlp(x)
        return attended

    def weights(self, x: Tensor, keys: Tensor) -> Tensor:
        """Return the attention weights [B, T, T] (query, key), mean over heads."""
        q, k, _ = self._project(x)
        scores: Tensor = (q @ k.transpose(-1, -2)).float() * float(q.shape[-1]) ** -0.5
        return scores.masked_fill(~keys[:, None, None, :], -torch.inf).softmax(-1).mean(1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v
