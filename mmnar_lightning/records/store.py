"""The record store: immutable, memory-mapped Arrow files that hold what was observed, and nothing fitted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mmnar_lightning.records.schema import Modality, RecordSchema

FORMAT = 1
MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A record store cannot be written or opened; the message says which file and why."""


def store_name(dataset: str, cohort: str, fingerprint: str) -> str:
    """Folder name of a store."""
    return f"{dataset}-{cohort}-{fingerprint[:16]}"


def write_store(
    parent: Path,
    dataset: str,
    cohort: str,
    fingerprint: str,
    schema: RecordSchema,
    samples: pl.DataFrame,
    elements: Mapping[str, pl.DataFrame],
    manifest: Mapping[str, Any],
) -> Path:
    """Write a record store beside its final place and rename it, so that a half-written one can't be opened.

    Args:
        parent: Folder that stores are kept in; created private to the user.
        dataset: Name of the source.
        cohort: Name of the cohort.
        fingerprint: Hash of raw files, options and extractor version.
        schema: Modalities with all catalogue items, and tasks; nothing fitted.
        samples: One row a sample in its final order: `patient`, `site`, `id/<name>`, `prediction_time`,
            `label/<task>` (null = unknown), `group/<name>`, `reason/<modality>`, optional `split`.
        elements: By modality: `sample` (row of `samples`, ascending), `hours_before` ≥ 0, and the values of its kind:
            one column an item (`vector`), `code` (`codes`), `variable` and `value` (`series`), `text`, or `path`
            (`image`). Rows without any value are left out, so that observed means at least one value. Where the
            samples say why a modality is absent (`reason/<modality>`), one whose rows all lack a value is
            ``unreadable``, and what is observed has no reason.
        manifest: Further JSON entries (counts, options, sources). Nothing that changes from run to run.

    Returns:
        The store's folder. If it is there already it is left as it is.

    Raises:
        StoreError: If a column is missing or of another type, an element points at no sample or lies after the
            prediction time, a value is infinite, or a child task is positive where its parent is not. Names the column
            and counts rows, never values.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = parent / store_name(dataset, cohort, fingerprint)
    if final.exists():
        RecordStore(final)
        return final
    _check_samples(schema, samples)
    parts = Path(tempfile.mkdtemp(prefix=f".{final.name}.writing-", dir=parent))
    try:
        files = _write_files(parts, fingerprint, schema, samples, elements)
        described = {
            "format": FORMAT,
            "dataset": dataset,
            "cohort": cohort,
            "fingerprint": fingerprint,
            "samples": samples.height,
            "patients": samples["patient"].n_unique(),
            "schema": schema.to_dict(),
            "files": files,
        }
        _write_manifest(parts / MANIFEST, described, manifest)
        _rename(parts, final)
    finally:
        # gone already where it was renamed
        shutil.rmtree(parts, ignore_errors=True)
    return final


def _write_files(
    parts: Path,
    fingerprint: str,
    schema: RecordSchema,
    samples: pl.DataFrame,
    elements: Mapping[str, pl.DataFrame],
) -> dict[str, dict[str, Any]]:
    """Write every Arrow file of a store, and return the size and hash of each."""
    (parts / "modality").mkdir()
    metadata = {"mmnar.fingerprint": fingerprint}
    columns = samples.with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int64))
    for modality in schema.modalities:
        given = elements[modality.name]
        frame = _with_values(modality, given, samples.height)
        start, stop = _ranges(frame["sample"].to_numpy(), samples.height)
        if (reason := f"reason/{modality.name}") in columns.columns:
            tried = pl.Series(np.isin(np.arange(samples.height), given["sample"].to_numpy()))
            absent = pl.when(tried).then(pl.lit("unreadable")).otherwise(pl.col(reason))
            columns = columns.with_columns(pl.when(pl.Series(stop == start)).then(absent).alias(reason))
        columns = columns.with_columns(
            pl.Series(f"observed/{modality.name}", stop > start),
            pl.Series(f"start/{modality.name}", start),
            pl.Series(f"stop/{modality.name}", stop),
        )
        table, items = _columns_of(modality, frame)
        _write_arrow(parts / "modality" / f"{modality.name}.arrow", table, metadata)
        if items is not None:
            _write_arrow(parts / "modality" / f"{modality.name}.items.arrow", pa.table({"item": items}), metadata)
    table = columns.to_arrow(compat_level=pl.CompatLevel.oldest())
    # polars leaves whatever it computed beneath a null and behind a bitmap's end; gathered anew, the same rows are the
    # same bytes however they came about
    _write_arrow(parts / "samples.arrow", table.take(pa.array(np.arange(samples.height))), metadata)
    files = {str(p.relative_to(parts)): p for p in sorted(parts.rglob("*.arrow"))}
    return {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}


def _write_manifest(path: Path, described: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if clash := sorted(described.keys() & given.keys()):
        raise StoreError(f"manifest: {', '.join(clash)} cannot be given, the store writes it")
    path.write_text(json.dumps({**described, **given}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rename(parts: Path, final: Path) -> None:
    for path in parts.rglob("*"):
        if path.is_file():
            with path.open("rb") as written:
                os.fsync(written.fileno())
    try:
        parts.rename(final)
    except OSError:
        # another process was quicker; its store holds the same bytes
        if not (final / MANIFEST).exists():
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_samples(schema: RecordSchema, samples: pl.DataFrame) -> None:
    wanted = ["patient", "site", "prediction_time", *(f"label/{t.name}" for t in schema.tasks)]
    missing = [name for name in wanted if name not in samples.columns]
    if missing:
        raise StoreError(f"samples: missing column {', '.join(missing)}")
    for name, dtype in {"patient": pl.String, **{f"label/{t.name}": pl.Boolean for t in schema.tasks}}.items():
        if samples[name].dtype != dtype:
            raise StoreError(f"samples: column {name!r} is {samples[name].dtype} where {dtype()} is needed")
    if samples.height == 0:
        raise StoreError("samples: no sample is left; the counts of exclusions say why")
    if nulls := samples["patient"].null_count():
        raise StoreError(f"samples: column 'patient' is null in {nulls} rows")
    for task in schema.tasks:
        if task.parent is None:
            continue
        child, parent = samples[f"label/{task.name}"], samples[f"label/{task.parent}"]
        wrong = int((child.fill_null(False) & ~parent.fill_null(True)).sum())
        if wrong:
            raise StoreError(
                f"samples: task {task.name!r} is positive in {wrong} rows where its parent {task.parent!r} is not"
            )


def _with_values(modality: Modality, frame: pl.DataFrame, n_samples: int) -> pl.DataFrame:
    """Keep the rows that hold a value, after checking that each belongs to a sample and lies before its prediction."""
    values = {"codes": ["code"], "series": ["variable", "value"], "text": ["text"], "image": ["path"]}
    needed = ["sample", "hours_before", *values.get(modality.kind, modality.items)]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise StoreError(f"modality {modality.name!r}: missing column {', '.join(missing[:5])}")
    if clash := sorted({"sample", "hours_before"} & set(modality.items)):
        raise StoreError(f"modality {modality.name!r}: no item can be named {clash[0]!r}; that is a column of its own")
    sample = frame["sample"]
    if sample.null_count() or (frame.height and not 0 <= sample.min() <= sample.max() < n_samples):  # type: ignore[operator]
        raise StoreError(f"modality {modality.name!r}: column 'sample' points outside the {n_samples} samples")
    if not sample.is_sorted():
        raise StoreError(f"modality {modality.name!r}: column 'sample' is not ascending")
    frame = frame.with_columns(pl.col("hours_before").cast(pl.Float32))
    late = int((frame["hours_before"] < 0).sum())
    if late:
        raise StoreError(
            f"modality {modality.name!r}: {late} elements lie after the prediction time (hours_before < 0)"
        )
    if modality.kind == "vector":
        measured = np.zeros(frame.height, dtype=bool)
        for item in modality.items:
            measured |= ~np.isnan(_floats(modality, frame, item))
        return frame.filter(pl.Series(measured))
    frame = frame.drop_nulls(values[modality.kind])
    if modality.kind == "series":
        return frame.filter(pl.Series(~np.isnan(_floats(modality, frame, "value"))))
    return frame.filter(pl.col(values[modality.kind][0]) != "")


def _floats(modality: Modality, frame: pl.DataFrame, column: str) -> np.ndarray[Any, Any]:
    """A column as float32 [n], null as NaN."""
    values: np.ndarray[Any, Any] = frame.get_column(column).cast(pl.Float32).to_numpy()
    if infinite := int(np.isinf(values).sum()):
        raise StoreError(f"modality {modality.name!r}: column {column!r} is infinite in {infinite} rows")
    return values


def _ranges(sample: np.ndarray[Any, Any], n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = np.arange(n)
    return np.searchsorted(sample, rows, "left"), np.searchsorted(sample, rows, "right")


def _columns_of(modality: Modality, frame: pl.DataFrame) -> tuple[pa.Table, pa.Array | None]:
    columns = {
        "sample": pa.array(frame["sample"].cast(pl.Int64).to_numpy()),
        "hours_before": pa.array(frame["hours_before"].fill_null(float("nan")).to_numpy()),
    }
    items = None
    if modality.kind == "vector":
        wide = np.empty((frame.height, len(modality.items)), dtype=np.float32)
        for f, item in enumerate(modality.items):
            wide[:, f] = _floats(modality, frame, item)
        columns["values"] = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), len(modality.items))
    elif modality.kind == "codes":
        codes = frame["code"].cast(pl.String)
        names = codes.unique().sort()
        columns["values"] = _index_of(codes, names)
        items = names.to_arrow(compat_level=pl.CompatLevel.oldest())
    elif modality.kind == "series":
        variable = frame["variable"].cast(pl.String)
        strange = set(variable.unique()) - set(modality.items)
        if strange:
            raise StoreError(f"modality {modality.name!r}: {len(strange)} variables are not among its items")
        columns["variable"] = _index_of(variable, pl.Series(modality.items, dtype=pl.String))
        columns["values"] = pa.array(_floats(modality, frame, "value"))
    else:
        column = frame["text" if modality.kind == "text" else "path"]
        columns["values"] = column.cast(pl.String).to_arrow(compat_level=pl.CompatLevel.oldest())
    return pa.table(columns), items


def _index_of(values: pl.Series, names: pl.Series) -> pa.Array:
    order = pl.DataFrame({"name": names, "index": np.arange(len(names), dtype=np.int32)})
    joined = pl.DataFrame({"name": values}).join(order, on="name", how="left", maintain_order="left")
    return pa.array(joined["index"].to_numpy())


def _write_arrow(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    # one record batch: a column is then one zero-copy array, and a batch of samples one gather
    table = table.combine_chunks().replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


class RecordStore:
    """A record store, opened by memory-mapping: what it holds is read when touched.

    Args:
        path: The store's folder.

    Raises:
        StoreError: If the folder is no complete store, or its files come from different stores.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = self._manifest()
        self.schema = RecordSchema.from_dict(self.manifest["schema"])
        self.fingerprint: str = self.manifest["fingerprint"]
        self._tables: dict[str, pa.Table] = {}
        for name, facts in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                raise StoreError(f"{self.path.name}: {name} is missing; remove it and prepare again")
            if file.stat().st_size != facts["bytes"]:
                raise StoreError(
                    f"{self.path.name}: {name} does not have the size its manifest states; remove it and prepare again"
                )
            self._tables[name] = self._map(name)
        self._frame: pl.DataFrame | None = None

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.is_file():
            raise StoreError(f"{self.path}: no record store (it has no {MANIFEST})")
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path}: not readable as JSON") from error
        if manifest.get("format") != FORMAT:
            raise StoreError(
                f"{path}: store format {manifest.get('format')} where {FORMAT} is needed; remove it and prepare again"
            )
        return manifest

    def _map(self, name: str) -> pa.Table:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self.path / name))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"{self.path.name}: {name} is not a readable Arrow file; remove it and prepare again"
            ) from error
        stamp = (table.schema.metadata or {}).get(b"mmnar.fingerprint", b"").decode()
        if stamp != self.fingerprint:
            raise StoreError(f"{self.path.name}: {name} belongs to another store (its fingerprint differs)")
        return table

    def __len__(self) -> int:
        return int(self.manifest["samples"])

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        # a loader's worker maps the files itself
        return (RecordStore, (self.path,))

    @property
    def samples(self) -> pl.DataFrame:
        """Sample rows: `sample`, `patient`, `site`, ids, `prediction_time`, labels, groups, availability and ranges."""
        if self._frame is None:
            frame = pl.from_arrow(self._tables["samples.arrow"])
            assert isinstance(frame, pl.DataFrame)
            self._frame = frame
        return self._frame

    def column(self, file: str, name: str) -> np.ndarray[Any, Any]:
        """Map a numeric column of one of the store's files, without a copy: [n], or [n, F] for a `vector`'s values."""
        column = self._tables[file].column(name)
        chunk = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if pa.types.is_fixed_size_list(chunk.type):
            flat: np.ndarray[Any, Any] = chunk.flatten().to_numpy(zero_copy_only=True)
            return flat.reshape(len(chunk), chunk.type.list_size)
        values: np.ndarray[Any, Any] = chunk.to_numpy(zero_copy_only=True)
        return values

    def strings(self, file: str, name: str = "values") -> pa.ChunkedArray:
        """Map a string column of one of the store's files."""
        return self._tables[file].column(name)

    def codes(self, modality: str) -> list[str]:
        """All codes of a `codes` modality, in the order that its values index."""
        listed: list[str] = self.strings(f"modality/{modality}.items.arrow", "item").to_pylist()
        return listed

    def verify(self) -> None:
        """Compare every file with the hash in the manifest.

        Raises:
            StoreError: If a file was changed since the store was written.
        """
        for name, facts in self.manifest["files"].items():
            if _sha256(self.path / name) != facts["sha256"]:
                raise StoreError(
                    f"{self.path.name}: {name} was changed since it was written; remove it and prepare again"
                )
