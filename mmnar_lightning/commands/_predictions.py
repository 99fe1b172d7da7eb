"""Tables of predictions, ours or anybody's: read, checked, written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.rectifier.calibration import LOGIT_LIMIT

TASK = "{task}"
# the model has seen their labels
TRAINED = ("train", "val")


@dataclass(frozen=True)
class Columns:
    """What the columns of a table of predictions are called.

    Args:
        patient: Column with an id of the patient; rows of a patient are never parted.
        sample: Column with an id of the row, if there is one; it must not repeat.
        score: Column of a task's score; ``{task}`` stands for the task.
        target: Column of a task's label: 0, 1, true, false, or nothing or NaN where it is not known.
        labelled: Column that says whether a task's label is known, if there is one.
        rectified: Column to write a task's corrected probability to.
        tasks: Tasks; none are all for which there is a score.
        scores: Whether scores are probabilities or logits.
        pattern: Column with the availability pattern: a number whose bit m says that modality m was observed.
        observed: Boolean columns, one a modality, in place of the pattern.
        split: Column that says what a row is for.
        calibration: Values of `split` of the rows to fit on.
        evaluation: Values of `split` of the rows to score; none are all others except ``train`` and ``val``.
        fit_on: ``split``, or ``labels`` to fit on every row with a known label, where none is left to be scored.
    """

    patient: str = "patient"
    sample: str = "sample"
    score: str = "{task}/raw"
    target: str = "{task}/target"
    labelled: str = "{task}/labelled"
    rectified: str = "{task}/rectified"
    tasks: tuple[str, ...] = ()
    scores: Literal["probability", "logit"] = "probability"
    pattern: str = "pattern"
    observed: tuple[str, ...] = ()
    split: str = "split"
    calibration: tuple[str, ...] = ("calibration",)
    evaluation: tuple[str, ...] = ()
    fit_on: Literal["split", "labels"] = "split"

    def of(self, column: str, task: str) -> str:
        """Return the name of a task's column."""
        name: str = getattr(self, column)
        return name.replace(TASK, task)


