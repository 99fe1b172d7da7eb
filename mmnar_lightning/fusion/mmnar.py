"""Fusion aware of modalities missing not at random: the paper's method."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmnar_lightning.fusion.attention import AttentionBlock
from mmnar_lightning.fusion.base import Fused, Fusion
from mmnar_lightning.fusion.reconstruction import LeaveOneOutReconstruction
from mmnar_lightning.objectives import Counts
from mmnar_lightning.records import Encoded, FusionShape, pattern_id

TABLE_LIMIT = 16


class MMNARFusion(Fusion):
    """Gated tokens, self-attention over what was observed, and a pattern term.

    z = MLP(δ); g_m = σ(W_m z + b_m); t_m = g_m ⊙ e_m + v_m for m ∈ O; pre-norm self-attention blocks over the tokens
    in O and a last layer norm; h = mean over O + p(δ). p is a table of 2^M vectors for small M, else MLP(δ). A row with
    O = ∅ gives a learned vector. The released code cross-attends to copies of one pattern vector; attention over
    identical keys is constant in the query, so that is the additive term p(δ).

    Predicts from (x_obs, δ), so what it estimates, E[y | x_obs, δ], is identified under any missingness mechanism; it
    says nothing about what an unobserved modality would have shown, or would have changed.

    Args:
        shape: Sizes it is built for.
        blocks: Number of attention blocks, ≥ 0.
        heads: Attention heads; must divide D.
        feedforward: Width of the blocks' hidden layer, in D.
        dropout: Probability inside the blocks.
        gates: Use g_m; off, tokens are e_m + v_m.
        pooling: ``mean`` over O, or ``attention``: softmax-weighted by a learned query.
        pattern_term: ``table``, ``mlp``, ``none``, or ``auto``: a table up to `table_limit` modalities, then the MLP.
        table_limit: See `pattern_term`.
        modality_dropout: See `Fusion`.
        reconstruction: What left-out modalities are reconstructed as, see `LeaveOneOutReconstruction`.
        stop_gradient: As there.
        contrast: As there.
        temperature: As there.
        missingness: As there.
        hidden_per_row: As there.
        keep_attention: Add the last block's attention weights to the views.

    Raises:
        ValueError: If an option is out of range or not one of its choices.

    Source: Liang, Pan, Xiong, *Causal Representation Learning from Multimodal Clinical Records under Non-Random
    Modality Missingness*, EMNLP 2025; equations as consistent with its abstract and public code.
    """

    def __init__(
        self,
        shape: FusionShape,
        *,
        blocks: int = 1,
        heads: int = 8,
        feedforward: int = 2,
        dropout: float = 0.2,
        gates: bool = True,
        pooling: Literal["mean", "attention"] = "mean",
        pattern_term: Literal["auto", "table", "mlp", "none"] = "auto",
        table_limit: int = 8,
        modality_dropout: float = 0.0,
        reconstruction: Literal["latent", "input", "none"] = "latent",
        stop_gradient: bool = True,
        contrast: bool = True,
        temperature: float = 0.1,
        missingness: Literal["pattern", "leave_one_out", "none"] = "pattern",
        hidden_per_row: int | None = None,
        keep_attention: bool = False,
    ) -> None:
        super().__init__(shape, modality_dropout=modality_dropout)
        M, D = len(shape.modalities), shape.width
        if pooling not in ("mean", "attention"):
            raise ValueError(f"pooling {pooling!r} is not one of mean, attention")
        self.condition = nn.Sequential(nn.Linear(M, D), nn.GELU(), nn.Linear(D, D))
        # W_m z + b_m for all m in one product; a modality that no row of a batch has still gets its (zero) gradient
        self.gate = nn.Linear(D, M * D) if gates else None
        self.modality = nn.Parameter(torch.randn(M, D) * 0.02)
        self.empty = nn.Parameter(torch.randn(D) * 0.02)
        self.blocks = nn.ModuleList(AttentionBlock(D, heads, feedforward, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(D)
        self.query = nn.Parameter(torch.zeros(D)) if pooling == "attention" else None
        self.pattern = _pattern_term(pattern_term, M, D, table_limit)
        self.keep_attention = keep_attention
        self.leave_one_out = LeaveOneOutReconstruction(
            shape,
            target=reconstruction,
            stop_gradient=stop_gradient,
            contrast=contrast,
            temperature=temperature,
            missingness=missingness,
            hidden_per_row=hidden_per_row,
        )

    def forward(self, encoded: Encoded) -> Fused:
        """Fuse, see `Fusion.forward`.

        Views: ``observed`` [B, M]; ``condition`` [B, D], z; ``gate`` [B, M], mean of g_m over D, 0 where not shown;
        with `keep_attention` ``attention`` [B, M, M] (query, key), 0 outside O × O.
        """
        slots, observed = self.shown(encoded)
        z, gate, tokens = self._tokens(slots, observed)
        views = {"observed": observed, "condition": z}
        if gate is not None:
            views["gate"] = gate.detach().mean(2) * observed
        patient = self._attend(tokens, observed, views if self.keep_attention else None)
        return Fused(patient, views=views)

    def fuse(self, slots: Tensor, observed: Tensor) -> Tensor:
        """Fuse rows given as slots, as leaving one out does.

        Args:
            slots: float [V, M, D], tokens; slots outside `observed` are not read.
            observed: bool [V, M].

        Returns:
            float [V, D].
        """
        _, _, tokens = self._tokens(slots, observed)
        return self._attend(tokens, observed)

    def auxiliary(
        self, encoded: Encoded, fused: Fused, targets: Tensor, labelled: Tensor, counts: Counts
    ) -> dict[str, Tensor]:
        """Terms ``reconstruction``, ``contrast``, ``missingness``, those that are switched on."""
        shown, z = fused.views["observed"], fused.views["condition"]
        terms: dict[str, Tensor] = self.leave_one_out(encoded, shown, fused.patient, z, self.fuse, counts)
        return terms

    def _tokens(self, slots: Tensor, observed: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        z = self.condition(observed.to(self.modality.dtype))
        # nothing that is not shown may be read: not by a value, not by a NaN
        slots = slots.masked_fill(~observed[:, :, None], 0.0)
        if self.gate is None:
            return z, None, slots + self.modality
        gate = self.gate(z).view(slots.shape).sigmoid()
        return z, gate, gate * slots + self.modality

    def _attend(self, x: Tensor, observed: Tensor, views: dict[str, Tensor] | None = None) -> Tensor:
        present = observed.any(1, keepdim=True)
        # a row without keys attends to all its (empty) slots, which is finite, and is replaced below
        keys = observed | ~present
        for i, block in enumerate(self.blocks):
            if views is not None and i == len(self.blocks) - 1 and isinstance(block, AttentionBlock):
                views["attention"] = block.weights(x, keys).detach() * (observed[:, :, None] & observed[:, None, :])
            x = block(x, keys)
        x = self.norm(x)
        if self.query is None:
            share = keys / keys.sum(1, keepdim=True)
        else:
            scores = (x @ self.query).float() * x.shape[-1] ** -0.5
            share = scores.masked_fill(~keys, -torch.inf).softmax(1)
        h = (x * share[:, :, None].to(x.dtype)).sum(1)
        if isinstance(self.pattern, nn.Embedding):
            h = h + self.pattern(pattern_id(observed))
        elif self.pattern is not None:
            h = h + self.pattern(observed.to(self.modality.dtype))
        return torch.where(present, h, self.empty.to(h.dtype))


def _pattern_term(kind: str, modalities: int, width: int, table_limit: int) -> nn.Module | None:
    if kind not in ("auto", "table", "mlp", "none"):
        raise ValueError(f"pattern_term {kind!r} is not one of auto, table, mlp, none")
    if kind == "auto":
        kind = "table" if modalities <= table_limit else "mlp"
    if kind == "none":
        return None
    if kind == "mlp":
        return nn.Sequential(nn.Linear(modalities, width), nn.GELU(), nn.Linear(width, width))
    if modalities > TABLE_LIMIT:
        raise ValueError(
            f"a pattern table for {modalities} modalities has 2^{modalities} rows; at most {TABLE_LIMIT} fit"
        )
    table = nn.Embedding(2**modalities, width)
    # a pattern never met in training adds nothing
    nn.init.zeros_(table.weight)
    return table
