"""Why a modality is absent, as far as that can be told. For reports; never an input of a model."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmnar_lightning.records.store import RecordStore

REASONS = ("not_ordered", "not_collected", "unknown", "unreadable")
MIN_STAYS = 50


def availability_reasons(store: RecordStore, train: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pl.DataFrame:
    """Reason of each absence: `sample`, `modality`, `reason`, one row an unobserved (sample, modality).

    A reason stored with the sample stands. Otherwise a site with at least 50 training samples, none of which has the
    modality, does not collect it; one where some have it did not order it; of smaller sites nothing is known.

    Args:
        store: The record store.
        train: int64 [n], training samples: only their rows, cut at their own prediction times,
            say what a site collects.
    """
    samples, frames = store.samples, []
    inside = np.zeros(len(store), dtype=bool)
    inside[train] = True
    for name in store.schema.names:
        seen = samples.select(
            "sample", "site", pl.col(f"observed/{name}").alias("observed"), pl.Series("train", inside)
        )
        site = seen.filter("train").group_by("site").agg(n=pl.len(), any=pl.col("observed").any())
        stored = f"reason/{name}"
        own = samples.select(
            "sample", (pl.col(stored) if stored in samples.columns else pl.lit(None, pl.String)).alias("own")
        )
        reason = (
            pl.when(pl.col("own").is_not_null())
            .then(pl.col("own"))
            .when(pl.col("n").fill_null(0) < MIN_STAYS)
            .then(pl.lit("unknown"))
            .when(pl.col("any"))
            .then(pl.lit("not_ordered"))
            .otherwise(pl.lit("not_collected"))
        )
        absent = seen.filter(~pl.col("observed")).join(site, on="site", how="left").join(own, on="sample", how="left")
        frames.append(absent.select("sample", pl.lit(name).alias("modality"), reason.alias("reason")).sort("sample"))
    return pl.concat(frames)
