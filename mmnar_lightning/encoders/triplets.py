"""A small transformer over (variable, value, time) triplets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmnar_lightning.encoders.binning import Binned, spans
from mmnar_lightning.encoders.pooling import AttentionPool

# a bucket of rows ends where the next row is shorter than this share of its longest, less a few tokens
SHARE, SLACK = 0.8, 4


class TripletTransformer(nn.Module):
    """u_c = E[variable_c] + f(value_c) + g(log(1 + hours_c)), blocks of self-attention, then attention over c.

    f and g are continuous value embeddings, f(x) = U tanh(W x + b) with √H hidden units. Rows of about the same length
    are computed together and padded to the longest; a padded place is attended to by nothing. A row without triplets
    is 0.

    Args:
        variables: F, ≥ 1.
        hidden: H, divisible by `heads`.
        layers: Number of blocks, ≥ 1.
        heads: Number of attention heads.
        dropout: Probability after attention and in the MLPs.

    Raises:
        ValueError: If `hidden` is not divisible by `heads`, or there is no layer.

    Source: Tipirneni, Reddy, *Self-Supervised Transformer for Sparse and Irregularly Sampled Multivariate Clinical
    Time-Series* (STraTS), 2022; pre-norm blocks are ours.
    """

    def __init__(self, variables: int, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ValueError(f"hidden {hidden} is not divisible by {heads} attention heads")
        if layers < 1:
            raise ValueError(f"layers must be at least 1, is {layers}")
        self.embedding = nn.Embedding(variables, hidden)
        self.value, self.time = _continuous(hidden), _continuous(hidden)
        self.blocks = nn.ModuleList(_Block(hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.pool = AttentionPool(hidden)

    def forward(self, series: Binned) -> Tensor:
        """Encode.

        Args:
            series: C values of R rows, F variables.

        Returns:
            [R, H].
        """
        dtype = self.norm.weight.dtype
        value, hours = series.value.to(dtype)[:, None], torch.log1p(series.hours).to(dtype)[:, None]
        tokens = self.embedding(series.variable) + self.value(value) + self.time(hours)
        if not len(tokens):
            # nothing to attend to: one token stands in, times 0, so that every parameter joins the graph
            silent = self._attend(tokens.new_zeros(1, 1, tokens.shape[1]), torch.ones_like(tokens[:1, :1]).bool())
            joined = 0 * silent.sum() + tokens.sum()
            empty: Tensor = self.pool(tokens, series.place, series.rows) + joined
            return empty
        start, count = spans(series.place, series.rows)
        taken: list[Tensor] = []
        mixed: list[Tensor] = []
        for rows, longest in buckets(count):
            slot = torch.arange(longest, device=count.device)
            there = slot < count[rows][:, None]
            at = torch.where(there, start[rows][:, None] + slot, start[rows][:, None])
            taken.append(at[there])
            mixed.append(self._attend(tokens[at], there)[there])
        place = series.place[torch.cat(taken)]
        pooled: Tensor = self.pool(torch.cat(mixed), place, series.rows)
        return pooled

    def _attend(self, tokens: Tensor, there: Tensor) -> Tensor:
        # without padding there is no mask, and the fastest kernel may be taken
        keys = None if bool(there.all()) else there[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, keys)
        normed: Tensor = self.norm(tokens)
        return normed


def buckets(count: Tensor) -> list[tuple[Tensor, int]]:
    """Divide the rows that have tokens into groups of about the same length.

    Args:
        count: int64 [R], tokens of each row.

    Returns:
        For each group its rows, int64, and the length of its longest, which comes first; the longest groups first.
    """
    order = count.argsort(descending=True, stable=True)
    lengths = count[order].tolist()
    groups: list[tuple[Tensor, int]] = []
    begin = 0
    for k, length in enumerate(lengths):
        if length < SHARE * lengths[begin] - SLACK or not length:
            if k > begin:
                groups.append((order[begin:k], lengths[begin]))
            begin = k
        if not length:
            return groups
    if begin < len(lengths):
        groups.append((order[begin:], lengths[begin]))
    return groups


def _continuous(hidden: int) -> nn.Sequential:
    between = max(1, round(math.sqrt(hidden)))
    return nn.Sequential(nn.Linear(1, between), nn.Tanh(), nn.Linear(between, hidden, bias=False))


class _Block(nn.Module):
    """x ← x + Drop(Attn(LN x)); x ← x + Drop(MLP(LN x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Attend: x [B, T, H], keys bool [B, 1, 1, T], None where all may be attended to."""
        B, T, H = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, T, 3, self.heads, H // self.heads).permute(2, 0, 3, 1, 4)
        # the attention weights are not dropped: on a CPU that costs the fused kernel
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        attended: Tensor = x + self.mlp(x)
        return attended
