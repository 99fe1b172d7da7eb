"""Which columns a table of samples has, from the schema of a model, and whether a given table has them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import polars as pl
from polars.datatypes import DataTypeClass

from mmnar_lightning.records import Modality, RecordSchema

HOURS = "hours_before"
# what an element of a list is called where it is a struct
FIELDS: dict[str, tuple[str, ...]] = {
    "codes": ("code",),
    "series": ("variable", "value"),
    "text": ("text",),
    "image": ("path",),
}
NAMED = 5


class Columns:
    """The columns of a table with one row a sample, by the schema of a model.

    * ``{modality}/{item}`` of a `vector`: a number; null, NaN or no such column where it was not measured. A list of
      numbers where a sample has several elements, as long for each item.
    * ``{modality}/hours_before`` of a `vector`, optional: hours before the prediction time, as many as elements.
    * ``{modality}`` of `codes`, `text` or `image`: a list of strings (codes, documents, files), or of structs of
      ``code``, ``text`` or ``path`` and, if known, ``hours_before``. An empty list is as good as null.
    * ``{modality}`` of a `series`: a list of structs of ``variable``, ``value`` and ``hours_before``.
    * ``observed/{modality}`` of a `vector` or `series`, optional: true where the modality was observed although nothing
      was measured that the model knows.
    * ``sample``, optional: what rows are called in the predictions.

    Args:
        schema: Of the model.
    """

    def __init__(self, schema: RecordSchema) -> None:
        self.schema = schema
        self.by_modality = {m.name: _columns_of(m) for m in schema.modalities}
        self._known = {name: kind for columns in self.by_modality.values() for name, kind in columns.items()}

    def of(self, modality: str) -> list[str]:
        """Return every column that a modality can have.

        Raises:
            ValueError: If the model has no such modality; lists those it has.
        """
        return list(self.by_modality[self.schema.modality(modality).name])

    def empty(self, rows: int) -> pl.DataFrame:
        """Return a table of samples of whom nothing was observed, with each modality's columns in their plain form."""
        columns = {"sample": pl.Series(range(rows), dtype=pl.Int64)}
        for modality in self.schema.modalities:
            for name in self.of(modality.name):
                if not name.endswith(f"/{HOURS}") and not name.startswith("observed/"):
                    columns[name] = pl.Series([None] * rows, dtype=_plain_type(modality.kind))
        return pl.DataFrame(columns)

    def check(self, given: Mapping[str, pl.DataType], keep: Sequence[str] = ()) -> None:
        """Refuse columns the model does not know, and those of a wrong type.

        Args:
            given: Types by name.
            keep: Names of further columns, which are handed through.

        Raises:
            ValueError: Names the columns, and what they may have meant.
        """
        strange = [name for name in given if name not in self._known and name not in (*keep, "sample")]
        if strange:
            told = ", ".join(repr(name) + self._meant(name) for name in strange[:NAMED])
            more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
            raise ValueError(f"columns the model does not know: {told}{more}; drop them, or name them in `keep`")
        if absent := [name for name in keep if name not in given]:
            raise ValueError(f"keep: no column {', '.join(map(repr, absent))} in the table")
        for name, dtype in given.items():
            if (wanted := self._known.get(name)) is not None and not _fits(wanted, dtype):
                raise ValueError(f"column {name!r} is {dtype} where {_in_words(wanted)} is needed")

    def _meant(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._known, n=1, cutoff=0.6)
        return f" (did you mean {near[0]!r}?)" if near else ""


def _columns_of(modality: Modality) -> dict[str, str]:
    """Columns of a modality with what they hold: a kind, `number` or `flag`."""
    name = modality.name
    flag = {f"observed/{name}": "flag"}
    if modality.kind == "vector":
        return {f"{name}/{item}": "number" for item in modality.items} | {f"{name}/{HOURS}": "number"} | flag
    return {name: modality.kind} | (flag if modality.kind == "series" else {})


def _plain_type(kind: str) -> pl.DataType:
    if kind == "vector":
        return pl.Float64()
    if kind == "series":
        return pl.List(pl.Struct({"variable": pl.String, "value": pl.Float64, HOURS: pl.Float64}))
    return pl.List(pl.String)


def _number(dtype: pl.DataType | DataTypeClass) -> bool:
    return dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)


def _string(dtype: pl.DataType | DataTypeClass) -> bool:
    return dtype in (pl.String, pl.Categorical, pl.Null) or isinstance(dtype, pl.Enum)


def _fits(wanted: str, dtype: pl.DataType) -> bool:
    if dtype == pl.Null:
        return True
    if wanted == "flag":
        return dtype == pl.Boolean
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    inner = inner if inner is None or isinstance(inner, pl.DataType) else inner()
    if wanted == "number":
        return _number(dtype if inner is None else inner)
    if inner is None:
        return False
    if not isinstance(inner, pl.Struct):
        return inner == pl.Null or (wanted != "series" and _string(inner))
    types = dict(inner)
    fields = FIELDS[wanted]
    numbers = [name for name in ("value", HOURS) if name in types]
    return (
        set(fields) <= set(types) <= {*fields, HOURS}
        and _string(types[fields[0]])
        and all(_number(types[name]) for name in numbers)
    )


def _in_words(wanted: str) -> str:
    if wanted in ("flag", "number"):
        return "true or false" if wanted == "flag" else "a number or a list of numbers"
    structs = f"a list of structs of {', '.join(FIELDS[wanted])} and, if known, {HOURS}"
    return structs if wanted == "series" else f"a list of strings, or {structs},"
