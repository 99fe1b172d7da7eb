"""Leave one modality out, and ask the rest for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmnar_lightning.fusion.base import tokens_per_modality
from mmnar_lightning.objectives import (
    Counts,
    availability_cross_entropy,
    info_nce,
    masked_mean,
    pattern_cross_entropy,
    reconstruction_error,
)
from mmnar_lightning.records import Encoded, FusionShape

PATTERN_LIMIT = 8


@dataclass(frozen=True)
class _LeftOut:
    """V tokens, each left out of its row once, by modality then row."""

    token: Tensor  # int64 [V], index into the tokens
    row: Tensor  # int64 [V]
    modality: Tensor  # int64 [V]
    place: Tensor  # int64 [V], row in the modality's inputs
    weight: Tensor  # float32 [V]
    sizes: list[int]  # how many of each modality


class LeaveOneOutReconstruction(nn.Module):
    """Reconstruction, contrast and missingness from representations that have not seen the modality in question.

    For a row i with |O_i| ≥ 2 and m ∈ O_i: h_i^{−m} = Fusion(tokens, δ_i without m) and ê_im = R_m(h_i^{−m}).

    * reconstruction: mean over (i, m) of ‖ê_im − e_im‖²/D (``latent``), or of the squared error of the standardised
      input x_im over its known entries (``input``; a modality without an input vector keeps the latent target). With
      both sides trainable the encoders can shrink e to win, so e is detached unless `stop_gradient` is off (the paper).
    * contrast: symmetric InfoNCE between projections of ê_im and e_im inside modality m, negatives from all devices.
    * missingness: ``pattern``, cross-entropy of the pattern from z (the paper), over 2^M classes up to M = 8, above
      that over the M bits, which is the same if they are independent given z. ``leave_one_out``, binary cross-entropy
      of δ_m from h^{−m} (from h where m is not observed): an assignment model, it never sees the δ_m it predicts.

    Reconstruction is only ever supervised on those for whom a modality was ordered; under MNAR what it says of the
    others is extrapolation. `Encoded.weights`, where there are some, weigh its mean (not the contrast's), to stand for
    everyone if ordering is ignorable given what they were made of. Where modality dropout hid modalities, they too are
    asked for, from what was shown.

    Args:
        shape: Sizes it is built for.
        target: ``latent``, ``input`` or ``none``.
        stop_gradient: No gradient through the latent target of the reconstruction.
        contrast: Compute the contrast.
        temperature: Of the contrast.
        projection: Width of the contrast's projections; None takes D.
        missingness: ``pattern``, ``leave_one_out`` or ``none``.
        hidden_per_row: Observed modalities of a row left out in a step, drawn at random and weighted so that the
            expectation stays; None leaves out each in turn, which costs |O_i| fusions a row.

    Raises:
        ValueError: If an option is out of range or not one of its choices.

    Source: Liang, Pan, Xiong, *Causal Representation Learning from Multimodal Clinical Records under Non-Random
    Modality Missingness*, EMNLP 2025; input target and leave-one-out missingness are ours.
    """

    def __init__(
        self,
        shape: FusionShape,
        *,
        target: Literal["latent", "input", "none"] = "latent",
        stop_gradient: bool = True,
        contrast: bool = True,
        temperature: float = 0.1,
        projection: int | None = None,
        missingness: Literal["pattern", "leave_one_out", "none"] = "pattern",
        hidden_per_row: int | None = None,
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("reconstruction target", target, ("latent", "input", "none")),
            ("missingness", missingness, ("pattern", "leave_one_out", "none")),
        ):
            if value not in known:
                raise ValueError(f"{what} {value!r} is not one of {', '.join(known)}")
        if hidden_per_row is not None and hidden_per_row < 1:
            raise ValueError(f"hidden_per_row must be at least 1, is {hidden_per_row}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, is {temperature}")
        M, D = len(shape.modalities), shape.width
        inputs = shape.inputs or (0,) * M
        self.stop_gradient, self.temperature, self.hidden_per_row = stop_gradient, temperature, hidden_per_row
        self.missingness = missingness
        self.targets: tuple[str, ...] = tuple(
            "latent" if target == "input" and not width else target for width in inputs
        )
        # R_m by modality; built only where a term reads it: a parameter without use would stop DDP
        self.latent = nn.ModuleDict(
            {str(m): _decoder(D, D) for m in range(M) if contrast or self.targets[m] == "latent"}
        )
        self.input = nn.ModuleDict({str(m): _decoder(D, inputs[m]) for m in range(M) if self.targets[m] == "input"})
        self.project = _decoder(D, projection or D) if contrast else None
        self.availability: nn.Module | None = None
        if missingness == "pattern":
            self.availability = nn.Linear(D, 2**M if M <= PATTERN_LIMIT else M)
        elif missingness == "leave_one_out":
            self.availability = nn.Linear(D, M)

    def forward(
        self,
        encoded: Encoded,
        shown: Tensor,
        patient: Tensor,
        condition: Tensor,
        fuse: Callable[[Tensor, Tensor], Tensor],
        counts: Counts,
    ) -> dict[str, Tensor]:
        """Compute the terms that are switched on.

        Args:
            encoded: N tokens of B rows.
            shown: bool [B, M], what the fusion was shown: `encoded.observed` less modality dropout.
            patient: float [B, D], h of what was shown.
            condition: float [B, D], z.
            fuse: (slots [V, M, D], observed [V, M]) → h [V, D].
            counts: Turns a local count into the denominator over all devices.

        Returns:
            Scalars ``reconstruction``, ``contrast``, ``missingness``.
        """
        terms: dict[str, Tensor] = {}
        if self.latent or self.input or self.missingness == "leave_one_out":
            left = self._choose(encoded)
            rest = shown[left.row].scatter(1, left.modality[:, None], False)
            # all views in one call of the fusion: on a CPU many small calls cost more than the arithmetic
            h = fuse(encoded.dense()[left.row], rest)
            weight = left.weight
            if encoded.weights is not None:
                weight = weight * encoded.weights[left.row, left.modality]
            terms |= self._reconstruct(encoded, h, left, rest.any(1), weight, counts)
            if self.missingness == "leave_one_out":
                terms["missingness"] = self._assignment(encoded.observed, patient, h, left, counts)
        if self.missingness == "pattern" and self.availability is not None:
            logits = self.availability(condition)
            if encoded.observed.shape[1] <= PATTERN_LIMIT:
                loss = pattern_cross_entropy(logits, encoded.observed)
            else:
                loss = availability_cross_entropy(logits, encoded.observed).sum(1)
            terms["missingness"] = masked_mean(loss, torch.ones_like(loss, dtype=torch.bool), counts)
        return terms

    def _choose(self, encoded: Encoded) -> _LeftOut:
        sizes = tokens_per_modality(encoded)
        everyone = torch.arange(encoded.tokens.shape[0], device=encoded.tokens.device)
        if self.hidden_per_row is None:
            place = torch.cat([everyone[:n] for n in sizes])
            weight = torch.ones_like(everyone, dtype=torch.float32)
            return _LeftOut(everyone, encoded.row, encoded.modality, place, weight, sizes)
        observed, k = encoded.observed, self.hidden_per_row
        score = torch.rand(observed.shape, device=observed.device).masked_fill(~observed, -1.0)
        taken = (score.argsort(1, descending=True).argsort(1) < k) & observed
        chosen = everyone[taken[encoded.row, encoded.modality]]
        row, modality = encoded.row[chosen], encoded.modality[chosen]
        start = torch.tensor([0, *sizes], device=chosen.device).cumsum(0)
        number = observed.sum(1)
        # drawn with probability k / |O|: weighted by its inverse, sums have the expectation of leaving out each in turn
        weight = (number / number.clamp(min=1, max=k))[row]
        sizes = [int(n) for n in taken.sum(0).tolist()]
        return _LeftOut(chosen, row, modality, chosen - start[modality], weight, sizes)

    def _reconstruct(
        self, encoded: Encoded, h: Tensor, left: _LeftOut, valid: Tensor, weight: Tensor, counts: Counts
    ) -> dict[str, Tensor]:
        true = encoded.tokens[left.token]
        errors: list[Tensor] = []
        known: list[Tensor] = []
        guesses: list[Tensor] = []
        parts = zip(*(torch.split(t, left.sizes) for t in (h, true, left.place)), strict=True)
        for m, (at, e, place) in enumerate(parts):
            if str(m) in self.latent:
                guesses.append(self.latent[str(m)](at))
            if self.targets[m] == "latent":
                errors.append(reconstruction_error(guesses[-1], e.detach() if self.stop_gradient else e))
                known.append(torch.ones_like(place, dtype=torch.bool))
            elif self.targets[m] == "input":
                inputs = encoded.inputs[m]
                if inputs is None:
                    raise ValueError(f"modality {m} was declared with an input vector, but its encoder gave none")
                errors.append(reconstruction_error(self.input[str(m)](at), inputs.values[place], inputs.known[place]))
                known.append(inputs.known[place].any(1))
        terms: dict[str, Tensor] = {}
        if errors:
            terms["reconstruction"] = masked_mean(torch.cat(errors), valid & torch.cat(known), counts, weight)
        if self.project is not None:
            guess, truth = self.project(torch.cat(guesses)), self.project(true)
            loss = info_nce(guess, truth, left.modality, valid, self.temperature)
            terms["contrast"] = masked_mean(loss, valid, counts, left.weight)
        return terms

    def _assignment(self, observed: Tensor, patient: Tensor, h: Tensor, left: _LeftOut, counts: Counts) -> Tensor:
        if self.availability is None:
            raise ValueError("there is no availability head")
        there = self.availability(h).gather(1, left.modality[:, None]).squeeze(1)
        counted = torch.ones_like(there, dtype=torch.bool)
        seen = availability_cross_entropy(there, counted)
        unseen = availability_cross_entropy(self.availability(patient), torch.zeros_like(observed)).flatten()
        values, mask = torch.cat([seen, unseen]), torch.cat([counted, ~observed.flatten()])
        return masked_mean(values, mask, counts, torch.cat([left.weight, torch.ones_like(unseen)]))


def _decoder(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
