"""The interface of encoders, who encodes which kind, and how their tokens are put together."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmnar_lightning.records import Elements, Encoded, Inputs, Modality, PatientBatch, Reader, RecordStore, read


class Encoder(nn.Module, ABC):
    """Turns the elements of one modality into one token for each sample that has it.

    It is called for every batch, also with no rows: a device without a film must still take part in the collective.

    Args:
        modality: What is encoded, with the statistics and the vocabulary fitted on training patients.
        width: D, the width of a token.

    Attributes:
        kinds: Kinds of modality it reads.
        default: Whether `default_encoder` takes it for its kinds.
        input_width: F, the width of the standardised input vector; 0 where there is none.

    Raises:
        ValueError: If the modality is of another kind, or `width` is not positive.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    default: ClassVar[bool] = False
    input_width: int = 0

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        if modality.kind not in self.kinds:
            raise ValueError(
                f"modality {modality.name!r} is of kind {modality.kind!r}; "
                f"{type(self).__name__} reads {', '.join(self.kinds)}"
            )
        if width < 1:
            raise ValueError(f"modality {modality.name!r}: width must be positive, is {width}")
        self.width = width

    @abstractmethod
    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode.

        Args:
            elements: E elements of the modality; each belongs to one of `rows`, E may be 0.
            rows: int64 [R], the batch rows in which the modality is observed, ascending; R may be 0.

        Returns:
            Tokens [R, D], and the standardised inputs ([R, F]), None where `input_width` is 0.
        """

    def prepare(self, store: RecordStore, precision: str = "32-true") -> None:
        """Find, or derive once, what the encoder takes from beside the store (token ids, vectors).

        Args:
            store: Where the elements come from.
            precision: The trainer's, as Lightning names it.
        """

    def reader(self) -> Reader | None:
        """Return what opens its elements' files in the loader's workers (so it can be pickled), None where none do."""
        return None


def statistics(modality: Modality) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the items, each float32 [F].

    Raises:
        ValueError: If there are items without statistics, or a standard deviation is not positive.
    """
    if len(modality.mean) != len(modality.items) or len(modality.std) != len(modality.items):
        raise ValueError(
            f"modality {modality.name!r} has {len(modality.items)} items but no mean and std; they are fitted on "
            "training patients: build the encoder from a fitted schema, not from the store's"
        )
    flat = [item for item, std in zip(modality.items, modality.std, strict=True) if not std > 0]
    if flat:
        raise ValueError(
            f"modality {modality.name!r}: std is not positive for {len(flat)} items, the first {flat[0]!r}"
        )
    return torch.tensor(modality.mean, dtype=torch.float32), torch.tensor(modality.std, dtype=torch.float32)


def encoders() -> dict[str, type[Encoder]]:
    """Return the default encoder class of each kind that has one."""
    found: dict[str, type[Encoder]] = {}
    waiting = list(Encoder.__subclasses__())
    while waiting:
        cls = waiting.pop(0)
        waiting.extend(cls.__subclasses__())
        if cls.__dict__.get("default", False) and not inspect.isabstract(cls):
            found.update(dict.fromkeys(cls.kinds, cls))
    return found


def default_encoder(modality: Modality, width: int) -> Encoder:
    """Build the default encoder of a modality's kind. Type of an encoder factory: `Callable[[Modality, int], Encoder]`.

    Raises:
        ValueError: If its kind has no encoder; lists the kinds that have one.
    """
    known = encoders()
    if modality.kind not in known:
        raise ValueError(
            f"no encoder for kind {modality.kind!r} (modality {modality.name!r}); "
            f"kinds with an encoder: {', '.join(sorted(known))}"
        )
    return known[modality.kind](modality, width)


def encode(encoders: Mapping[str, Encoder] | nn.ModuleDict, batch: PatientBatch) -> Encoded:
    """Encode every modality, in the order of the batch, and pack the tokens by modality, then row.

    Files that no loader has opened are read here.

    Args:
        encoders: One for each modality of the batch, by name.
        batch: B samples.

    Raises:
        ValueError: If a modality has no encoder or an encoder no modality.
    """
    names = list(batch.elements)
    if set(names) != set(encoders.keys()):
        raise ValueError(f"encoders for {', '.join(encoders.keys())}; the batch holds {', '.join(names)}")
    readers = {name: encoders[name].reader() for name in names}  # type: ignore[operator]
    batch = read(batch, {name: reader for name, reader in readers.items() if reader is not None})
    modality, row = batch.observed.T.nonzero(as_tuple=True)
    rows = torch.split(row, batch.observed.sum(0).tolist())
    tokens: list[Tensor] = []
    inputs: list[Inputs | None] = []
    for m, name in enumerate(names):
        token, known = encoders[name](batch.elements[name], rows[m])
        tokens.append(token)
        inputs.append(known)
    return Encoded(torch.cat(tokens), row, modality, batch.observed, tuple(inputs))
