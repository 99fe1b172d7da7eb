"""Turns a folder of one's own tables into samples and elements, after it has checked every row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mmnar_lightning.extract import Counts, Elements, Extraction, TableSpec
from mmnar_lightning.records import SPLITS
from mmnar_tables.checks import SHOWN, broken, refuse
from mmnar_tables.description import SAMPLES, Description, ModalityEntry, read_description
from mmnar_tables.elements import ModalityTable
from mmnar_tables.images import all_readable, sizes
from mmnar_tables.layout import modality_table, parquet_types, samples_table, unread


class TablesExtractor:
    """One's own tables as a data source.

    Times need no clock here: whoever wrote the tables states with ``hours_before`` how long before the prediction time
    each row was known, and a negative one is refused.

    Args:
        root: Folder with ``schema.yaml``, ``samples.parquet`` and a table for each modality.
        unreadable_images: ``count`` leaves unreadable image files out and counts them, ``error`` refuses them.
    """

    version = "2"
    data_use = (
        "Made from your own tables: the terms of their source hold for the store and all that is derived from it."
    )

    def __init__(self, root: Path | str, unreadable_images: Literal["count", "error"] = "count") -> None:
        if unreadable_images not in ("count", "error"):
            raise ValueError(f"unreadable_images {unreadable_images!r} is not one of count, error")
        self.root = Path(root)
        self.unreadable_images = unreadable_images

    @cached_property
    def description(self) -> Description:
        """What ``schema.yaml`` says."""
        return read_description(self.root)

    @property
    def dataset(self) -> str:
        """First part of the store's name, from ``schema.yaml``."""
        return self.description.dataset

    @property
    def cohort(self) -> str:
        """Second part of the store's name, from ``schema.yaml``."""
        return self.description.cohort

    @property
    def brings_splits(self) -> bool:
        """Whether ``samples.parquet`` has a ``split`` column."""
        return "split" in parquet_types(self.root, SAMPLES)

    def options(self) -> dict[str, Any]:
        """What beside the tables changes the store: ``schema.yaml``, and place and size of the image files."""
        options: dict[str, Any] = {"description": asdict(self.description)}
        images = [entry for entry in self.description.modalities if entry.kind == "image"]
        if images:
            options |= {"unreadable_images": self.unreadable_images, "image_root": str(self.root.resolve())}
            options["image_files"] = {entry.name: self._image_digest(entry) for entry in images}
        return json.loads(json.dumps(options))  # type: ignore[no-any-return]

    def _image_digest(self, entry: ModalityEntry) -> str:
        self._spec(entry)
        paths = pl.read_parquet(self.root / f"{entry.file}.parquet", columns=[str(entry.column)])[str(entry.column)]
        names = sorted(paths.cast(pl.String).drop_nulls().unique())
        listing = list(zip(names, sizes([self.root / name for name in names]), strict=True))
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def _spec(self, entry: ModalityEntry) -> TableSpec:
        return modality_table(self.root, entry, parquet_types(self.root, SAMPLES)["sample_id"])

    def tables(self) -> Sequence[TableSpec]:
        """The tables that ``schema.yaml`` names; files, columns and types are checked here."""
        samples = samples_table(self.root, self.description)
        return [samples, *(self._spec(entry) for entry in self.description.modalities)]

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Check every row, then turn the tables into samples (in the order of their file) and elements.

        Args:
            tables: ``samples`` and the modalities' tables by name.
            log: Receives rows without a value, unread columns, and unreadable images.

        Raises:
            ExtractError: If a row can't be used; names file, column, count and row numbers.
        """
        specs = {spec.name: spec for spec in self.tables()}
        raw = tables[SAMPLES].collect()
        self._check_samples(raw)
        _note(log, SAMPLES, "columns not read", unread(self.root, specs[SAMPLES]))
        ids = _ids(raw)
        items: dict[str, tuple[str, ...]] = {}
        elements: dict[str, Elements] = {}
        for entry in self.description.modalities:
            table = ModalityTable(entry, specs[entry.name], tables[entry.name], ids)
            items[entry.name] = table.items()
            table.check(items[entry.name])
            _note(log, entry.name, "rows without a value", table.without_value())
            _note(log, entry.name, "columns not read", unread(self.root, specs[entry.name]))
            # films are opened now, so that a broken one stops the work before anything is written
            is_image = entry.kind == "image"
            elements[entry.name] = self._films(table, log) if is_image else partial(table.elements, items[entry.name])
        return Extraction(self.description.schema(items), self._samples(raw), elements)

    def _check_samples(self, raw: pl.DataFrame) -> None:
        wrong: dict[str, pl.Expr] = {}
        for task in self.description.tasks:
            if raw.schema[task.column] != pl.Boolean:
                value = pl.col(task.column)
                value = value.fill_nan(None) if raw.schema[task.column].is_float() else value
                wrong[f"column {task.column!r} is neither 0, 1 nor null"] = (value != 0) & (value != 1)
        columns = {task.task.name: task.column for task in self.description.tasks}
        for task in self.description.tasks:
            if task.task.parent is not None:
                parent = columns[task.task.parent]
                torn = _label(raw, task.column).fill_null(False) & ~_label(raw, parent).fill_null(True)
                wrong[f"column {task.column!r} is positive where its parent {parent!r} is not"] = torn
        if "split" in raw.columns:
            split = pl.col("split").cast(pl.String)
            wrong[f"column 'split' is none of {', '.join(SPLITS)}"] = ~split.is_in(SPLITS).fill_null(False)
            wrong["column 'split' puts a person into two splits"] = split.n_unique().over("patient_id") > 1
        refuse(raw.lazy(), SAMPLES, wrong)

    def _samples(self, raw: pl.DataFrame) -> pl.DataFrame:
        def text(name: str) -> pl.Expr:
            return pl.col(name).cast(pl.String)

        optional = [text(name) for name in ("site", "split") if name in raw.columns]
        return raw.select(
            text("patient_id").alias("patient"),
            *optional,
            *([] if "site" in raw.columns else [pl.lit(None, dtype=pl.String).alias("site")]),
            _original(raw).alias("id/sample_id"),
            _time(raw).alias("prediction_time"),
            *(_label(raw, task.column).alias(f"label/{task.task.name}") for task in self.description.tasks),
            *(text(group).alias(f"group/{group}") for group in self.description.groups),
        )

    def _films(self, table: ModalityTable, log: Counts) -> pl.DataFrame:
        frame = table.elements(())
        names = frame["path"].unique(maintain_order=True)
        paths = [(self.root / name).resolve() for name in names]
        sound = all_readable(paths)
        if self.unreadable_images == "error" and not all(sound):
            column = str(table.entry.column)
            bad = names.filter(~pl.Series(sound))
            rows = table.frame.select(pl.col(column).cast(pl.String)).with_row_index("row", offset=1).collect()
            found = rows.filter(pl.col(column).is_in(bad.implode()))["row"].to_list()
            raise broken(table.entry.file, f"column {column!r} names an unreadable image", len(found), found[:SHOWN])
        opened = pl.DataFrame({"path": names, "opened": [str(path) for path in paths], "sound": sound})
        joined = frame.join(opened, on="path", how="left", maintain_order="left")
        _note(log, table.entry.name, "unreadable images", joined.filter(~pl.col("sound")).height)
        return joined.filter(pl.col("sound")).select("sample", "hours_before", pl.col("opened").alias("path"))


def _note(log: Counts, table: str, what: str, count: int) -> None:
    if count:  # that nothing was left out needs no line
        log.add(table, what, count)


def _original(raw: pl.DataFrame) -> pl.Expr:
    """The sample's id in a type that any table it is joined with can have: categories are text."""
    is_category = raw.schema["sample_id"] in (pl.Categorical, pl.Enum)
    return pl.col("sample_id").cast(pl.String) if is_category else pl.col("sample_id")


def _ids(raw: pl.DataFrame) -> pl.DataFrame:
    return raw.select(_original(raw).alias("sample_id"), sample=pl.int_range(pl.len(), dtype=pl.Int64))


def _label(raw: pl.DataFrame, column: str) -> pl.Expr:
    value = pl.col(column)
    if raw.schema[column] == pl.Boolean:
        return value
    return (value.fill_nan(None) if raw.schema[column].is_float() else value) == 1


def _time(raw: pl.DataFrame) -> pl.Expr:
    if "prediction_time" not in raw.columns:
        return pl.lit(None, dtype=pl.Float64)
    dtype, time = raw.schema["prediction_time"], pl.col("prediction_time")
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return time.cast(pl.Float64) if dtype.is_numeric() else time.cast(pl.Datetime("us"))
