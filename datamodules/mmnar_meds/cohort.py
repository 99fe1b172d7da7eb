"""Samples: every (subject, prediction time) that some task has a label row for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from mmnar_lightning.extract import Counts, ExtractError
from mmnar_lightning.records import SPLITS as OUR_SPLITS
from mmnar_meds.layout import TaskFiles

KEY = ["subject_id", "prediction_time"]
OLDEST = 90.0
YEAR = 365.25 * 24 * 3600e6
AGE_BANDS = ((18, "0-17"), (45, "18-44"), (65, "45-64"), (75, "65-74"), (85, "75-84"))
SPLIT_NAMES = {"train": "train", "tuning": "val", "held_out": "test"}


def labelled(tasks: Sequence[TaskFiles], tables: Mapping[str, pl.LazyFrame], log: Counts) -> pl.DataFrame:
    """Unite the label rows of all tasks.

    Args:
        tasks: The tasks.
        tables: Their tables by name.
        log: Takes the counts.

    Returns:
        ``subject_id``, ``prediction_time`` and ``label/<task>`` (null where the task has no row or no value), sorted by
        subject and time.

    Raises:
        ExtractError: If a (subject, prediction time) stands in two files of a task, or the labels of a task are not
            binary.
    """
    found = {}
    for task in tasks:
        rows = pl.concat([tables[spec.name] for spec in task.tables]).collect()
        twice = rows.height - rows.select(KEY).unique().height
        if twice:
            raise ExtractError(
                f"labels of task {task.name}: columns {', '.join(KEY)}: {twice} rows repeat a row of another file"
            )
        found[task.name] = rows.select(*KEY, _label(task.name, rows).alias(f"label/{task.name}"))
    every = pl.concat([rows.select(KEY) for rows in found.values()]).unique().sort(KEY)
    for name, rows in found.items():
        every = every.join(rows, on=KEY, how="left", maintain_order="left")
        log.add("labels", f"rows of {name}", rows.height)
    log.add("labels", "subjects at a prediction time", every.height)
    return every


def _label(task: str, rows: pl.DataFrame) -> pl.Expr:
    """The binary label: ``boolean_value``, or where that is empty ``integer_value`` of 0 and 1."""
    if rows["boolean_value"].count() or rows.height == 0:
        return pl.col("boolean_value")
    if rows["integer_value"].count() == 0:
        raise ExtractError(
            f"labels of task {task}: neither boolean_value nor integer_value has a value in its {rows.height} rows; "
            "outcomes that are numbers or categories must be made binary first"
        )
    wrong = rows.filter(~pl.col("integer_value").is_in([0, 1])).height
    if wrong:
        raise ExtractError(f"labels of task {task}: column integer_value: {wrong} rows are neither 0 nor 1")
    return pl.col("integer_value") == 1


def with_people(samples: pl.DataFrame, people: pl.DataFrame, log: Counts) -> pl.DataFrame:
    """Keep samples of subjects that the data know, and add age, sex and the sample's number.

    Args:
        samples: From `labelled`.
        people: ``subject_id``, ``birth``, ``death``, ``female`` of every subject with a row of data.
        log: Takes the counts.

    Returns:
        With ``sample``, ``age`` in years (at most 90) and ``female`` further columns.
    """
    kept = samples.join(people, on="subject_id", how="inner", maintain_order="left")
    log.add("labels", "subjects at a prediction time without a row of data, excluded", samples.height - kept.height)
    log.add("labels", "prediction times after MEDS_DEATH", kept.filter(pl.col("death") < pl.col(KEY[1])).height)
    years = (pl.col("prediction_time") - pl.col("birth")).dt.total_microseconds() / YEAR
    log.add("labels", "prediction times before MEDS_BIRTH, age unknown", kept.filter(years < 0).height)
    return kept.drop("death").with_columns(
        sample=pl.int_range(pl.len(), dtype=pl.Int64),
        age=pl.when(years >= 0).then(years.clip(upper_bound=OLDEST)).cast(pl.Float32),
    )


def with_splits(samples: pl.DataFrame, splits: pl.LazyFrame, log: Counts) -> pl.DataFrame:
    """Add the column ``split`` where the dataset brings splits: ``tuning`` is ``val``, ``held_out`` is ``test``.

    Our own names stay what they are; any other is left as it is, and refused where splits are to be taken from it.
    """
    given = splits.collect()
    if given.height == 0:
        return samples
    ours = SPLIT_NAMES | {name: name for name in OUR_SPLITS}
    joined = samples.join(given, on="subject_id", how="left", maintain_order="left")
    log.add("subject_splits", "samples of subjects without a split", joined["split"].null_count())
    return joined.with_columns(pl.col("split").replace(ours))


def stored(samples: pl.DataFrame, tasks: Sequence[str]) -> pl.DataFrame:
    """Lay samples out as the store wants them."""
    band: pl.Expr = pl.lit("85+")
    for limit, name in reversed(AGE_BANDS):
        band = pl.when(pl.col("age") < limit).then(pl.lit(name)).otherwise(band)
    return samples.select(
        pl.col("subject_id").cast(pl.String).alias("patient"),
        pl.lit(None, dtype=pl.String).alias("site"),
        pl.col("subject_id").alias("id/subject_id"),
        "prediction_time",
        *(["split"] if "split" in samples.columns else []),
        *(f"label/{task}" for task in tasks),
        pl.when(pl.col("age").is_not_null()).then(band).alias("group/age_band"),
        pl.col("female").replace_strict({True: "female", False: "male"}, return_dtype=pl.String).alias("group/sex"),
    )
