"""Who gets a modality: probabilities from what everyone has, and the weights that undo the selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmnar_lightning.objectives import (
    Counts,
    availability_cross_entropy,
    effective_share,
    inverse_probability_weights,
    masked_mean,
)
from mmnar_lightning.records import Encoded, FusionShape

# Adam moves a parameter by about the learning rate a step, whatever the gradient's size: a logistic regression has to
# get from 0 to its log-odds within the steps that a network is trained for, so its parameters are in units of ten
PACE = 10.0


class AssignmentModel(nn.Module):
    """π_im = σ(a_m + b_m·c_i), logistic in what is observed for everyone, and weights w_im = min(r_m / π_im, clip).

    c_i are the standardised inputs (0 where a value was not measured, with an indicator) of modalities that every
    sample has and that were known before the others were ordered; nothing that δ itself reveals is in it. It is trained
    beside the network on all training samples, which it does not touch: nothing flows back into encoders or weights.

    Reconstruction is only supervised on those for whom a modality was ordered. The weights make them stand for everyone
    *if ordering is ignorable given c*; under MNAR they don't. The probabilities are not cross-fitted: they serve the
    training of a representation, and no estimate may be built on them.

    Args:
        shape: Sizes it is built for.
        given: Names of the modalities that everyone has, with an input vector.
        clip: Greatest weight, ≥ 1.

    Raises:
        ValueError: If `given` is empty, a name is unknown or has no input vector, or the clip is less than 1.

    Source: Seaman, White, *Review of inverse probability weighting for dealing with missing data*, 2013.
    """

    def __init__(self, shape: FusionShape, given: Sequence[str], clip: float = 10.0) -> None:
        super().__init__()
        widths = dict(zip(shape.modalities, shape.inputs or (0,) * len(shape.modalities), strict=True))
        if strange := [name for name in given if not widths.get(name)]:
            usable = ", ".join(name for name, width in widths.items() if width) or "none"
            raise ValueError(
                f"ipw: no modality {strange[0]!r} with an input vector; there are: {usable}. "
                "Name those that every sample has"
            )
        if not given:
            raise ValueError("ipw needs the name of at least one modality that every sample has")
        inverse_probability_weights(torch.ones(1), torch.ones(1), clip)
        self.names, self.clip = shape.modalities, clip
        self.given = [m for m, name in enumerate(shape.modalities) if name in given]
        ordered = torch.tensor([name not in given for name in shape.modalities])
        self.register_buffer("ordered", ordered, persistent=False)
        self.head = nn.Linear(2 * sum(widths[shape.modalities[m]] for m in self.given), len(shape.modalities))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, encoded: Encoded, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh every sample and modality.

        Args:
            encoded: B samples.
            counts: Turns a local count into the denominator over all devices.

        Returns:
            float32 [B, M], weights (1 for what everyone has), without gradient; and the terms ``assignment``,
            the cross-entropy of δ_m to be minimised, and without gradient, for the log, ``ipw_ess/<modality>``, the
            effective sample size as a share of those who have it, and ``ipw_clipped``, the share of clipped weights.

        Raises:
            ValueError: If a sample lacks a modality that everyone is said to have.
        """
        observed, ordered = encoded.observed, self.ordered
        assert isinstance(ordered, Tensor)
        logits = PACE * self.head(self._known_of_everyone(encoded)).float()
        loss = availability_cross_entropy(logits, observed)
        term = masked_mean(loss, ordered.expand_as(observed), counts)
        rows = torch.full((len(self.names),), len(observed), device=observed.device)
        rate = counts(observed.sum(0)) / counts(rows)
        weight = inverse_probability_weights(logits.sigmoid().clamp(min=1e-6), rate, self.clip)
        weight = torch.where(ordered, weight, torch.ones_like(weight))
        share = effective_share(weight, observed)
        clipped = (weight >= self.clip) & observed & ordered
        watched = {f"ipw_ess/{name}": share[m] for m, name in enumerate(self.names) if m not in self.given}
        watched["ipw_clipped"] = clipped.sum() / (observed & ordered).sum().clamp(min=1)
        return weight, {"assignment": term, **watched}

    def _known_of_everyone(self, encoded: Encoded) -> Tensor:
        parts: list[Tensor] = []
        for m in self.given:
            inputs, rows = encoded.inputs[m], len(encoded.observed)
            if inputs is None or len(inputs.values) != rows:
                lacking = rows - (0 if inputs is None else len(inputs.values))
                raise ValueError(
                    f"ipw: {lacking} of {rows} samples lack {self.names[m]!r}, which everyone must have to condition on"
                )
            parts += [inputs.values.detach(), (~inputs.known).to(inputs.values.dtype)]
        return torch.cat(parts, 1).to(self.head.weight.dtype)
