"""From a modality's table to its elements: what is checked, and how each kind is laid out."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mmnar_lightning.extract import ExtractError, TableSpec
from mmnar_tables.checks import refuse
from mmnar_tables.description import SAMPLES, ModalityEntry

LEAK = "column 'hours_before' is negative, so the row became known after the prediction time"


@dataclass(frozen=True)
class ModalityTable:
    """One modality's table, opened.

    Args:
        entry: What ``schema.yaml`` says of it.
        spec: The columns that are read.
        frame: Its rows, in the order of the file.
        samples: ``sample_id`` and ``sample``, the row in the store, of every sample.
    """

    entry: ModalityEntry
    spec: TableSpec
    frame: pl.LazyFrame
    samples: pl.DataFrame

    def items(self) -> tuple[str, ...]:
        """Names of the features (``vector``) or variables (``series``), from ``schema.yaml`` or else the table itself.

        Raises:
            ExtractError: If the table doesn't say either.
        """
        entry = self.entry
        if entry.items or entry.kind not in ("vector", "series"):
            return entry.items
        if entry.kind == "series":
            names = self.frame.select(pl.col("variable").cast(pl.String).drop_nulls().unique().sort()).collect()
            return tuple(names["variable"])
        if entry.column is None:
            return tuple(name for name in self.spec.columns if name not in ("sample_id", "hours_before"))
        width = self._list_width()
        if not width:
            raise ExtractError(
                f"{entry.file}.parquet: column {entry.column!r} holds no list; name the features under `items`"
            )
        return tuple(f"{entry.column}_{k}" for k in range(width))

    def _list_width(self) -> int:
        assert self.entry.column is not None
        dtype = self.spec.schema[self.entry.column]
        if isinstance(dtype, pl.Array):
            return dtype.size
        first = self.frame.select(pl.col(self.entry.column).list.len().drop_nulls().head(1)).collect()
        return int(first.item()) if first.height else 0

    def check(self, items: tuple[str, ...]) -> None:
        """Refuse rows that can't be used.

        Args:
            items: The features or variables.

        Raises:
            ExtractError: If a row belongs to no sample, lies after the prediction time, has another width than the
                others, an infinite value, or a variable that isn't among the items.
        """
        known = self._with_sample().select("sample", *(name for name in self.spec.columns if name != "sample_id"))
        wrong = {f"column 'sample_id' is not in {SAMPLES}.parquet": pl.col("sample").is_null()}
        if "hours_before" in self.spec.columns:
            hours = pl.col("hours_before").cast(pl.Float64)
            wrong |= {LEAK: hours < 0, "column 'hours_before' is infinite": hours.is_infinite()}
        refuse(known, self.entry.file, wrong | self._wrong_values(items))

    def _wrong_values(self, items: tuple[str, ...]) -> dict[str, pl.Expr]:
        column = self.entry.column
        if self.entry.kind == "series":
            variable = pl.col("variable").cast(pl.String)
            return {
                "column 'variable' is null where 'value' is not": pl.col("variable").is_null()
                & pl.col("value").is_not_null(),
                "column 'variable' is none of the items in schema.yaml": ~variable.is_in(items),
                "column 'value' is infinite": pl.col("value").cast(pl.Float32).is_infinite(),
            }
        if self.entry.kind != "vector":
            return {}
        if column is None:
            return {f"column {name!r} is infinite": pl.col(name).cast(pl.Float32).is_infinite() for name in items}
        values = self._as_list(column)
        infinite = values.list.eval(pl.element().is_infinite().fill_null(False)).list.any()
        return {
            f"column {column!r} does not have the {len(items)} values of the others": values.list.len() != len(items),
            f"column {column!r} holds an infinite value": infinite,
        }

    def _as_list(self, column: str) -> pl.Expr:
        values = pl.col(column)
        if isinstance(self.spec.schema[column], pl.Array):
            values = values.arr.to_list()
        return values.cast(pl.List(pl.Float32))

    def _with_sample(self) -> pl.LazyFrame:
        """The rows in their order, with the sample each belongs to (null where there is none)."""
        key = self.samples.schema["sample_id"]
        frame = self.frame.with_columns(pl.col("sample_id").cast(key, strict=False))
        return frame.join(self.samples.lazy(), on="sample_id", how="left", maintain_order="left")

    def without_value(self) -> int:
        """How many rows hold no value: nothing measured, no text, no code. They become no element."""
        entry = self.entry
        if entry.kind == "vector" and entry.column is None:
            columns = [name for name in self.spec.columns if name not in ("sample_id", "hours_before")]
            empty = pl.all_horizontal(pl.col(name).cast(pl.Float32).fill_nan(None).is_null() for name in columns)
        elif entry.kind == "vector":
            assert entry.column is not None
            measured = self._as_list(entry.column).list.eval(pl.element().is_not_nan()).list.any().fill_null(False)
            empty = ~measured
        elif entry.kind == "series":
            empty = pl.col("value").cast(pl.Float32).fill_nan(None).is_null()
        else:
            assert entry.column is not None
            if self._lists:
                blank = pl.element().cast(pl.String).str.strip_chars() != ""
                empty = ~pl.col(entry.column).list.eval(blank).list.any().fill_null(False)
            else:
                empty = (pl.col(entry.column).cast(pl.String).str.strip_chars() == "").fill_null(True)
        return int(self.frame.select(empty.sum()).collect(engine="streaming").item())

    @property
    def _lists(self) -> bool:
        return self.entry.column is not None and isinstance(self.spec.schema[self.entry.column], pl.List)

    def elements(self, items: tuple[str, ...]) -> pl.DataFrame:
        """Lay the rows out as elements, sorted by sample, then as in the file.

        Args:
            items: The features or variables.

        Returns:
            ``sample``, ``hours_before`` and the columns of the kind, as `write_store` asks for.
        """
        hours = pl.col("hours_before") if "hours_before" in self.spec.columns else pl.lit(None)
        frame = self._with_sample().with_row_index("file/row").sort("sample", "file/row")
        base = [pl.col("sample").cast(pl.Int64), hours.cast(pl.Float32).fill_nan(None).alias("hours_before")]
        column = self.entry.column
        if self.entry.kind == "series":
            named = frame.select(*base, pl.col("variable").cast(pl.String), pl.col("value").cast(pl.Float32))
        elif self.entry.kind == "vector":
            if column is None:
                named = frame.select(*base, *(pl.col(name).cast(pl.Float32) for name in items))
            else:
                values = self._as_list(column)
                named = frame.select(
                    *base, *(values.list.get(k, null_on_oob=True).alias(name) for k, name in enumerate(items))
                )
        else:
            assert column is not None
            target = {"codes": "code", "text": "text", "image": "path"}[self.entry.kind]
            named = frame.select(*base, pl.col(column).alias(target))
            if self._lists:
                named = named.explode(target)
            named = named.with_columns(pl.col(target).cast(pl.String)).filter(pl.col(target).str.strip_chars() != "")
        return named.collect()