@dataclass(frozen=True)
class Predictions:
    """A table of predictions that was checked.

    Args:
        path: Where it was read.
        frame: The table.
        columns: What its columns are called.
        tasks: K tasks.
        logits: [n, K] in ±40.
        targets: [n, K], 0 where not known.
        labelled: bool [n, K].
        pattern: int64 [n].
        modalities: M.
        patient: [n], ids as text.
        split: [n], what a row is for; empty text for none.
        calibration: bool [n], rows to fit on.
        metadata: What the parquet file says of itself.
    """

    path: Path
    frame: pl.DataFrame
    columns: Columns
    tasks: tuple[str, ...]
    logits: NDArray[np.float64]
    targets: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    pattern: NDArray[np.int64]
    modalities: int
    patient: NDArray[Any]
    split: NDArray[Any]
    calibration: NDArray[np.bool_]
    metadata: dict[str, str]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Splits to score, in order."""
        if self.columns.fit_on == "labels":
            return ()
        if self.columns.evaluation:
            return self.columns.evaluation
        left = set(self.split.tolist()) - {"", *self.columns.calibration, *TRAINED}
        return tuple(sorted(left))


def read_predictions(path: Path, columns: Columns) -> Predictions:
    """Read and check a table.

    Raises:
        ValueError: If a column is not there, values are missing, out of range or no numbers, rows repeat, no row is
            for calibration, or patients with rows for calibration have others in another split.
    """
    frame, metadata = _read(path)
    tasks = columns.tasks or _tasks(frame.columns, columns.score)
    if not tasks:
        raise ValueError(f"{path}: no column like {columns.score!r}; there are: {_listed(frame.columns)}")
    needed = [columns.patient, *columns.observed, *([] if columns.observed else [columns.pattern])]
    needed += [columns.of(kind, task) for task in tasks for kind in ("score", "target")]
    needed += [columns.split] if columns.fit_on == "split" else []
    missing = [name for name in dict.fromkeys(needed) if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: no column {_listed(missing)}; there are: {_listed(frame.columns)}")
    _check_repeats(path, frame, columns.sample)
    known = [_target(path, frame, columns, task) for task in tasks]
    pattern, modalities = _pattern(path, frame, columns)
    patient = _patients(path, frame, columns.patient)
    split = np.full(len(frame), "", dtype=object)
    if columns.split in frame.columns:
        split = frame[columns.split].cast(pl.String).fill_null("").to_numpy()
    calibration = np.isin(split, columns.calibration) if columns.fit_on == "split" else np.ones(len(frame), dtype=bool)
    _check_patients(path, columns, patient, split, calibration)
    return Predictions(
        path,
        frame,
        columns,
        tuple(tasks),
        np.stack([_logits(path, frame, columns, task) for task in tasks], 1),
        np.stack([target.fill_null(0.0).to_numpy() for target in known], 1),
        np.stack([target.is_not_null().to_numpy() for target in known], 1),
        pattern,
        modalities,
        patient,
        split,
        calibration,
        metadata,
    )


def _read(path: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            metadata = {k: v for k, v in pl.read_parquet_metadata(path).items() if k != "ARROW:schema"}
            return pl.read_parquet(path), metadata
        if path.suffix == ".csv":
            # a first row says little of what stands in the last
            return pl.read_csv(path, infer_schema_length=None), {}
    except pl.exceptions.PolarsError as error:
        # what polars says may hold values of the table
        raise ValueError(f"{path}: can't be read as {path.suffix} ({type(error).__name__})") from None
    raise ValueError(f"{path}: not a .parquet or .csv file")


def _tasks(names: Sequence[str], score: str) -> tuple[str, ...]:
    front, mark, back = score.partition(TASK)
    if not mark:
        raise ValueError(f"score {score!r} has no {TASK}, so that tasks must be named: --tasks")
    fits = [name for name in names if name.startswith(front) and name.endswith(back)]
    found = [name[len(front) : len(name) - len(back)] for name in fits if len(name) > len(front) + len(back)]
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 20
    return ", ".join(names[:20]) + (f" and {more} more" if more > 0 else "")


def _refuse(path: Path, column: str, what: str, count: int) -> None:
    if count:
        raise ValueError(f"{path}: column {column!r}: {count} rows {what}")


def _check_repeats(path: Path, frame: pl.DataFrame, sample: str) -> None:
    if sample in frame.columns:
        _refuse(path, sample, "have the id of an earlier one", len(frame) - frame[sample].n_unique())
    else:
        repeats = len(frame) - frame.n_unique()
        if repeats:
            raise ValueError(f"{path}: {repeats} rows repeat another in all {frame.width} columns")


def _numbers(path: Path, frame: pl.DataFrame, name: str) -> pl.Series:
    kind = frame[name].dtype
    if not (kind.is_numeric() or kind == pl.Boolean or kind == pl.Null):
        raise ValueError(f"{path}: column {name!r} has the type {kind}; numbers are needed")
    return frame[name].cast(pl.Float64)


def _patients(path: Path, frame: pl.DataFrame, name: str) -> NDArray[Any]:
    """Ids as text; rows without one would become one patient."""
    patient = frame[name].cast(pl.String)
    absent = patient.is_null() | patient.str.strip_chars().str.to_lowercase().is_in(["", "nan"])
    _refuse(path, name, "without a patient", int(absent.fill_null(True).sum()))
    return patient.to_numpy()


def _target(path: Path, frame: pl.DataFrame, columns: Columns, task: str) -> pl.Series:
    """Labels as numbers, null where not known."""
    name, flag = columns.of("target", task), columns.of("labelled", task)
    # pandas writes NaN for what is not known
    target = _numbers(path, frame, name).fill_nan(None)
    if flag in frame.columns:
        known = _flags(path, frame, flag)
        _refuse(path, name, f"have no label though {flag!r} says it is known", int((known & target.is_null()).sum()))
        target = pl.select(pl.when(known).then(target)).to_series()
    _refuse(path, name, "have a label other than 0 and 1", int((~target.is_in([0.0, 1.0])).sum()))
    return target


def _flags(path: Path, frame: pl.DataFrame, name: str) -> pl.Series:
    _refuse(path, name, "have no value", frame[name].null_count())
    values = _numbers(path, frame, name)
    _refuse(path, name, "are neither true nor false", int((~values.is_in([0.0, 1.0])).sum()))
    return values > 0.5


def _pattern(path: Path, frame: pl.DataFrame, columns: Columns) -> tuple[NDArray[np.int64], int]:
    if columns.observed:
        if len(columns.observed) > 62:
            raise ValueError(f"{len(columns.observed)} modalities; a pattern holds at most 62")
        flags = [_flags(path, frame, name).to_numpy() for name in columns.observed]
        return np.sum([flag.astype(np.int64) << m for m, flag in enumerate(flags)], axis=0), len(flags)
    name = columns.pattern
    series = frame[name]
    if not series.dtype.is_integer():
        raise ValueError(f"{path}: column {name!r} has the type {series.dtype}; a pattern is a whole number")
    _refuse(path, name, "have no pattern", series.null_count())
    _refuse(path, name, "have a pattern outside 0 … 2^62 − 1", int(((series < 0) | (series >= 2**62)).sum()))
    values = series.cast(pl.Int64).to_numpy()
    return values, max(1, int(values.max(initial=0)).bit_length())


def _logits(path: Path, frame: pl.DataFrame, columns: Columns, task: str) -> NDArray[np.float64]:
    name = columns.of("score", task)
    values = _numbers(path, frame, name)
    _refuse(path, name, "have no score", values.null_count())
    _refuse(path, name, "have a score that is not a number", int(values.is_nan().sum()))
    score: NDArray[np.float64] = values.to_numpy()
    if columns.scores == "probability":
        _refuse(path, name, "have a probability outside 0 … 1", int(((score < 0) | (score > 1)).sum()))
        with np.errstate(divide="ignore"):
            score = np.log(score) - np.log1p(-score)
    return np.asarray(np.clip(score, -LOGIT_LIMIT, LOGIT_LIMIT), dtype=np.float64)


def _check_patients(
    path: Path, columns: Columns, patient: NDArray[Any], split: NDArray[Any], calibration: NDArray[np.bool_]
) -> None:
    if columns.fit_on == "labels":
        return
    if set(columns.calibration) & set(columns.evaluation):
        raise ValueError("calibration and evaluation name the same split; what is fitted on can't be scored")
    absent = sorted({*columns.calibration, *columns.evaluation} - set(split.tolist()))
    if absent:
        there = sorted(set(split.tolist()) - {""})
        raise ValueError(f"{path}: column {columns.split!r}: no row is {_listed(absent)}; there are: {_listed(there)}")
    shared = np.isin(np.unique(patient[calibration]), patient[~calibration & (split != "")]).sum()
    if shared:
        raise ValueError(f"{path}: column {columns.patient!r}: {shared} patients have rows for calibration and others")


def write_beside(frame: pl.DataFrame, out: Path, metadata: dict[str, str], report: str) -> None:
    """Write a table and, beside it, its report; each is whole or not there, and for its owner's eyes."""
    out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (out, out.with_suffix(".md")):
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.touch(0o600)
            if path.suffix == ".md":
                part.write_text(report, encoding="utf-8")
            elif path.suffix == ".csv":
                frame.write_csv(part)
            else:
                frame.write_parquet(part, metadata=metadata)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
