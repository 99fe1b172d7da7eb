"""A recurrent cell whose memory fades with the time since a variable was last measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmnar_lightning.encoders.binning import Binned, spans

DAY = 24.0


class DecayCell(nn.Module):
    """GRU-D, packed: rows by number of steps, each step computed for the rows that still have one.

    With x the standardised value, m whether it was measured in the step, δ the days since it was last measured before
    the step (since the row's first step where it never was), x' that value:

    γ = exp(−max(0, w ⊙ δ + b)), Γ = exp(−max(0, W_Γ δ + b_Γ)); x̂ = m x + (1 − m) γ x' (the mean is 0); h ← Γ ⊙ h;
    (r, z, c) = W x̂ + V m + b; r ← σ(r + U_r h), z ← σ(z + U_z h), c ← tanh(c + U_c (r ⊙ h)); h ← (1 − z) h + z c.

    After the last step h fades once more, by the time from there to the prediction time. A row without steps is 0.
    All that does not depend on h is computed for all steps at once.

    Args:
        variables: F, ≥ 1.
        hidden: H, width of h.

    Source: Che, Purushotham, Cho, Sontag, Liu, *Recurrent Neural Networks for Multivariate Time Series with Missing
    Values*, 2018; the fading to the prediction time is ours.
    """

    def __init__(self, variables: int, hidden: int) -> None:
        super().__init__()
        self.variables, self.hidden = variables, hidden
        # at first everything halves in a day; the decays of h share that between the variables
        self.value_decay = nn.Parameter(torch.full((variables,), math.log(2)))
        self.value_bias = nn.Parameter(torch.zeros(variables))
        self.state_decay = nn.Linear(variables, hidden)
        nn.init.constant_(self.state_decay.weight, math.log(2) / variables)
        nn.init.zeros_(self.state_decay.bias)
        self.read = nn.Linear(2 * variables, 3 * hidden)
        self.gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.candidate = nn.Linear(hidden, hidden, bias=False)

    def forward(self, series: Binned) -> Tensor:
        """Run over the steps.

        Args:
            series: S steps of R rows, F variables.

        Returns:
            h at the prediction time, float32 [R, H].
        """
        start, count = spans(series.step_place, series.rows)
        drive, keep, ending = self._inputs(series, start, count)
        # whoever has more steps comes first, so that the rows of a step are the first ones
        order = count.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).index_put((order,), torch.arange(len(order), device=order.device))
        number = torch.arange(len(series.step_place), device=order.device) - start[series.step_place]
        by_step = (number * series.rows + rank[series.step_place]).argsort()
        # with no step at all one is computed for no row, so that every parameter joins the graph
        active = torch.bincount(number, minlength=1).tolist()
        h = torch.zeros(series.rows, self.hidden, device=order.device)
        ended: list[Tensor] = []
        parts = zip(torch.split(drive[by_step], active), torch.split(keep[by_step], active), strict=True)
        for driven, kept in parts:
            ended.append(h[len(driven) :])
            h = self._step(h[: len(driven)], driven, kept)
        h = torch.cat([h, *reversed(ended)])[rank]
        faded: Tensor = h * ending
        return faded

    def _inputs(self, series: Binned, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W x̂ + V m + b [S, 3H] and Γ [S, H] of each step, and Γ [R, H] from the last step to the prediction time."""
        hours, row = series.step_hours, series.step_place
        at = (series.step, series.variable)
        x = hours.new_zeros(len(hours), self.variables).index_put(at, series.value)
        here = torch.zeros_like(x, dtype=torch.bool).index_put(at, torch.ones_like(series.step, dtype=torch.bool))
        # the step in which a variable was last measured, of whichever row; -1 where in none
        step = torch.arange(len(hours), device=hours.device)[:, None]
        latest = torch.where(here, step, -1).cummax(0).values if len(hours) else step.expand(-1, self.variables)
        before = torch.cat([latest.new_full((1, self.variables), -1), latest])[:-1]
        first = start[row]
        known, since = self._since(before, first, hours, hours)
        fade = torch.exp(-torch.relu(self.value_decay.float() * since + self.value_bias.float()))
        held = torch.where(known, fade * x.gather(0, before.clamp(min=0)), 0.0)
        read = torch.cat([torch.where(here, x, held), here.to(x.dtype)], 1)
        there = count > 0
        end = (start + count - 1)[there]
        last = x.new_zeros(series.rows, self.variables)
        last = last.index_put((there,), self._since(latest[end], start[there], hours, torch.zeros_like(hours[end]))[1])
        return self.read(read.to(self.read.weight.dtype)), self._fade(since), self._fade(last)

    @staticmethod
    def _since(measured: Tensor, first: Tensor, hours: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each variable was measured in its row, and the days from then, or from the first step, to now."""
        known = measured >= first[:, None]
        return known, (hours[torch.where(known, measured, first[:, None])] - now[:, None]) / DAY

    def _fade(self, since: Tensor) -> Tensor:
        return torch.exp(-torch.relu(self.state_decay(since.to(self.state_decay.weight.dtype)).float()))

    def _step(self, h: Tensor, drive: Tensor, keep: Tensor) -> Tensor:
        h = keep * h
        dtype = self.gates.weight.dtype
        r, z = torch.sigmoid(drive[:, : 2 * self.hidden] + self.gates(h.to(dtype))).chunk(2, 1)
        candidate = torch.tanh(drive[:, 2 * self.hidden :] + self.candidate((r * h).to(dtype)))
        # h itself stays in float32, whatever the layers compute in
        return h + z.float() * (candidate.float() - h)
