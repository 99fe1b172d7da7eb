"""Which elements of a sample are read where not all are."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nearest(row: Array, hours: Array, most: int) -> Array:
    """Choose the elements of each row that are nearest to the prediction time; unknown hours come last.

    Args:
        row: int64 [E], ascending.
        hours: float32 [E], NaN where unknown.
        most: Elements a row.

    Returns:
        int64 indices of those kept, ascending.
    """
    order = np.lexsort((np.arange(len(row)), np.where(np.isnan(hours), np.inf, hours), row))
    # sorted by row first, so that the place within a row is the distance to its first element
    place = np.arange(len(row)) - np.searchsorted(row, row[order])
    return np.sort(order[place < most])
