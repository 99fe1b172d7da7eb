"""Between a table with one row a sample and a `PatientBatch`: each made of the other, by the schema of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mmnar_lightning.predictor.columns import FIELDS, HOURS
from mmnar_lightning.records import Elements, Modality, PatientBatch, RecordSchema

Array = np.ndarray[Any, Any]
# no modality can be called so
ROW, LENGTH = "/row", "/length"


def batch_of(frame: pl.DataFrame, schema: RecordSchema, first: int = 0) -> PatientBatch:
    """Pack a table, whose columns were checked, into a batch. A modality is observed where it has a value.

    Args:
        frame: B rows, see `Columns`.
        schema: Of the model.
        first: Number of the first row, for `PatientBatch.sample`.

    Raises:
        ValueError: If hours before the prediction time are negative, values infinite, lists of a row of different
            lengths, variables unknown or `observed` false beside values. Names the column and counts rows.
    """
    B, K = frame.height, len(schema.tasks)
    observed = torch.zeros(B, len(schema.modalities), dtype=torch.bool)
    elements: dict[str, Elements] = {}
    for m, modality in enumerate(schema.modalities):
        stated = _stated(frame, modality.name)
        made = _vector(frame, modality, stated) if modality.kind == "vector" else _listed(frame, modality)
        late = int((made.hours_before < 0).sum())
        if late:
            raise ValueError(f"modality {modality.name!r}: {late} elements lie after the prediction time ({HOURS} < 0)")
        elements[modality.name] = made
        observed[made.row, m] = True
        # a series may be known of without any variable that the model takes
        observed[torch.from_numpy(stated == 1), m] = True
        denied = int((observed[:, m].numpy() & (stated == 0)).sum())
        if denied:
            raise ValueError(f"column 'observed/{modality.name}' is false in {denied} rows that have values")
    nothing = torch.zeros(B, K)
    return PatientBatch(elements, observed, nothing, nothing.bool(), torch.arange(first, first + B))


def _stated(frame: pl.DataFrame, modality: str) -> Array:
    """What ``observed/{modality}`` says: 1, 0, or −1 where it says nothing, int8 [B]."""
    name = f"observed/{modality}"
    if name not in frame.columns:
        return np.full(frame.height, -1, dtype=np.int8)
    said: Array = frame[name].cast(pl.Int8).fill_null(-1).to_numpy()
    return said


def _floats(values: pl.Series, name: str) -> Array:
    """A column as float32, null as NaN."""
    floats: Array = values.cast(pl.Float32).fill_null(float("nan")).to_numpy()
    if infinite := int(np.isinf(floats).sum()):
        raise ValueError(f"column {name!r} is infinite in {infinite} rows")
    return floats


def _vector(frame: pl.DataFrame, modality: Modality, stated: Array) -> Elements:
    items = [f"{modality.name}/{item}" for item in modality.items]
    hours = f"{modality.name}/{HOURS}"
    there = [name for name in (*items, hours) if name in frame.columns and frame[name].dtype != pl.Null]
    given = frame.select(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW), *there)
    lists = [name for name in there if isinstance(frame[name].dtype, pl.List)]
    if lists:
        given = _unrolled(given, modality.name, lists)
    known = [f for f, name in enumerate(items) if name in there]
    wide = np.full((given.height, len(items)), np.nan, dtype=np.float32)
    if known:
        chosen = given.select(pl.col(items[f]).cast(pl.Float32).fill_null(float("nan")) for f in known)
        wide[:, known] = chosen.to_numpy()
    infinite = np.isinf(wide).sum(axis=0)
    for f in np.flatnonzero(infinite):
        raise ValueError(f"column {items[f]!r} is infinite in {infinite[f]} rows")
    row = given[ROW].to_numpy()
    kept = ~np.isnan(wide).all(axis=1) | (stated[row] == 1)
    when = _floats(given[hours], hours) if hours in there else np.full(given.height, np.nan, dtype=np.float32)
    return Elements(_tensor(row[kept]), _tensor(when[kept]), _tensor(wide[kept]))


def _unrolled(given: pl.DataFrame, modality: str, lists: list[str]) -> pl.DataFrame:
    """One row an element, where items are lists; a null list is one of nulls."""
    longest = pl.max_horizontal(pl.col(name).list.len() for name in lists).fill_null(0).clip(1)
    given = given.with_columns(longest.alias(LENGTH))
    uneven = sum((pl.col(name).list.len() != pl.col(LENGTH)).fill_null(False).cast(pl.Int64) for name in lists)
    wrong = int(given.select((pl.lit(0) + uneven > 0).sum()).item())
    if wrong:
        raise ValueError(f"modality {modality!r}: the lists of its items differ in length in {wrong} rows")
    filled = [pl.coalesce(name, pl.lit(None).repeat_by(LENGTH).cast(given[name].dtype)) for name in lists]
    return given.with_columns(filled).explode(lists)


def _listed(frame: pl.DataFrame, modality: Modality) -> Elements:
    name, fields = modality.name, FIELDS[modality.kind]
    columns = [pl.Series(field, [], dtype=pl.Null) for field in (*fields, HOURS)]
    given = pl.DataFrame([pl.Series(ROW, [], dtype=pl.Int64), *columns])
    if name in frame.columns and isinstance(dtype := frame[name].dtype, pl.List):
        inner = dtype.inner
        given = frame.select(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW), name).explode(name).drop_nulls(name)
        given = given.unnest(name) if isinstance(inner, pl.Struct) else given.rename({name: fields[0]})
        if HOURS not in given.columns:
            given = given.with_columns(pl.lit(None, dtype=pl.Float32).alias(HOURS))
    word = pl.col(fields[0]).cast(pl.String)
    given = given.with_columns(word).drop_nulls(list(fields)).filter(word != "")
    if modality.kind == "series":
        given = given.with_columns(pl.Series("value", _floats(given["value"], name))).filter(~pl.col("value").is_nan())
    row, hours = _tensor(given[ROW].to_numpy()), _tensor(_floats(given[HOURS], name))
    words = given[fields[0]]
    if modality.kind in ("text", "image"):
        return Elements(row, hours, tuple(words.to_list()))
    index = words.replace_strict({item: k for k, item in enumerate(modality.items)}, default=-1, return_dtype=pl.Int64)
    if modality.kind == "codes":
        # what the vocabulary lacks is the unknown code
        return Elements(row, hours, _tensor(index.clip(0).to_numpy()))
    if strange := int((index < 0).sum()):
        raise ValueError(
            f"column {name!r}: {strange} elements of variables the model does not know; it knows "
            f"{', '.join(modality.items[:20])}{' …' if len(modality.items) > 20 else ''}"
        )
    values = _tensor(given["value"].to_numpy())
    return Elements(row, hours, values, _tensor(index.to_numpy()))


def _tensor(values: Array) -> Tensor:
    # polars gives views that can't be written to
    return torch.from_numpy(np.array(values))


def frame_of(batch: PatientBatch, schema: RecordSchema) -> pl.DataFrame:
    """Unpack a batch into a table of which `batch_of` makes the same batch.

    Args:
        batch: B samples; documents and films are still strings.
        schema: Of the model.
    """
    columns = {"sample": pl.Series(batch.sample.numpy())}
    for m, modality in enumerate(schema.modalities):
        elements = batch.elements[modality.name]
        observed = batch.observed[:, m].numpy()
        row = elements.row.numpy()
        if modality.kind == "vector":
            values = elements.values
            assert isinstance(values, Tensor)
            there = dict(zip(modality.items, values.T.numpy(), strict=True)) | {HOURS: elements.hours_before.numpy()}
            given = pl.DataFrame({f"{modality.name}/{item}": x for item, x in there.items()}).fill_nan(None)
            # one number a sample, or a list each where one has several elements
            several = len(np.unique(row)) < len(row)
            columns |= _per_row(row, given, len(batch), several).to_dict()
            silent = np.isin(np.arange(len(batch)), row[values.isnan().all(1).numpy()])
        else:
            columns[modality.name] = _lists(elements, modality, len(batch))
            silent = observed & ~np.isin(np.arange(len(batch)), row)
        if silent.any():
            stated = pl.Series(silent)
            columns[f"observed/{modality.name}"] = pl.select(pl.when(stated).then(stated)).to_series()
    return pl.DataFrame(columns)


def _per_row(row: Array, given: pl.DataFrame, rows: int, several: bool) -> pl.DataFrame:
    """Lay elements out by batch row, null where a row has none; where a row has several, all are lists."""
    given = given.with_columns(pl.Series(ROW, row))
    if several:
        given = given.group_by(ROW, maintain_order=True).agg(pl.all())
    return pl.DataFrame({ROW: np.arange(rows)}).join(given, on=ROW, how="left", maintain_order="left").drop(ROW)


def _lists(elements: Elements, modality: Modality, rows: int) -> pl.Series:
    fields = FIELDS[modality.kind]
    values = elements.values
    hours = pl.Series(elements.hours_before.numpy()).fill_nan(None)
    columns: dict[str, Any] = {HOURS: hours}
    if modality.kind == "series":
        assert isinstance(values, Tensor)
        assert elements.variable is not None
        columns |= {"variable": _named(elements.variable, modality), "value": values.numpy()}
    elif modality.kind == "codes":
        assert isinstance(values, Tensor)
        columns["code"] = _named(values, modality)
    else:
        columns[fields[0]] = pl.Series(list(values), dtype=pl.String)
    given = pl.DataFrame(columns).to_struct("x").to_frame()
    return _per_row(elements.row.numpy(), given, rows, several=True)["x"]


def _named(index: Tensor, modality: Modality) -> pl.Series:
    return pl.Series(modality.items, dtype=pl.String).gather(index.numpy())
