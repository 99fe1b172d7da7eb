"""From several vectors to one by learned attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """s_r = Σ_e α_e x_e over the elements e of row r, α = softmax within the row of wᵀ tanh(V x_e).

    It begins as the plain mean (w = 0). A row with one element is that element.

    Args:
        width: D.

    Source: Ilse, Tomczak, Welling, *Attention-based Deep Multiple Instance Learning*, 2018, equations 7 and 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, values: Tensor, place: Tensor, rows: int) -> Tensor:
        """Pool.

        Args:
            values: [E, D].
            place: int64 [E], the row of each element; every row has at least one.
            rows: R.

        Returns:
            [R, D], of the type of `values`; summed in float32.
        """
        score = self.score(torch.tanh(self.hidden(values))).squeeze(1).float()
        peak = score.new_full((rows,), -torch.inf).scatter_reduce(0, place, score.detach(), "amax")
        weight = torch.exp(score - peak[place])
        share = weight / weight.new_zeros(rows).index_add(0, place, weight)[place]
        pooled = weight.new_zeros(rows, values.shape[1]).index_add(0, place, share[:, None] * values.float())
        return pooled.to(values.dtype)
