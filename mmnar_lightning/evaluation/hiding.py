"""A batch as it would be had a modality not been recorded."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmnar_lightning.records import Elements, PatientBatch


def hide(batch: PatientBatch, modality: str) -> PatientBatch:
    """Drop a modality from all samples: none of its elements is left, and it is observed nowhere.

    Args:
        batch: B samples.
        modality: Name of the modality.

    Raises:
        ValueError: If the batch has no such modality; lists those there are.
    """
    names = list(batch.elements)
    if modality not in names:
        raise ValueError(f"no modality {modality!r}; there are: {', '.join(names)}")
    observed = batch.observed.clone()
    observed[:, names.index(modality)] = False
    return replace(batch, elements=batch.elements | {modality: _none_of(batch.elements[modality])}, observed=observed)


def _none_of(given: Elements) -> Elements:
    def none(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[:0]

    return replace(
        given,
        row=given.row[:0],
        hours_before=given.hours_before[:0],
        values=given.values[:0],
        variable=none(given.variable),
        index=none(given.index),
        part_of=none(given.part_of),
    )
