"""A small posterior of a patient's health, to which every observed modality adds its evidence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmnar_lightning.fusion.base import Fused, Fusion, tokens_per_modality
from mmnar_lightning.objectives import Counts, availability_cross_entropy, masked_mean, reconstruction_error
from mmnar_lightning.records import Encoded, FusionShape


class EvidenceFusion(Fusion):
    """Adds up evidence: P = 1 + Σ_{m∈O} λ_m + λ_δ, μ = (Σ_{m∈O} η_m + η_δ) / P, h = MLP([μ; log P]).

    Each modality gives η_m ∈ R^d and λ_m = softplus(·) ≥ 0, linear in its token; the availability pattern is one more
    expert, η_δ and λ_δ from MLP(δ). This is the posterior N(μ, 1/P) of a latent health with prior N(0, I) whose views
    are Gaussian and independent given it, the Bayes-optimal form then; the network learns what it is a posterior of.
    What isn't observed adds nothing. From μ are decoded

    * reconstruction: every observed modality's standardised input, squared error over its known entries, modalities
      that modality dropout hid included; a modality without an input vector gives its token, without gradient, instead.
      `Encoded.weights`, where there are some, weigh its mean.
    * availability: δ, binary cross-entropy: what is known of the health must explain what was ordered. ``posterior``
      decodes all of δ from μ, which has seen δ through the pattern's expert and through who gave evidence: that shapes
      the representation and is no assignment model. ``values`` decodes each δ_m from what the values of the other
      modalities tell of the health, μ^{−m} = Σ_{j∈O∖m} η_j / (1 + Σ_{j∈O∖m} λ_j), without the pattern's expert: what is
      asked for is then never told, an estimate of P(δ_m = 1 | x_{O∖m}).

    Under MNAR the availability and the pattern expert are what carries the information in *who was measured*. What is
    estimated, E[y | x_obs, δ], is identified under any mechanism; a reconstruction of what was not observed is not.

    Args:
        shape: Sizes it is built for.
        latent: d, dimension of the posterior. Small pays.
        pattern: Let the pattern be an expert.
        reconstruction: ``input`` or ``none``.
        availability: What the availability is decoded from: ``posterior``, ``values``, or ``none`` to leave it out.
            True and False, which earlier configs and checkpoints have, are ``posterior`` and ``none``.
        dropout: Probability in the decoders' and the last MLP's hidden layers.
        modality_dropout: See `Fusion`.

    Raises:
        ValueError: If an option is out of range or not one of its choices.

    Source: ours, from the product of experts of Hinton, *Training Products of Experts by Minimizing Contrastive
    Divergence*, 2002, as Wu, Goodman, *Multimodal Generative Models for Scalable Weakly-Supervised Learning*, 2018, use
    it for missing modalities.
    """

    def __init__(
        self,
        shape: FusionShape,
        *,
        latent: int = 16,
        pattern: bool = True,
        reconstruction: Literal["input", "none"] = "input",
        availability: Literal["posterior", "values", "none"] | bool = "posterior",
        dropout: float = 0.0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(shape, modality_dropout=modality_dropout)
        M, D = len(shape.modalities), shape.width
        if latent < 1:
            raise ValueError(f"latent must be at least 1, is {latent}")
        if reconstruction not in ("input", "none"):
            raise ValueError(f"reconstruction {reconstruction!r} is not one of input, none")
        if isinstance(availability, bool):
            availability = "posterior" if availability else "none"
        if availability not in ("posterior", "values", "none"):
            raise ValueError(f"availability {availability!r} is not one of posterior, values, none")
        self.latent = latent
        self.weight = nn.Parameter(torch.randn(M, D, 2 * latent) * D**-0.5)
        self.bias = nn.Parameter(torch.zeros(M, 2 * latent))
        self.pattern = _mlp(M, D, 2 * latent, 0.0) if pattern else None
        self.out = _mlp(2 * latent, D, D, dropout)
        inputs = shape.inputs or (0,) * M
        self.decoders = nn.ModuleList(
            _mlp(latent, D, width or D, dropout) for width in inputs if reconstruction == "input"
        )
        self.availability = None if availability == "none" else _mlp(latent, D, M, dropout)
        self.from_values = availability == "values"

    def forward(self, encoded: Encoded) -> Fused:
        """Fuse, see `Fusion.forward`.

        Views: ``observed`` [B, M]; ``posterior_mean`` and ``posterior_precision`` [B, d]; ``uncertainty`` [B], the mean
        posterior variance over the d dimensions: 1 where nothing is known, no error bar of any outcome;
        ``precision_share`` [B, M], mean of λ_m / P over d, 0 where not shown: what is left of 1 is the prior's and the
        pattern's. Where the availability is decoded from values, ``mean_of_others`` [B, M, d], μ^{−m}.
        """
        slots, observed = self.shown(encoded)
        evidence = torch.einsum("bmd,mdk->bmk", slots, self.weight) + self.bias
        eta, raw = evidence.float().chunk(2, 2)
        there = observed[:, :, None]
        eta, own_precision = torch.where(there, eta, 0.0), torch.where(there, functional.softplus(raw), 0.0)
        total, precision = eta.sum(1), 1 + own_precision.sum(1)
        others = _of_others(eta) / (1 + _of_others(own_precision)) if self.from_values else None
        if self.pattern is not None:
            own, raw = self.pattern(observed.to(self.bias.dtype)).float().chunk(2, 1)
            total, precision = total + own, precision + functional.softplus(raw)
        mean = total / precision
        patient = self.out(torch.cat([mean, precision.log()], 1).to(self.bias.dtype))
        views = {
            "observed": observed,
            "posterior_mean": mean,
            "posterior_precision": precision,
            "uncertainty": (1 / precision.detach()).mean(1),
            "precision_share": (own_precision / precision[:, None]).detach().mean(2),
        }
        if others is not None:
            views["mean_of_others"] = others
        return Fused(patient, views=views)

    def auxiliary(
        self, encoded: Encoded, fused: Fused, targets: Tensor, labelled: Tensor, counts: Counts
    ) -> dict[str, Tensor]:
        """Terms ``reconstruction`` and ``availability``, those that are switched on."""
        mean = fused.views["posterior_mean"].to(self.bias.dtype)
        terms: dict[str, Tensor] = {}
        if self.decoders:
            terms["reconstruction"] = self._reconstruct(encoded, mean, counts)
        if self.availability is not None:
            logits = self.availability(fused.views["mean_of_others"].to(mean.dtype) if self.from_values else mean)
            if self.from_values:
                logits = logits.diagonal(dim1=1, dim2=2)  # δ_m from μ^{−m}
            loss = availability_cross_entropy(logits, encoded.observed)
            terms["availability"] = masked_mean(loss, torch.ones_like(encoded.observed), counts)
        return terms

    def _reconstruct(self, encoded: Encoded, mean: Tensor, counts: Counts) -> Tensor:
        sizes = tokens_per_modality(encoded)
        errors: list[Tensor] = []
        known: list[Tensor] = []
        parts = zip(torch.split(mean[encoded.row], sizes), torch.split(encoded.tokens, sizes), strict=True)
        for m, (at, token) in enumerate(parts):
            inputs = encoded.inputs[m] if encoded.inputs else None
            guess = self.decoders[m](at)
            if self.shape.inputs and self.shape.inputs[m]:
                if inputs is None:
                    raise ValueError(f"modality {m} was declared with an input vector, but its encoder gave none")
                errors.append(reconstruction_error(guess, inputs.values, inputs.known))
                known.append(inputs.known.any(1))
            else:
                errors.append(reconstruction_error(guess, token.detach()))
                known.append(torch.ones(len(token), dtype=torch.bool, device=token.device))
        weight = None if encoded.weights is None else encoded.weights[encoded.row, encoded.modality]
        return masked_mean(torch.cat(errors), torch.cat(known), counts, weight)


def _of_others(parts: Tensor) -> Tensor:
    """Sum over the other modalities, [B, M, d] from [B, M, d]; taking one's own from the whole would leave a trace."""
    others = 1 - torch.eye(parts.shape[1], dtype=parts.dtype, device=parts.device)
    return torch.einsum("bjd,mj->bmd", parts, others)


def _mlp(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))
