"""A bounded number of samples, whole patients at a time, the same ones each time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.records import RecordDataModule, keyed_uniform


def draw_patients(data: RecordDataModule, samples: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Keep about `most` samples: all of a patient or none, by a keyed hash; all samples where there are no more.

    Args:
        data: The datamodule that the samples are of.
        samples: int64 [n], rows of the store.
        most: Samples to keep, on average over keys.
    """
    if len(samples) <= most:
        return samples
    patients = data.records.samples["patient"].gather(samples)
    kept = patients.unique().sort()
    kept = kept.filter(keyed_uniform(kept, 0, "evaluation") < most / len(samples))
    drawn: NDArray[np.int64] = samples[patients.is_in(kept.implode()).to_numpy()]
    return drawn
