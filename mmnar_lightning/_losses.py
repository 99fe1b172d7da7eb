"""From logits to the loss of each task, and from these to one number."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmnar_lightning.objectives import Counts, binary_cross_entropy, focal, global_count, masked_mean
from mmnar_lightning.records import PatientBatch, RecordSchema

Loss = Literal["bce", "focal"]
Weighting = Literal["fixed", "uncertainty"]


class OutcomeLoss(nn.Module):
    """L = Σ_k w_k L_k, or with learned weights Σ_k w_k (e^(−s_k) L_k + s_k/2), L_k over known labels of all devices.

    s_k is the log-variance of task k, learned from 0 with the network: a task that is hard to predict gets a smaller
    weight, e^(−s_k), and the s_k/2 keeps weights from vanishing. A task without any label in a batch adds nothing.

    Args:
        schema: Tasks, and their prevalence on train.
        kind: ``bce``, or ``focal`` with α from the training prevalence (miscalibrated by construction).
        gamma: γ of the focal loss.
        smoothing: ε of label smoothing.
        weights: w_k by task, 1 where not given.
        weighting: ``fixed`` or ``uncertainty``.

    Raises:
        ValueError: If `kind` or `weighting` is not one of its choices.

    Source: Kendall, Gal, Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics*, 2018, section 3.2, for the learned weights.
    """

    def __init__(
        self,
        schema: RecordSchema,
        kind: Loss = "bce",
        gamma: float = 2.0,
        smoothing: float = 0.0,
        weights: dict[str, float] | None = None,
        weighting: Weighting = "fixed",
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("loss", kind, get_args(Loss)),
            ("task_weighting", weighting, get_args(Weighting)),
        ):
            if value not in known:
                raise ValueError(f"{what} {value!r} is not one of {', '.join(known)}")
        self.kind, self.gamma, self.smoothing = kind, gamma, smoothing
        given = torch.tensor([(weights or {}).get(task, 1.0) for task in schema.task_names])
        self.register_buffer("weights", given, persistent=False)
        rates = [0.5 if t.prevalence is None else t.prevalence for t in schema.tasks]
        self.register_buffer("alpha", 1 - torch.tensor(rates), persistent=False)
        learned = weighting == "uncertainty"
        self.log_variance = nn.Parameter(torch.zeros(len(schema.tasks))) if learned else None

    def forward(
        self, logits: Tensor, batch: PatientBatch, weight: Tensor | None = None, counts: Counts = global_count
    ) -> Tensor:
        """Return L_k [K], the mean of each task's loss over labelled samples: Σ_i v_i l_ik / Σ_i v_i.

        Args:
            logits: float [B, K].
            batch: B samples.
            weight: float [B] ≥ 0, v; None weighs all samples alike.
            counts: Turns a local denominator into that over all devices.
        """
        assert isinstance(self.alpha, Tensor)
        if self.kind == "bce":
            values = binary_cross_entropy(logits, batch.targets, self.smoothing)
        else:
            values = focal(logits, batch.targets, self.gamma, self.alpha, self.smoothing)
        return masked_mean(values, batch.labelled, counts, _by_task(weight, values), dim=0)

    def total(
        self, losses: Tensor, batch: PatientBatch, weight: Tensor | None = None, counts: Counts = global_count
    ) -> Tensor:
        """Return L, given L_k [K] of that batch with these weights."""
        assert isinstance(self.weights, Tensor)
        if self.log_variance is not None:
            # 1 where any device has a label of the task, else 0; on each device its share of that
            ones = torch.ones_like(batch.targets)
            there = masked_mean(ones, batch.labelled, counts, _by_task(weight, ones), dim=0)
            losses = (-self.log_variance).exp() * losses + there * self.log_variance / 2
        return (self.weights * losses).sum()


def _by_task(weight: Tensor | None, values: Tensor) -> Tensor | None:
    return None if weight is None else weight[:, None].expand_as(values)
