"""What travels from the store to the fusion: packed elements, and packed tokens. Unobserved values have no row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _Packed):
        return value._each(change)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(v, change) for v in value)
    return value


class _Packed:
    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{f.name: _map(getattr(self, f.name), change) for f in fields(self)})  # type: ignore[arg-type]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on `device`."""
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy with every tensor in page-locked memory."""
        return self._each(lambda t: t.pin_memory())


@dataclass(frozen=True)
class Elements(_Packed):
    """All elements of one modality in a batch, packed: an unobserved sample has none.

    Args:
        row: int64 [E], the batch row each element belongs to, ascending.
        hours_before: float32 [E], hours from the element to the prediction time, ≥ 0 (NaN where unknown).
        values: `vector` float32 [E, F] with NaN for a value not measured; `codes` int64 [E], index into the vocabulary
            (0 is ``<unknown>``); `series` float32 [E]; `text` and `image` a tuple of E strings (document, file), or
            what a `Reader` made of them: for `image` uint8 [E, C, H, W], and where `part_of` is given float [V, H],
            V vectors that a frozen backbone made of them.
        variable: `series` only: int64 [E], index into the items.
        index: `text` and `image`: int64 [E], the element's row in the store's file of the modality, by which data
            derived from it (token ids) are found; None where the elements come from no store.
        unreadable: int64 scalar, how many elements a `Reader` left out because they could not be read; None where it
            counts none.
        part_of: int64 [V], the element that each vector in `values` belongs to, ascending; None where `values` are no
            vectors of a frozen backbone.
    """

    row: Tensor
    hours_before: Tensor
    values: Tensor | tuple[str, ...]
    variable: Tensor | None = None
    index: Tensor | None = None
    unreadable: Tensor | None = None
    part_of: Tensor | None = None


@dataclass(frozen=True)
class PatientBatch(_Packed):
    """B samples. Frozen, with `.to()` and `.pin_memory()`, so that Lightning and the loader move it.

    Args:
        elements: Packed elements by modality name, in schema order.
        observed: bool [B, M], True = present.
        targets: float32 [B, K], 0 where unlabelled.
        labelled: bool [B, K], True = the label is known.
        sample: int64 [B], row in the record store.
    """

    elements: dict[str, Elements]
    observed: Tensor
    targets: Tensor
    labelled: Tensor
    sample: Tensor

    def __len__(self) -> int:
        return int(self.sample.shape[0])


# elements whose values are strings → those of them that could be read, with tensors as values, in their order
Reader = Callable[[Elements], Elements]


class IndexReader(ABC):
    """A `Reader` that looks elements up by their `index` alone: no loader takes their strings from the store for it."""

    @abstractmethod
    def __call__(self, elements: Elements) -> Elements:
        """Look elements up; their `values` may be empty."""


def read(batch: PatientBatch, readers: Mapping[str, Reader]) -> PatientBatch:
    """Open what is still a file's name; a sample none of whose elements could be read is not observed.

    Args:
        batch: B samples.
        readers: By modality; what has none, or was read already, stays as it is.
    """
    elements, observed = dict(batch.elements), batch.observed
    for m, (name, given) in enumerate(batch.elements.items()):
        if name not in readers or isinstance(given.values, Tensor):
            continue
        elements[name] = taken = readers[name](given)
        if len(taken.row) < len(given.row):
            observed = observed.clone()
            observed[:, m] = False
            observed[taken.row, m] = True
    return replace(batch, elements=elements, observed=observed)


@dataclass(frozen=True)
class Inputs(_Packed):
    """Standardised input vectors of one modality, one row a sample that has it.

    Args:
        values: float32 [R, F], standardised; 0 where not known.
        known: bool [R, F], True where the value was measured.
    """

    values: Tensor
    known: Tensor


@dataclass(frozen=True)
class Encoded(_Packed):
    """What the encoders hand to a fusion: one token for each observed (sample, modality), packed.

    Args:
        tokens: [N, D], ordered by modality, then row; N is the number of True in `observed`.
        row: int64 [N], batch row of each token.
        modality: int64 [N], modality of each token.
        observed: bool [B, M].
        inputs: Standardised inputs by modality in schema order (None where a kind has none, as raw text).
        weights: float32 [B, M], weights of what is observed in reconstruction, in training alone; None weighs all
            alike. Entries outside `observed` mean nothing.
    """

    tokens: Tensor
    row: Tensor
    modality: Tensor
    observed: Tensor
    inputs: tuple[Inputs | None, ...] = ()
    weights: Tensor | None = None

    def dense(self) -> Tensor:
        """Scatter the tokens to [B, M, D]; slots of unobserved modalities are 0 and must be masked by `observed`."""
        B, M = self.observed.shape
        slots = self.tokens.new_zeros(B, M, self.tokens.shape[1])
        return slots.index_put((self.row, self.modality), self.tokens)
