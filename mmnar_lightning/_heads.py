"""From a patient vector to logits: one head a task, and the linear evidence beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmnar_lightning.fusion import tokens_per_modality
from mmnar_lightning.objectives import hierarchical, join_unused
from mmnar_lightning.records import Encoded, RecordSchema


class OutcomeHeads(nn.Module):
    """One adapter and head a task: logit_k = head_k(adapter_k(h)); tasks with a parent also a conditional head.

    Args:
        width: D, width of the patient vector.
        schema: Tasks, their parents, and their prevalence on train, which is where the biases start.
        dropout: Share of the adapter's units that is dropped in training.
    """

    def __init__(self, width: int, schema: RecordSchema, dropout: float) -> None:
        super().__init__()
        self.parents = schema.parents
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
            for _ in schema.tasks
        )
        self.direct = nn.ModuleList(nn.Linear(width, 1) for _ in schema.tasks)
        has_parent = any(p is not None for p in self.parents)
        self.conditional = nn.ModuleList(nn.Linear(width, 1) for _ in schema.tasks) if has_parent else None
        self.mix = nn.Parameter(torch.zeros(len(schema.tasks))) if has_parent else None
        rates = [min(max(t.prevalence if t.prevalence is not None else 0.5, 1e-3), 1 - 1e-3) for t in schema.tasks]
        for k, (head, rate) in enumerate(zip(self.direct, rates, strict=True)):
            nn.init.constant_(head.bias, math.log(rate / (1 - rate)))  # type: ignore[arg-type]
            parent = self.parents[k]
            if self.conditional is not None and parent is not None:
                given = min(max(rate / rates[parent], 1e-3), 1 - 1e-3)
                nn.init.constant_(self.conditional[k].bias, math.log(given / (1 - given)))  # type: ignore[arg-type]

    def forward(self, patient: Tensor) -> Tensor:
        """Turn patient vectors [B, D] into logits [B, K]."""
        adapted = [adapter(patient) for adapter in self.adapters]
        direct = torch.cat([head(a) for head, a in zip(self.direct, adapted, strict=True)], dim=1)
        if self.conditional is None or self.mix is None:
            return direct
        conditional = torch.cat([head(a) for head, a in zip(self.conditional, adapted, strict=True)], dim=1)
        # heads of tasks without a parent take no part; × 0 gives them a gradient on every device
        joined = join_unused(hierarchical(direct, conditional, self.mix, self.parents), [conditional])
        return joined


class LinearEvidence(nn.Module):
    """What each measured value says on its own: c_ik = Σ_{m ∈ O_i} w_mk · x_im over the standardised inputs.

    With the network's logit f it makes logit_ik = b_k + c_ik + s_k (f_ik − b_k), b_k the log-odds on train. w starts at
    0 and has the prior N(0, 1/precision); s starts at 0, so that the network has to earn its share. With some hundred
    patients this is close to a ridge regression, with many thousands the prior no longer matters.

    Args:
        widths: F_m of each modality (0: it has no input vector and takes no part).
        schema: For the log-odds on train.
        precision: Of the prior, in units of samples.

    Source: the residual weight s is that of Bachlechner et al., *ReZero is all you need*, 2021; the penalty that of
    ridge (L2-regularised logistic) regression.
    """

    prior: Tensor

    def __init__(self, widths: Sequence[int], schema: RecordSchema, precision: float) -> None:
        super().__init__()
        rates = torch.tensor([0.5 if t.prevalence is None else t.prevalence for t in schema.tasks])
        self.register_buffer("prior", rates.clamp(1e-3, 1 - 1e-3).logit(), persistent=False)
        K = len(schema.tasks)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(width, K)) for width in widths)
        self.share = nn.Parameter(torch.zeros(K))
        self.precision, self.samples = precision, max(1, schema.samples)

    def forward(self, encoded: Encoded, logits: Tensor) -> Tensor:
        """Add the evidence to the network's logits [B, K]."""
        evidence = torch.zeros_like(logits)
        rows = torch.split(encoded.row, tokens_per_modality(encoded))
        for row, inputs, weight in zip(rows, encoded.inputs, self.weights, strict=True):
            if inputs is not None:
                evidence = evidence.index_add(0, row, (inputs.values @ weight).to(evidence.dtype))
        return self.prior + evidence + self.share * (logits - self.prior)

    def penalty(self) -> Tensor:
        """Return the prior's part of the mean loss a sample: precision / (2 n) · Σ w²."""
        total = torch.stack([weight.square().sum() for weight in self.weights]).sum()
        return total * (self.precision / (2 * self.samples))
