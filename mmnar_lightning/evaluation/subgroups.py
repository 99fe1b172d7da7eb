"""Which subgroups a store offers: those its source declares, and the size of the site."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.metrics.outcomes import FEWEST
from mmnar_lightning.records import RecordDataModule

MOST_GROUPS = 20
"""Largest groups of a variable that are looked at; more would say little of each."""
SITE_SIZES = ((100, "<100"), (500, "100-499"), (2000, "500-1999"))
LARGEST = ">=2000"


def subgroups(data: RecordDataModule, sample: NDArray[np.int64]) -> dict[str, list[str | None]]:
    """Return the group of each sample by variable; None where it is unknown or not among the 20 largest.

    A source declares its subgroups as ``group/…`` columns of the samples (sex, age band, race, insurance, language,
    admission or unit type, ED entry, care limits …); nothing is guessed from names of items. ``site_size`` is the
    number of people that the store holds of a sample's site, where it holds more than one site. Variables are left out
    where fewer than two groups have 10 people.

    Args:
        data: The datamodule.
        sample: int64 [n], rows of the store.
    """
    samples = data.records.samples
    declared = [name for name in samples.columns if name.startswith("group/")]
    columns = {name.removeprefix("group/"): samples[name].cast(pl.String) for name in declared}
    if samples["site"].n_unique() > 1:
        columns.setdefault("site_size", site_size(samples))
    patient = samples["patient"].gather(sample)
    found = {name: _kept(column.gather(sample), patient) for name, column in columns.items()}
    return {name: values for name, values in found.items() if len({v for v in values if v is not None}) > 1}


def site_size(samples: pl.DataFrame) -> pl.Series:
    """Band of the number of people at each sample's site; null where the site is unknown.

    Args:
        samples: Sample rows of a store.
    """
    people = pl.col("patient").n_unique().over("site")
    band: pl.Expr = pl.lit(LARGEST)
    for limit, name in reversed(SITE_SIZES):
        band = pl.when(people < limit).then(pl.lit(name)).otherwise(band)
    return samples.select(site_size=pl.when(pl.col("site").is_not_null()).then(band))["site_size"]


def _kept(labels: pl.Series, patient: pl.Series) -> list[str | None]:
    frame = pl.DataFrame({"label": labels, "patient": patient})
    people = frame.drop_nulls("label").group_by("label").agg(pl.col("patient").n_unique())
    people = people.filter(pl.col("patient") >= FEWEST).sort("patient", "label", descending=[True, False])
    kept = people["label"].head(MOST_GROUPS)
    values: list[str | None] = (
        frame.select(pl.when(pl.col("label").is_in(kept.implode())).then("label")).to_series().to_list()
    )
    return values
