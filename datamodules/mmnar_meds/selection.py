"""Which events make up which modality, and which label files make up which task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

from mmnar_lightning.extract import STATS

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
STRUCTURED = "structured"


@dataclass(frozen=True)
class Selection:
    """Events that make up one modality: which codes, how far back, and what is made of them.

    A code is chosen if it starts with one of `prefixes` or `pattern` is found in it, unless it starts with one of
    `without`. ``MEDS_BIRTH`` and ``MEDS_DEATH`` are never chosen. An event may be part of several modalities.

    Args:
        kind: ``vector``: statistics of ``numeric_value`` a code; ``series``: the values themselves, with their times;
            ``codes``: which codes there were, each at its latest time; ``text``: ``text_value``, a document an event.
        prefixes: Beginnings of codes.
        pattern: Regular expression that is searched for in the code, or empty.
        without: Beginnings of codes that are left out.
        rows: ``timed`` takes events with a time, ``static`` those without (known from the start).
        window_hours: How many hours before the prediction time the window opens; None is the whole past.
        lag_hours: How many hours after its time an event counts as known. MEDS says 0: data up to and including the
            prediction time may be used. Above 0 where the times of a dataset are those of drawing blood, not of its
            result.
        statistics: Of a ``vector``, which statistics of each code are features.
        most: Of a ``vector`` or ``series``, how many codes at most: those that most people have a value of.

    Raises:
        ValueError: If a setting is out of its range or can't be used with the others.
    """

    kind: Literal["vector", "codes", "series", "text"]
    prefixes: tuple[str, ...] = ()
    pattern: str = ""
    without: tuple[str, ...] = ()
    rows: Literal["timed", "static"] = "timed"
    window_hours: float | None = None
    lag_hours: float = 0.0
    statistics: tuple[str, ...] = ("last", "min", "max", "mean", "count")
    most: int = 200

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("kind", self.kind, ("vector", "codes", "series", "text")),
            ("rows", self.rows, ("timed", "static")),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if not self.prefixes and not self.pattern:
            raise ValueError("a selection needs prefixes or a pattern, to say which codes it takes")
        if "" in (*self.prefixes, *self.without):
            raise ValueError("an empty prefix would match every code; pattern '.' says so")
        try:
            re.compile(self.pattern)
        except re.error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression") from None
        if self.rows == "static" and (self.kind == "series" or self.window_hours is not None or self.lag_hours):
            raise ValueError("static rows have no time: no series, window_hours or lag_hours can be made of them")
        if self.lag_hours < 0 or (self.window_hours is not None and self.window_hours <= 0):
            raise ValueError("lag_hours must not be negative, and window_hours must be above 0 or null")
        strange = [name for name in self.statistics if name not in STATS]
        if strange or not self.statistics or len(set(self.statistics)) < len(self.statistics):
            raise ValueError(f"statistics must be some of {', '.join(STATS)}, each once")
        if self.most < 1:
            raise ValueError(f"most is {self.most}; at least 1 code is needed")

    def check_pattern(self) -> None:
        """Refuse a pattern that polars can't search for; not when made: that would start threads at an import.

        Raises:
            ValueError: If it is one that only Python's `re` knows, as with look-around.
        """
        try:
            pl.Series([""]).str.contains(self.pattern)
        except pl.exceptions.ComputeError:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression that polars can search for") from None

    @property
    def values(self) -> str | None:
        """The column that an event's value stands in; None where the code itself is the value."""
        return {"vector": "numeric_value", "series": "numeric_value", "text": "text_value", "codes": None}[self.kind]

    def matches(self, code: pl.Expr) -> pl.Expr:
        """Whether each code belongs to the modality."""

        def begins(prefixes: tuple[str, ...]) -> pl.Expr:
            return pl.any_horizontal(pl.lit(False), *(code.str.starts_with(prefix) for prefix in prefixes))

        found = code.str.contains(self.pattern) if self.pattern else pl.lit(False)
        return (begins(self.prefixes) | found) & ~begins(self.without) & ~code.is_in([BIRTH, DEATH])


# Prefixes as the public conversions of MIMIC-IV and eICU write them (LAB//) and those of OMOP (LOINC/); a week of
# measurements and drugs, all of the history.
DEFAULT: dict[str, Selection] = {
    "demographics": Selection("codes", pattern=".", rows="static"),
    "labs": Selection("vector", prefixes=("LAB//", "LABORATORY//", "LOINC/"), window_hours=168),
    "vitals": Selection("vector", pattern="(?i)^(vitals?|vital_signs?)//", window_hours=168),
    "diagnoses": Selection("codes", prefixes=("DIAGNOSIS//", "CONDITION//", "ICD9CM/", "ICD10CM/")),
    "procedures": Selection("codes", prefixes=("PROCEDURE//", "ICD9Proc/", "ICD10PCS/", "CPT4/")),
    "medications": Selection(
        "codes",
        prefixes=("MEDICATION//", "INFUSION_START//", "DRUG//", "RxNorm/"),
        without=("MEDICATION//STOP//",),
        window_hours=168,
    ),
}


@dataclass(frozen=True)
class Labels:
    """Label files of one task.

    Args:
        path: File (without suffix) or folder of shards, relative to the folder of labels; empty is the task's name.
        horizon: What the label window is, in words.
        description: What a positive label means.
        parent: Task that must be positive wherever this one is, or None.

    Raises:
        ValueError: If the path leaves the folder.
    """

    path: str = ""
    horizon: str = ""
    description: str = ""
    parent: str | None = None

    def __post_init__(self) -> None:
        if self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError(f"labels: path {self.path!r} must lie below the folder of labels")


def task_name(path: str) -> str:
    """Name of the task in a file or folder of labels: a word, what is no letter or digit as ``_``."""
    word = re.sub(r"\W", "_", path)
    return word if word.isidentifier() else f"task_{word}"
