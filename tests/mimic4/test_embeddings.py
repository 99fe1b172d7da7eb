"""Vectors in place of films and notes: the published TFRecords, and one's own Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmnar_lightning.extract import Counts, ExtractError
from mmnar_lightning.records import Modality, RecordSchema, RecordStore, Task, write_store
from mmnar_mimic4 import embeddings, films
from mmnar_mimic4.tfrecords import example, write_tfrecord
from mmnar_mimic4.windows import Source

At = Callable[..., datetime]
SUBJECT = 10_000_001
OTHER = 19_000_002
WIDTH = 1376
METADATA = "mimic-cxr-2.0.0-metadata"


def vector(seed: int, width: int = WIDTH) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(width, dtype=np.float32)


def record(seed: int, width: int = WIDTH, image: str = "") -> bytes:
    return example({"image/id": image.encode(), "embedding": vector(seed, width)})


class Release:
    """A folder of embeddings, and what becomes of them."""

    def __init__(self, raw: Any, samples: pl.DataFrame, root: Path) -> None:
        self.raw, self.samples, self.root = raw, samples, root
        self.counts: dict[str, int] = {}

    def add(self, dicom: str, time: datetime, *records: bytes, subject: int = SUBJECT) -> Path:
        """List a film and write its file, if it has records; returns where it lies."""
        study = 50_000_000 + len(self.raw.rows[METADATA])
        day = {"StudyDate": f"{time:%Y%m%d}", "StudyTime": f"{time:%H%M%S}"}
        self.raw.add(METADATA, dicom_id=dicom, subject_id=subject, study_id=study, ViewPosition="AP", **day)
        person = str(subject)
        path = self.root / f"files/p{person[:2]}/p{person}/s{study}/{dicom}.tfrecord"
        if records:
            path.parent.mkdir(parents=True)
            write_tfrecord(path, records)
        return path

    def made(self, **options: Any) -> pl.DataFrame:
        log = Counts()
        frame = self.raw.frame(films.METADATA).lazy()
        found = embeddings.cxr_embeddings(Source({"cxr": frame}, self.samples, log), self.root, **options)
        self.counts = {what: count for (_, what), count in log.items()}
        return found

    def vectors(self, **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self.made(**options).drop("sample", "hours_before").to_numpy()


@pytest.fixture
def samples(at: At) -> pl.DataFrame:
    rows = [(0, SUBJECT, at(0), at(6)), (1, OTHER, at(0), at(6))]
    return pl.DataFrame(rows, schema=["sample", "subject_id", "window_start", "prediction_time"], orient="row")


@pytest.fixture
def release(raw: Any, samples: pl.DataFrame, tmp_path: Path) -> Release:
    (tmp_path / "cxr").mkdir()
    return Release(raw, samples, tmp_path / "cxr")


def test_each_film_is_a_row(release: Release, at: At) -> None:
    release.add("a", at(2), record(2))
    release.add("b", at(1), record(1))
    release.add("others", at(1), record(3), subject=OTHER)
    release.add("later", at(40), record(4))
    found = release.made()
    assert found.columns == ["sample", "hours_before", *embeddings.embedding_items(WIDTH)]
    assert found.columns[2] == "e0000"
    assert found.columns[-1] == "e1375"
    assert found.select("sample", "hours_before").rows() == [(0, 120), (0, 96), (1, 120)]
    assert set(found.dtypes[1:]) == {pl.Float32}
    assert np.array_equal(release.vectors(), [vector(1), vector(2), vector(3)])
    assert embeddings.release_width(release.root) == WIDTH


def test_absent_and_damaged_embeddings_are_no_elements_but_a_reason(release: Release, at: At, tmp_path: Path) -> None:
    damaged = release.add("a", at(1), record(1))
    release.add("b", at(2), record(2))
    release.add("gone", at(3), subject=OTHER)
    release.add("infinite", at(4), example({"embedding": np.full(WIDTH, np.inf, np.float32)}))
    release.add("without", at(4, hours=1), example({"other": vector(1)}))
    broken = bytearray(damaged.read_bytes())
    broken[1000] ^= 1
    damaged.write_bytes(broken)
    values = release.vectors()
    assert [bool(np.isnan(row).all()) for row in values] == [True, False, True, True, True]
    assert np.array_equal(values[1], vector(2))
    assert release.counts["damaged embeddings"] == 3
    assert release.counts["listed but not there"] == 1
    with pytest.raises(ExtractError) as caught:
        release.made(corrupt="error")
    assert str(caught.value) == (
        f"{METADATA}: 3 rows (rows 1, 4, 5) with a damaged embedding (the first at byte 0 of its file)"
    )
    with pytest.raises(ExtractError, match=rf"^{METADATA}: 1 row \(row 3\) with a film that is not below files$"):
        release.made(absent="error")
    # several elements of a sample, and one that has only an absent film
    schema = RecordSchema((Modality("cxr", "vector", embeddings.embedding_items(WIDTH)),), (Task("death"),))
    rows = pl.DataFrame(
        {
            "patient": ["a", "b"],
            "site": None,
            "prediction_time": 0.0,
            "label/death": False,
            "reason/cxr": "not_ordered",
        },
        schema_overrides={"site": pl.String},
    )
    release.add("c", at(5), record(5))
    store = RecordStore(write_store(tmp_path, "m", "c", "1" * 16, schema, rows, {"cxr": release.made()}, {}))
    assert np.array_equal(store.column("modality/cxr.arrow", "values"), [vector(2), vector(5)])
    assert store.samples["reason/cxr"].to_list() == [None, "unreadable"]


def test_another_width_is_refused(release: Release, at: At) -> None:
    release.add("a", at(1), record(1))
    release.add("b", at(2), record(2, 1024))
    with pytest.raises(ExtractError, match=rf"^{METADATA}: 1 row \(row 2\) whose embedding is not 1376 wide"):
        release.made()


def test_no_embedding_at_all(release: Release, at: At) -> None:
    release.add("a", at(1), b"no example")
    with pytest.raises(ExtractError, match=r"has no readable \.tfrecord file"):
        release.made()


def test_no_film_is_linked(release: Release, at: At) -> None:
    release.add("a", at(40), record(1))
    found = release.made()
    assert found.height == 0
    assert found.width == WIDTH + 2


def test_files_of_many_records(release: Release, at: At) -> None:
    release.add("a", at(1))
    release.add("b", at(2))
    release.add("none", at(3))
    shared = [record(9, image="nobodys"), record(1, image="a"), record(7, image="a")]
    write_tfrecord(release.root / "0.tfrecord", [*shared, b"damaged"])
    write_tfrecord(release.root / "1.tfrecord", [record(2, image="files/p10/b.dcm")])
    values = release.vectors()
    assert np.array_equal(values[:2], [vector(1), vector(2)])
    assert np.isnan(values[2]).all()
    assert release.counts["damaged records"] == 1
    assert release.counts["listed but not there"] == 1
    offset = sum(16 + len(data) for data in shared)
    with pytest.raises(ExtractError, match=rf"^0\.tfrecord: a damaged record at byte {offset}$"):
        release.made(corrupt="error")
    assert films.film_state(release.root, (".tfrecord",)) != films.film_state(release.root)


ROWS = pl.DataFrame(
    {"sample": [0, 0, 1], "hours_before": [3.0, 1.0, 2.0], "note_id": ["b", "a", "c"]},
    schema_overrides={"sample": pl.Int64, "hours_before": pl.Float32},
)


def own(tmp_path: Path, frame: pl.DataFrame) -> embeddings.OwnEmbeddings:
    frame.write_parquet(tmp_path / "own.parquet")
    return embeddings.OwnEmbeddings(tmp_path / "own.parquet", "note_id")


@pytest.mark.parametrize("layout", ["list", "array", "double", "columns"])
def test_ones_own_vectors(layout: str, tmp_path: Path) -> None:
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    types: dict[str, Any] = {
        "list": pl.List(pl.Float32),
        "array": pl.Array(pl.Float32, 2),
        "double": pl.List(pl.Float64),
        "columns": pl.List(pl.Float32),
    }
    frame = pl.DataFrame({"model": ["x"] * 3, "note_id": ["z", "a", "b"], "v": pl.Series(values, dtype=types[layout])})
    if layout == "columns":
        frame = frame.select("note_id", x=pl.col("v").list.get(0), y=pl.col("v").list.get(1))
    mine = own(tmp_path, frame)
    log = Counts()
    found = mine.of(ROWS, log, "radiology")
    assert mine.width == 2
    assert found.columns == ["sample", "hours_before", "e0000", "e0001"]
    assert found.schema["e0000"] == pl.Float32
    assert found.fill_nan(None).rows() == [(0, 3.0, 5.0, 6.0), (0, 1.0, 3.0, 4.0), (1, 2.0, None, None)]
    assert log.to_list() == [["radiology", "without an embedding", 1]]
    assert mine.sha256 == hashlib.sha256((tmp_path / "own.parquet").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"note_id": ["a", "b", "a"], "v": [[1.0], [2.0], [3.0]]}, "column note_id: 1 row (row 3) that repeat a key"),
        (
            {"note_id": ["z", "a", "b"], "v": [[1.0], [2.0], [3.0, 4.0]]},
            "1 row (row 3) with another width than the first, 1",
        ),
        ({"note_id": ["a", "b"], "v": [[1.0], [float("inf")]]}, "1 row (row 2) with an infinite value"),
        ({"note_id": ["a"], "v": [None]}, "holds no vector"),
        ({"id": ["a"], "v": [[1.0]]}, "has no column note_id"),
        ({"note_id": ["a"], "v": [[1.0]], "w": [[1.0]]}, "one column of lists"),
        ({"note_id": ["a"], "x": [1.0], "subject_id": [10]}, "subject_id"),
        ({"note_id": ["a"]}, "one column of lists"),
    ],
)
def test_bad_vectors(columns: dict[str, list[Any]], says: str, tmp_path: Path) -> None:
    frame = pl.DataFrame(columns, schema_overrides={"v": pl.List(pl.Float32)} if "v" in columns else {})
    with pytest.raises(ExtractError) as caught:
        own(tmp_path, frame).of(ROWS, Counts(), "radiology")
    assert says in str(caught.value)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_text("note_id,x\n")
    for name, told in (("own.parquet", "is no readable Parquet file"), ("none.parquet", "there is no such file")):
        with pytest.raises(ExtractError, match=told):
            embeddings.OwnEmbeddings(tmp_path / name, "note_id")
