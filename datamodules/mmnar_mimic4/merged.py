"""The structured modalities as one, as the paper has them (S beside the film, the report and the summary)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

Make = Callable[[], pl.DataFrame]


def merged_items(parts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of the merged features, in order: ``{modality}_{item}``, since two modalities may name one alike."""
    return tuple(f"{name}_{item}" for name, items in parts.items() for item in items)


def merged(parts: Mapping[str, Make]) -> pl.DataFrame:
    """Put vectors side by side; what a sample lacks is null.

    Args:
        parts: What makes each vector modality, one row a sample. The first has a row for every sample.

    Returns:
        ``sample``, ``hours_before`` of the first, and `merged_items`, Float32.
    """
    wide: pl.DataFrame | None = None
    for name, make in parts.items():
        frame = make()
        items = [item for item in frame.columns if item not in ("sample", "hours_before")]
        frame = frame.rename({item: f"{name}_{item}" for item in items})
        if wide is None:
            wide = frame
        else:
            later = frame.drop("hours_before")
            wide = wide.join(later, on="sample", how="left", validate="1:1", maintain_order="left")
    assert wide is not None, "there must be something to merge"
    return wide
