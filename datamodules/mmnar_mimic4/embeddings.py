"""Films and notes as vectors that were made elsewhere: the published embeddings of MIMIC-CXR, or one's own in Parquet.

The published ones are a TFRecord file for each film, ``files/p10/p10000032/s50414267/<dicom_id>.tfrecord``, with 1,376
numbers named ``embedding``. They come without times: the metadata of MIMIC-CXR-JPG must be put beside ``files/``.

Source: A. Sellergren et al., "Generalized Image Embeddings for the MIMIC Chest X-Ray dataset" 1.0, PhysioNet (2023),
after A. Sellergren et al., "Simplified Transfer Learning for Chest Radiography Models Using Less Data", Radiology
305(2):454–465 (2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.extract import Counts, ExtractError
from mmnar_lightning.extract.malformed import SHOWN, Rows
from mmnar_mimic4.films import FILES, METADATA, Absent, Views, linked, look_at, refuse_absent
from mmnar_mimic4.tfrecords import Record, read_example, read_tfrecord
from mmnar_mimic4.windows import Source

Corrupt = Literal["count", "error"]
Vector = NDArray[np.float32]
SUFFIX = ".tfrecord"
EMBEDDING = "embedding"
IMAGE = "image/id"


def embedding_items(width: int) -> tuple[str, ...]:
    """Names of the values of a vector so wide: ``e0000`` and so on."""
    return tuple(f"e{k:04d}" for k in range(width))


@dataclass(frozen=True)
class _Found:
    """What a film's file holds: its vector, or else where its first record is damaged; neither if it isn't there."""

    vector: Vector | None = None
    damaged: int | None = None


def release_width(cxr_root: Path) -> int:
    """How wide the embeddings below a folder are: as wide as the first sound one.

    Raises:
        ExtractError: If there is none.
    """
    for path in _paths(cxr_root):
        for record in read_tfrecord(path):
            vector = _vector(record)
            if vector is not None:
                return len(vector)
    raise ExtractError(f"{cxr_root}: has no readable {SUFFIX} file with numbers named {EMBEDDING}")


def _paths(cxr_root: Path) -> Iterator[Path]:
    if (cxr_root / FILES).is_dir():
        # folder by folder, since listing all of them takes minutes
        for group in sorted((cxr_root / FILES).glob("p*")):
            for person in sorted(group.iterdir()):
                yield from sorted(person.glob(f"*/*{SUFFIX}"))
    else:
        yield from sorted(cxr_root.glob(f"*{SUFFIX}"))


def _vector(record: Record) -> Vector | None:
    """The embedding in a record; None where it is damaged, has none, or one that is not finite."""
    if record.data is None:
        return None
    try:
        found = read_example(record.data).get(EMBEDDING)
    except ValueError:
        return None
    return found if isinstance(found, np.ndarray) and len(found) and np.isfinite(found).all() else None


def cxr_embeddings(
    source: Source,
    cxr_root: Path,
    views: Views = "frontal",
    absent: Absent = "count",
    corrupt: Corrupt = "count",
    prospective: bool = True,
) -> pl.DataFrame:
    """The ``cxr`` modality as published embeddings, one row a film.

    Where `cxr_root` has no ``files/``, the ``.tfrecord`` files in it are taken to hold many records, each with the
    film's ``dicom_id`` under ``image/id``.

    Args:
        source: The table ``cxr``, and the samples.
        cxr_root: Folder of the embeddings.
        views: ``frontal`` films, or ``all``.
        absent: Whether a film without a file or record is counted (``count``) or an ``error``.
        corrupt: Likewise for damaged records.
        prospective: False takes films by the study's time alone.

    Returns:
        ``sample``, ``hours_before`` and ``e0000`` …, Float32, sorted by sample and time. A film whose embedding is
        absent or damaged is a row of NaN: no element, but a reason.

    Raises:
        ExtractError: If there is no embedding at all, one has another width than the first, a date or time is none, or
            an embedding is absent or damaged and must not be; names the count, the rows of the metadata, and the
            place in the file.
    """
    width = release_width(cxr_root)
    rows = linked(source, views, prospective)
    names = rows["film"].unique().sort()
    if (cxr_root / FILES).is_dir():
        found = dict(zip(names, look_at(names.to_list(), partial(_of_film, cxr_root / FILES)), strict=True))
    else:
        found = _of_all(cxr_root, names, corrupt, source.log)
    nothing = _Found()
    states = [found.get(name, nothing) for name in rows["film"]]
    damaged = [k for k, state in enumerate(states) if state.damaged is not None]
    if corrupt == "error" and damaged:
        first = states[damaged[0]].damaged
        where = _rows(rows, damaged)
        raise ExtractError(f"{METADATA.file}: {where} with a damaged embedding (the first at byte {first} of its file)")
    source.log.add(METADATA.name, "damaged embeddings", len(damaged))
    there = [state.vector is not None or state.damaged is not None for state in states]
    refuse_absent(rows.filter(~pl.Series(there, dtype=pl.Boolean)), absent, source)
    strange = [k for k, state in enumerate(states) if state.vector is not None and len(state.vector) != width]
    if strange:
        raise ExtractError(
            f"{METADATA.file}: {_rows(rows, strange)} whose embedding is not {width} wide, as the first is"
        )
    return _framed(rows, (state.vector for state in states), width)


def _rows(rows: pl.DataFrame, which: list[int]) -> Rows:
    numbers = rows["row"].gather(which).unique().sort()
    return Rows(len(numbers), numbers.head(SHOWN).to_list())


def _of_film(files: Path, name: str) -> _Found:
    path = files / f"{name}{SUFFIX}"
    if not path.is_file():
        return _Found()
    record = next(read_tfrecord(path), Record(0, None))
    vector = _vector(record)
    return _Found(vector, record.offset if vector is None else None)


def _of_all(cxr_root: Path, names: pl.Series, corrupt: Corrupt, log: Counts) -> dict[str, _Found]:
    """Embeddings of linked films from files of many records; the first of a film counts."""
    wanted = {PurePosixPath(name).name: name for name in names}
    found: dict[str, _Found] = {}
    for path in _paths(cxr_root):
        for record in read_tfrecord(path):
            # whose a damaged record is, nobody can tell
            if (vector := _vector(record)) is None or record.data is None:
                if corrupt == "error":
                    raise ExtractError(f"{path.name}: a damaged record at byte {record.offset}")
                log.add(METADATA.name, "damaged records", 1)
                continue
            image = read_example(record.data).get(IMAGE)
            film = PurePosixPath(image[0].decode(errors="replace")).stem if isinstance(image, list) and image else ""
            if film in wanted:
                found.setdefault(wanted[film], _Found(vector))
    return found


def _framed(rows: pl.DataFrame, vectors: Iterable[Vector | None], width: int) -> pl.DataFrame:
    values = np.full((rows.height, width), np.nan, dtype=np.float32, order="F")
    for k, vector in enumerate(vectors):
        if vector is not None:
            values[k] = vector
    items = pl.from_numpy(values, schema=dict.fromkeys(embedding_items(width), pl.Float32))
    return rows.select("sample", "hours_before").hstack(items)


@dataclass(frozen=True)
class OwnEmbeddings:
    """Vectors of notes or films in a Parquet file, made by the user.

    One column holds the key, ``note_id`` or ``dicom_id``; beside it stands one column of lists or arrays, or one float
    column for each value.

    Args:
        path: The file.
        key: Name of the key.

    Raises:
        ExtractError: If the file can't be read, or its columns are no such.
    """

    path: Path
    key: str

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ExtractError(f"{self.path}: there is no such file")
        try:
            columns = dict(pl.read_parquet_schema(self.path))
        except (pl.exceptions.PolarsError, OSError):
            raise ExtractError(f"{self.path}: is no readable Parquet file") from None
        if self.key not in columns:
            raise ExtractError(f"{self.path.name}: has no column {self.key}")
        lists = [name for name, dtype in columns.items() if isinstance(dtype, pl.List | pl.Array)]
        floats = [name for name, dtype in columns.items() if dtype.is_float()]
        if len(lists) == 1:
            return
        others = sorted(set(columns) - set(floats) - {self.key})
        if lists or others or not floats:
            raise ExtractError(
                f"{self.path.name}: beside {self.key} one column of lists, or nothing but float columns, must stand; "
                f"there {'is' if len(others) == 1 else 'are'} {', '.join(others) or 'none'}"
            )

    @cached_property
    def sha256(self) -> str:
        """Hash of the file; takes a second for each gigabyte or two."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def width(self) -> int:
        """How many values a vector has: as many as the first.

        Raises:
            ExtractError: If there is none.
        """
        first = self._vectors().drop_nulls("vector").head(1).collect()
        if first.height == 0 or not first["vector"].list.len().item():
            raise ExtractError(f"{self.path.name}: holds no vector")
        return int(first["vector"].list.len().item())

    def _vectors(self) -> pl.LazyFrame:
        frame = pl.scan_parquet(self.path, glob=False)
        columns: Mapping[str, Any] = frame.collect_schema()
        listed = [name for name, dtype in columns.items() if isinstance(dtype, pl.List | pl.Array)]
        if not listed:
            vector = pl.concat_list([name for name in columns if name != self.key])
        elif isinstance(columns[listed[0]], pl.Array):
            vector = pl.col(listed[0]).arr.to_list()
        else:
            vector = pl.col(listed[0])
        return frame.select(pl.col(self.key).cast(pl.String), vector=vector.cast(pl.List(pl.Float32)))

    def of(self, rows: pl.DataFrame, log: Counts, table: str) -> pl.DataFrame:
        """Vectors in place of notes or films.

        Args:
            rows: ``sample``, ``hours_before`` and the key, as `notes` and `films` link them.
            log: Takes the number of rows without a vector.
            table: Name of the modality there.

        Returns:
            ``sample``, ``hours_before`` and ``e0000`` …, Float32, in the order of `rows`; NaN where there is no vector.

        Raises:
            ExtractError: If a key stands twice, or a vector has another width than the first or an infinite value.
        """
        width = self.width
        numbered = self._vectors().with_row_index("row", offset=1)
        wanted = pl.col(self.key).is_in(rows[self.key].unique().implode())
        found = numbered.filter(wanted).collect(engine="streaming").sort("row")
        vector = pl.col("vector")
        wrong = {
            f"column {self.key}: {{}} that repeat a key": ~pl.col(self.key).is_first_distinct(),
            f"{{}} with another width than the first, {width}": vector.list.len() != width,
            "{} with an infinite value": vector.list.eval(pl.element().is_infinite()).list.any(),
        }
        problems = []
        for what, flag in wrong.items():
            bad = found.filter(flag)["row"]
            if len(bad):
                problems.append(f"{self.path.name}: {what.format(Rows(len(bad), bad.head(SHOWN).to_list()))}")
        if problems:
            raise ExtractError(*problems)
        joined = rows.join(found, on=self.key, how="left", validate="m:1", maintain_order="left")
        log.add(table, "without an embedding", joined["vector"].null_count())
        return _framed(rows, (None if v is None else v.to_numpy() for v in joined["vector"]), width)
