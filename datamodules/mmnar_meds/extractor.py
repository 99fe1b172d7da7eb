"""A MEDS dataset as a data source: events and label files in, samples and elements out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl

from mmnar_lightning.extract import Counts, Elements, ExtractError, Extraction, TableSpec, items
from mmnar_lightning.records import Modality, RecordSchema, Task
from mmnar_meds.cohort import labelled, stored, with_people, with_splits
from mmnar_meds.events import Events, Survey, survey
from mmnar_meds.layout import (
    CODES,
    DATA,
    SPLITS,
    TaskFiles,
    data_tables,
    dataset_name,
    label_tables,
    metadata_tables,
)
from mmnar_meds.selection import BIRTH, DEATH, DEFAULT, STRUCTURED, Labels, Selection

log = logging.getLogger(__name__)

PEOPLE = 10  # of fewer, nothing is told
NAMED = 20


class MEDSExtractor:
    """What a record store of a MEDS dataset is made from.

    Args:
        root: Folder with ``data/`` and ``metadata/``.
        label_folder: Folder with a file or folder of shards for each task; None is ``tasks`` in `root`.
        labels: The tasks; None takes every file and folder of `label_folder`.
        events: The modalities; None takes `DEFAULT`, without those that no event belongs to.

    Raises:
        ValueError: If a modality has the name of the one made of birth and sex.
    """

    version = "1"
    data_use = "Made from a MEDS dataset: the terms of its source hold for the store and all that is derived from it."

    def __init__(
        self,
        root: Path | str,
        label_folder: Path | str | None = None,
        labels: Mapping[str, Labels] | None = None,
        events: Mapping[str, Selection] | None = None,
    ) -> None:
        if events is not None and STRUCTURED in events:
            raise ValueError(f"events: {STRUCTURED!r} is the modality made of birth and sex; choose another name")
        self.root = Path(root).expanduser()
        self.label_folder = self.root / "tasks" if label_folder is None else Path(label_folder).expanduser()
        self.labels = None if labels is None else dict(labels)
        self.chosen = events is not None
        self.events = dict(DEFAULT if events is None else events)
        for selection in self.events.values():
            selection.check_pattern()

    @property
    def dataset(self) -> str:
        """First part of the store's name."""
        return dataset_name(self.root)

    @property
    def cohort(self) -> str:
        """Second part of the store's name: the folder of labels, whose rows are the samples."""
        return re.sub(r"[^A-Za-z0-9_.]+", "_", self.label_folder.name).strip("._") or "labels"

    def options(self) -> dict[str, Any]:
        """What beside the files changes the store: modalities and tasks."""
        described = {
            "events": {name: asdict(selection) for name, selection in self.events.items()},
            "chosen": self.chosen,
            "labels": {task.name: asdict(task.labels) for task in self._tasks},
        }
        return json.loads(json.dumps(described))  # type: ignore[no-any-return]

    @cached_property
    def _tasks(self) -> list[TaskFiles]:
        return label_tables(self.label_folder, self.labels)

    @cached_property
    def _data(self) -> list[TableSpec]:
        return data_tables(self.root, texts=any(s.kind == "text" for s in self.events.values()))

    @cached_property
    def _metadata(self) -> list[TableSpec]:
        return metadata_tables(self.root)

    @property
    def brings_splits(self) -> bool:
        """Whether the dataset says which subjects are train, tuning and held out."""
        return (self.root / f"{SPLITS}.parquet").is_file()

    def tables(self) -> Sequence[TableSpec]:
        """The dataset's files; their columns and types are checked here."""
        return [*self._data, *self._metadata, *(spec for task in self._tasks for spec in task.tables)]

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Turn label rows into samples, and events known at their prediction times into elements.

        Args:
            tables: By name.
            log: Receives what was kept and left out, and why.

        Raises:
            ExtractError: If labels are not binary or repeat, a subject has two splits, or a modality that was asked for
                has no event.
        """
        data = {spec.name: tables[spec.name] for spec in self._data}
        samples = labelled(self._tasks, tables, log)
        found = survey(data, samples)
        samples = with_people(samples, found.people, log)
        samples = with_splits(samples, tables[SPLITS], log)
        log.add("samples", "kept", samples.height)
        self._tell(found, tables[CODES], log)
        modalities, elements = self._structured(samples)
        key = samples.select("sample", "subject_id", "prediction_time")
        batches = [pl.concat([data[name] for name in batch]) for batch in found.batches]
        for name, selection in self.events.items():
            codes = found.codes.filter(selection.matches(pl.col("code"))).select("code")
            events = Events(selection, codes, batches, self._data[0], key)
            modality, variables = self._modality(name, events, log)
            if modality is not None:
                modalities.append(modality)
                elements[name] = partial(events.elements, variables)
        if not modalities:
            raise ExtractError(f"{DATA}: no event of the subjects with labels belongs to a modality; see option events")
        schema = RecordSchema(tuple(modalities), tuple(self._task(task) for task in self._tasks))
        return Extraction(schema, stored(samples, schema.task_names), elements)

    def _task(self, task: TaskFiles) -> Task:
        return Task(task.name, task.labels.horizon, task.labels.description, task.labels.parent)

    def _structured(self, samples: pl.DataFrame) -> tuple[list[Modality], dict[str, Elements]]:
        """Age and sex; no modality where the dataset knows neither of anyone."""
        numbers = samples.select(
            "sample", pl.lit(0.0).cast(pl.Float32).alias("hours_before"), "age", pl.col("female").cast(pl.Float32)
        ).filter(pl.col("age").is_not_null() | pl.col("female").is_not_null())
        known = tuple(name for name in ("age", "female") if numbers[name].count())
        if not known:
            return [], {}
        return [Modality(STRUCTURED, "vector", known)], {STRUCTURED: numbers.select("sample", "hours_before", *known)}

    def _modality(self, name: str, events: Events, log: Counts) -> tuple[Modality | None, tuple[str, ...]]:
        """The modality with the codes that are its variables; None where no sample may know an event of it."""
        selection = events.selection
        counted = events.count()
        without = int(counted["without"].sum())
        if without:
            log.add(name, f"known rows without {selection.values}, left out", without)
        counted = counted.filter(pl.col("rows") > 0)
        if counted.height == 0:
            if self.chosen:
                raise ExtractError(
                    f"{DATA}: no event known by a prediction time belongs to modality {name!r}; see option events"
                )
            log.add(name, "events known by then: none, so no such modality", 0)
            return None, ()
        log.add(name, "known rows", int(counted["rows"].sum()))
        if selection.kind in ("codes", "text"):
            return Modality(name, selection.kind), ()
        often = counted.sort(["people", "code"], descending=[True, False])
        beyond = often.height - selection.most
        if beyond > 0:
            log.add(name, f"codes beyond the {selection.most} that most people have, left out", beyond)
        variables = tuple(sorted(often["code"].head(selection.most)))
        names = variables if selection.kind == "series" else items(variables, selection.statistics)
        return Modality(name, selection.kind, names), variables

    def _tell(self, found: Survey, listed: pl.LazyFrame, log: Counts) -> None:
        """Count the events that no modality takes, by the first part of their codes, and codes nobody lists."""
        if found.spread:
            log.add(DATA, "subjects in several files, which MEDS forbids", found.spread)
        code = pl.col("code")
        rows = found.codes.with_columns(
            timed=code.is_in([BIRTH, DEATH])
            | pl.any_horizontal(pl.lit(False), *(s.matches(code) for s in self.events.values() if s.rows == "timed")),
            still=pl.any_horizontal(
                pl.lit(False), *(s.matches(code) for s in self.events.values() if s.rows == "static")
            ),
        ).with_columns(
            left=pl.when("timed").then(0).otherwise(pl.col("rows") - pl.col("static"))
            + pl.when("still").then(0).otherwise(pl.col("static"))
        )
        left = rows.filter(pl.col("left") > 0).with_columns(kind=code.str.split("//").list.first())
        # people with one of its codes are at least as many as people with its most frequent one
        kinds = left.group_by("kind").agg(pl.col("left").sum(), pl.col("people").max())
        named = kinds.filter(pl.col("people") >= PEOPLE).sort(["left", "kind"], descending=[True, False]).head(NAMED)
        for kind, count in named.select("kind", "left").iter_rows():
            log.add(DATA, f"rows in no modality, {kind}", count)
        rest = int(kinds["left"].sum()) - int(named["left"].sum())
        if rest:
            log.add(DATA, "rows in no modality, other codes", rest)
        described = listed.collect()
        if described.height:
            log.add(
                DATA, "codes not in metadata/codes.parquet", found.codes.join(described, on="code", how="anti").height
            )
