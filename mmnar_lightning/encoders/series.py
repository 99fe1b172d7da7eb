"""Irregular series: values of variables at their times, with gaps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmnar_lightning.encoders.base import Encoder, statistics
from mmnar_lightning.encoders.binning import bin_events
from mmnar_lightning.encoders.decay import DecayCell
from mmnar_lightning.encoders.triplets import TripletTransformer
from mmnar_lightning.records import Elements, Inputs, Modality


class SeriesEncoder(Encoder):
    """Standardise, put into steps of time, and read with a recurrent cell or a transformer: e = LN(W Drop(s)).

    x = clip((v − μ)/σ, ±c) for each event, μ and σ of training samples. Events of a variable in one step are averaged.
    s is the state of a `DecayCell` at the prediction time (``grud``), or what a `TripletTransformer` pools
    (``triplets``). The standardised input is the last value of each variable (the largest of several at the last time),
    known where there is one.

    An event of unknown time stands at the oldest known time of its sample. A sample none of whose variables is among
    the items has the token of an empty series. Cost: ``grud`` Σ steps·F and as many calls as the longest sample has
    steps; ``triplets`` Σ (binned values)².

    Args:
        modality: Of kind ``series``, with mean and std of each variable.
        width: D.
        cell: ``grud`` or ``triplets``.
        hidden: Width of the state or of the triplets; None takes D.
        layers: Blocks of the transformer; ``grud`` has one layer.
        heads: Attention heads of the transformer.
        dropout: Probability in Drop, and in the transformer.
        max_events: Binned values of a sample that are read, the latest; None reads all.
        resolution: Length of a step in hours; None makes a step of each distinct time.
        clip: c > 0, in standard deviations.

    Raises:
        ValueError: If an option is out of range or the statistics are missing.

    Source: see `DecayCell` and `TripletTransformer`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    default: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modality: Modality,
        width: int,
        *,
        cell: Literal["grud", "triplets"] = "grud",
        hidden: int | None = None,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.2,
        max_events: int | None = 512,
        resolution: float | None = 1.0,
        clip: float = 5.0,
    ) -> None:
        super().__init__(modality, width)
        if cell not in ("grud", "triplets"):
            raise ValueError(f"modality {modality.name!r}: cell {cell!r} is not one of grud, triplets")
        if not clip > 0 or (resolution is not None and not resolution > 0):
            raise ValueError(
                f"modality {modality.name!r}: clip and resolution must be positive, are {clip} and {resolution}"
            )
        if max_events is not None and max_events < 1:
            raise ValueError(f"modality {modality.name!r}: max_events must be at least 1, is {max_events}")
        mean, std = statistics(modality)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.input_width = len(modality.items)
        self.max_events, self.resolution, self.clip = max_events, resolution, clip
        hidden = hidden or width
        # where no variable was frequent enough, one that nobody has stands in, so that the shapes hold
        self._variables = max(self.input_width, 1)
        self.body: DecayCell | TripletTransformer
        if cell == "grud":
            self.body = DecayCell(self._variables, hidden)
        else:
            self.body = TripletTransformer(self._variables, hidden, layers, heads, dropout)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, width), nn.LayerNorm(width))

    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode, see `Encoder.forward`; a row may have no element.

        Raises:
            ValueError: If the elements are no series.
        """
        value, variable = elements.values, elements.variable
        if variable is None or not isinstance(value, Tensor) or value.ndim != 1:
            raise ValueError("a series modality needs one value and one variable an element")
        place = torch.searchsorted(rows, elements.row)
        x = ((value.float() - self.mean.float()[variable]) / self.std.float()[variable]).clamp(-self.clip, self.clip)
        hours = _timed(elements.hours_before.float(), place, len(rows))
        binned = bin_events(
            place,
            hours,
            variable,
            x,
            rows=len(rows),
            variables=self._variables,
            resolution=self.resolution,
            limit=self.max_events,
        )
        state = self.body(binned)
        token: Tensor = self.head(state.to(self.head[1].weight.dtype))
        return token, self._last(place, hours, variable, x, len(rows))

    def _last(self, place: Tensor, hours: Tensor, variable: Tensor, x: Tensor, rows: int) -> Inputs:
        slot = place * self._variables + variable
        size = rows * self._variables
        latest = hours.new_full((size,), torch.inf).scatter_reduce(0, slot, hours, "amin")
        final = hours == latest[slot]
        last = x.new_full((size,), -torch.inf).scatter_reduce(0, slot[final], x[final], "amax")
        known = latest.isfinite()
        shape = (rows, self._variables)
        values = torch.where(known, last, 0.0).view(shape)[:, : self.input_width]
        return Inputs(values, known.view(shape)[:, : self.input_width])


def _timed(hours: Tensor, place: Tensor, rows: int) -> Tensor:
    """Hours ≥ 0, the unknown ones as the oldest of their row."""
    known = ~hours.isnan()
    hours = torch.where(known, hours, 0.0).clamp(min=0)
    oldest = hours.new_zeros(rows).scatter_reduce(0, place, hours, "amax")
    return torch.where(known, hours, oldest[place])
