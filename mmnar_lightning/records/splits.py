"""Who is trained on, who is tested: splits by patient, by a keyed hash that other patients can't move."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

SPLITS = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class SplitSettings:
    """How samples are divided into train, val, calibration and test, always whole patients at a time.

    Args:
        by: `patient` draws patients by a keyed hash; `site`, `region` or `year` hold whole groups out for testing;
            `given` takes the `split` column that came with the samples.
        split_seed: Key of the hash. Apart from the training seed, so that changing that one moves nobody.
        folds: Number of disjoint test folds.
        test_fold: Which fold is tested, 0 to folds − 1.
        test_values: Groups to test on when splitting by `site`, `region` or `year` (for instance the later years);
            empty takes the groups whose own hash falls in `test_fold`. Those seen there and elsewhere go to train.
        val: Share of patients outside the test fold for early stopping.
        calibration: Share of patients outside the test fold for the rectifier.

    Raises:
        ValueError: If a share or fold is out of range.
    """

    by: Literal["patient", "site", "region", "year", "given"] = "patient"
    split_seed: int = 0
    folds: int = 5
    test_fold: int = 0
    test_values: tuple[str, ...] = ()
    val: float = 0.125
    calibration: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.test_fold < self.folds or self.folds < 2:
            raise ValueError(
                f"test_fold {self.test_fold} of {self.folds} folds: it must be 0 to folds - 1, folds at least 2"
            )
        if min(self.val, self.calibration) < 0 or self.val + self.calibration >= 1:
            raise ValueError("shares of val and calibration must not be negative and must leave something to train on")


def keyed_uniform(values: Iterable[str], seed: int, purpose: str) -> np.ndarray[Any, Any]:
    """Map each string to [0, 1) by a keyed hash: the same string and key always give the same number."""
    key = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:32]
    drawn = [int.from_bytes(hashlib.blake2b(v.encode(), key=key, digest_size=8).digest()) / 2**64 for v in values]
    return np.asarray(drawn, dtype=np.float64)


def assign_splits(samples: pl.DataFrame, settings: SplitSettings) -> np.ndarray[Any, Any]:
    """Assign each sample to a split: int8 [n], index into `SPLITS`.

    Args:
        samples: Sample rows of a store.
        settings: How to divide.

    Raises:
        ValueError: If the column to split by is absent, a test group does not occur, a given split is unknown, or a
            person would be in two splits.
    """
    people = samples.select("patient").unique().sort("patient")
    # drawn anew for each fold: one unlucky val must not choose the checkpoints of all of them
    share = keyed_uniform(people["patient"], settings.split_seed, f"share {settings.test_fold}")
    people = people.with_columns(pl.Series("share", share))
    if settings.by == "given":
        return _given(samples, people, settings)
    if settings.by == "patient":
        fold = keyed_uniform(people["patient"], settings.split_seed, "fold") * settings.folds
        people = people.with_columns(pl.Series("test", fold.astype(np.int64) == settings.test_fold))
        people = people.with_columns(pl.lit(False).alias("mixed"))
    else:
        people = people.join(_held_out(samples, settings), on="patient", how="left", maintain_order="left")
    split = (
        pl.when(pl.col("mixed"))
        .then(0)
        .when(pl.col("test"))
        .then(3)
        .when(pl.col("share") < settings.val)
        .then(1)
        .when(pl.col("share") < settings.val + settings.calibration)
        .then(2)
        .otherwise(0)
        .cast(pl.Int8)
    )
    return _spread(samples, people.select("patient", split.alias("split")))


def _spread(samples: pl.DataFrame, people: pl.DataFrame) -> np.ndarray[Any, Any]:
    joined = samples.select("patient").join(people, on="patient", how="left", maintain_order="left")
    spread: np.ndarray[Any, Any] = joined["split"].to_numpy()
    return spread


def _held_out(samples: pl.DataFrame, settings: SplitSettings) -> pl.DataFrame:
    column = "site" if settings.by == "site" else f"group/{settings.by}"
    if column not in samples.columns or samples[column].null_count() == samples.height:
        raise ValueError(f"cannot split by {settings.by}: the samples have no {column!r}")
    groups = sorted(samples[column].drop_nulls().unique())
    if settings.test_values:
        strange = sorted(set(settings.test_values) - set(groups))
        if strange:
            raise ValueError(f"cannot split by {settings.by}: {len(strange)} of the test_values do not occur")
        held = list(settings.test_values)
    else:
        fold = keyed_uniform(groups, settings.split_seed, settings.by) * settings.folds
        held = [g for g, f in zip(groups, fold, strict=True) if int(f) == settings.test_fold]
    inside = pl.col(column).is_in(held).fill_null(False)
    return samples.group_by("patient").agg(test=inside.all(), mixed=inside.any() & ~inside.all())


def _given(samples: pl.DataFrame, people: pl.DataFrame, settings: SplitSettings) -> np.ndarray[Any, Any]:
    if "split" not in samples.columns:
        raise ValueError("cannot split by given: the samples have no 'split' column")
    strange = samples.filter(~pl.col("split").is_in(SPLITS) | pl.col("split").is_null()).height
    if strange:
        raise ValueError(f"column 'split' of the samples: {strange} rows are none of {', '.join(SPLITS)}")
    given = samples.group_by("patient").agg(pl.col("split").unique().sort().alias("splits"))
    torn = given.filter(pl.col("splits").list.len() > 1).height
    if torn:
        raise ValueError(f"column 'split' of the samples: {torn} people are in more than one split")
    people = people.join(
        given.select("patient", pl.col("splits").list.first().alias("given")), on="patient", how="left"
    )
    # whoever brings train and test only gets val and calibration drawn from train
    present = set(people["given"].unique())
    lower = 0.0
    split = pl.col("given").replace_strict({s: k for k, s in enumerate(SPLITS)}, return_dtype=pl.Int8)
    for name, part in (("val", settings.val), ("calibration", settings.calibration)):
        if name in present:
            continue
        drawn = (pl.col("given") == "train") & pl.col("share").is_between(lower, lower + part, closed="left")
        split = pl.when(drawn).then(pl.lit(SPLITS.index(name), dtype=pl.Int8)).otherwise(split)
        lower += part
    return _spread(samples, people.select("patient", split.alias("split")))


def calibration_half(patients: pl.Series, split_seed: int) -> np.ndarray[Any, Any]:
    """Whether each patient belongs to calibration B (conformal) rather than A (rectifier): bool [n], by keyed hash."""
    half: np.ndarray[Any, Any] = keyed_uniform(patients, split_seed, "half") >= 0.5
    return half
