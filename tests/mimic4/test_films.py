"""Which films a sample may contain, and which of them are there and can be read."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmnar_lightning.extract import Counts, ExtractError, scan
from mmnar_mimic4 import films
from mmnar_mimic4.windows import Source

At = Callable[..., datetime]
SUBJECT = 10_000_001
OTHER = 19_000_002
METADATA = "mimic-cxr-2.0.0-metadata"


def picture(kind: str = "JPEG", mode: str = "L", seed: int = 0) -> bytes:
    """A small picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise.astype(np.uint16) * 257)
    file = io.BytesIO()
    image.convert(mode).save(file, kind) if mode != "I;16" else image.save(file, kind)
    return file.getvalue()


class Films:
    """Films of a folder, and what becomes of them."""

    def __init__(self, raw: Any, samples: pl.DataFrame, root: Path) -> None:
        self.raw, self.samples, self.root = raw, samples, root
        self.counts: dict[str, int] = {}
        (root / "files").mkdir(parents=True)

    def add(
        self,
        dicom: str,
        time: datetime,
        content: bytes | None = b"picture",
        subject: int = SUBJECT,
        suffix: str = ".jpg",
        **columns: Any,
    ) -> Films:
        """List a film, frontal by default, and put its file there, if it has a content."""
        day = {"StudyDate": f"{time:%Y%m%d}", "StudyTime": f"{time:%H%M%S}.{time.microsecond // 1000:03d}"}
        keys = {"dicom_id": dicom, "subject_id": subject, "study_id": 50_000_000 + len(self.raw.rows[METADATA])}
        self.raw.add(METADATA, **{**keys, "ViewPosition": "PA", **day, **columns})
        if content is not None:
            path = self.root / self.path(dicom, suffix)
            path.parent.mkdir(parents=True)
            path.write_bytes(picture() if content == b"picture" else content)
        return self

    def path(self, dicom: str, suffix: str = ".jpg") -> str:
        """Where a film lies, below the root."""
        row = next(row for row in self.raw.rows[METADATA] if row["dicom_id"] == dicom)
        person = str(row["subject_id"])
        return f"files/p{person[:2]}/p{person}/s{row['study_id']}/{dicom}{suffix}"

    def source(self) -> tuple[Source, Counts]:
        log = Counts()
        frame = scan(self.raw.write(self.root), films.metadata(self.root))
        return Source({"cxr": frame}, self.samples, log), log

    def made(self, **options: Any) -> pl.DataFrame:
        source, log = self.source()
        found = films.cxr(source, self.root, **options)
        self.counts = {what: count for (table, what), count in log.items() if table == "cxr"}
        assert found.schema == {"sample": pl.Int64, "hours_before": pl.Float32, "path": pl.String}
        assert found["sample"].is_sorted()
        return found

    def names(self, sample: int = 0, **options: Any) -> list[str | None]:
        """Ids of a sample's films; None where there is no readable file."""
        paths = self.made(**options).filter(sample=sample)["path"]
        return [None if path is None else Path(path).stem for path in paths]


@pytest.fixture
def film(raw: Any, at: At, tmp_path: Path) -> Films:
    """Films of two patients, whose windows are days 0 to 6 at noon."""
    rows = [(0, SUBJECT, at(0), at(6)), (1, OTHER, at(0), at(6))]
    samples = pl.DataFrame(rows, schema=["sample", "subject_id", "window_start", "prediction_time"], orient="row")
    return Films(raw, samples, tmp_path / "cxr")


def test_a_film_exists_an_hour_after_its_study(film: Films, at: At) -> None:
    film.add("in_time", at(6, hours=-1)).add("too_late", at(6, hours=-1, seconds=0.5)).add("at_prediction", at(6))
    film.add("first", at(0)).add("before", at(0, seconds=-1)).add("others", at(1), subject=OTHER)
    film.add("nobodys", at(1), subject=12_000_000)
    assert film.names() == ["first", "in_time"]
    assert film.names(1) == ["others"]
    assert film.made()["hours_before"].to_list() == [144, 1, 120]
    assert film.counts["not yet known at the prediction time"] == 2
    assert film.names(prospective=False) == ["first", "in_time", "too_late", "at_prediction"]


def test_paths_are_relative_to_the_root(film: Films, at: At) -> None:
    film.add("a-b", at(1)).add("c-d", at(1), subject=OTHER)
    paths = film.made()["path"].to_list()
    assert paths == ["files/p10/p10000001/s50000000/a-b.jpg", "files/p19/p19000002/s50000001/c-d.jpg"]
    assert all((film.root / path).is_file() for path in paths)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("93015.5", timedelta(hours=9, minutes=30, seconds=15.5)),
        ("093015.500", timedelta(hours=9, minutes=30, seconds=15.5)),
        ("0.0", timedelta(0)),
        ("0", timedelta(0)),
        ("7.031", timedelta(seconds=7.031)),
        ("1000", timedelta(minutes=10)),
        ("235959.999", timedelta(hours=23, minutes=59, seconds=59.999)),
        ("213014.531000", timedelta(hours=21, minutes=30, seconds=14.531)),
        ("235960", timedelta(days=1)),
        ("", timedelta(days=1)),  # a date without a time is the end of that day
    ],
)
def test_study_times(written: str, meant: timedelta) -> None:
    time = [float(written)] if written else [None]
    frame = pl.LazyFrame({"StudyDate": [21500603], "StudyTime": time}, schema_overrides={"StudyTime": pl.Float64})
    assert films.study_times(frame).collect()["studytime"].to_list() == [datetime(2150, 6, 3) + meant]


@given(st.datetimes(datetime(2100, 1, 1), datetime(2215, 1, 1)))
def test_every_time_of_day_is_read_back(time: datetime) -> None:
    number = float(f"{time:%H%M%S.%f}")
    frame = pl.LazyFrame({"StudyDate": [int(f"{time:%Y%m%d}")], "StudyTime": [number]})
    assert films.study_times(frame).collect()["studytime"].to_list() == [time]


@pytest.mark.parametrize(
    ("column", "wrong", "noun"),
    [
        ("StudyDate", ["21501301", "21500229", "2150061", "20150600", "0", "-21500601"], "date"),
        ("StudyTime", ["240000", "106000.0", "93061.0", "-1", "1e7"], "time"),
    ],
)
def test_impossible_dates_and_times_are_refused(film: Films, at: At, column: str, wrong: list[str], noun: str) -> None:
    film.add("good", at(1))
    for k, value in enumerate(wrong):
        columns: dict[str, Any] = {column: value}
        film.add(f"bad{k}", at(1), None, **columns)
    with pytest.raises(ExtractError) as caught:
        film.made()
    rows = ", ".join(str(k + 2) for k in range(len(wrong)))
    assert (
        str(caught.value)
        == f"{METADATA}: column {column}: {len(wrong)} rows (rows {rows}) where no {noun} could be read"
    )


def test_text_for_a_time_is_refused_without_showing_it(film: Films, at: At) -> None:
    film.add("good", at(1)).add("bad", at(1), None, StudyTime="secret")
    with pytest.raises(ExtractError, match=rf"^{METADATA}\.csv\.gz: column StudyTime: 1 row \(row 2\)") as caught:
        film.made()
    assert "secret" not in str(caught.value)


def test_a_film_without_a_date_is_counted(film: Films, at: At) -> None:
    film.add("good", at(1)).add("dateless", at(1), StudyDate=None)
    assert film.names() == ["good"]
    assert film.counts["rows without a date, not used"] == 1


def test_views(film: Films, at: At) -> None:
    def coded(meaning: str) -> dict[str, Any]:
        return {"ViewCodeSequence_CodeMeaning": meaning}

    views = {"pa": "PA", "ap": "AP", "lower": "ap ", "lateral": "LATERAL", "ll": "LL", "axial": "AP AXIAL"}
    for k, (name, view) in enumerate(views.items()):
        film.add(name, at(1, minutes=k), ViewPosition=view)
    film.add("unnamed", at(2), ViewPosition=None)
    film.add("coded", at(3), ViewPosition=None, **coded("Antero-Posterior"))
    film.add("coded_lateral", at(4), ViewPosition=None, **coded("lateral"))
    film.add("contradicted", at(5), ViewPosition="LATERAL", **coded("postero-anterior"))
    assert film.names() == ["pa", "ap", "lower", "coded"]
    assert film.counts["not a frontal view, not used"] == 6
    assert len(film.names(views="all")) == 10


BAD = {
    "empty": b"",
    "text": b"this is no picture",
    "cut": picture()[:-200],
    "header_only": picture()[:300],
    "png_cut": picture("PNG")[:-100],
    "gif": picture("GIF"),
}
GOOD = {
    "grey": picture(),
    "colour": picture(mode="RGB"),
    "png_named_jpg": picture("PNG"),
    "sixteen_bits": picture("PNG", "I;16"),
    "one_bit": picture("PNG", "1"),
}


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_which_files_can_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "film.jpg").write_bytes((BAD | GOOD)[name])
    assert films.readable(tmp_path / "film.jpg") == (name in GOOD)
    if name not in ("cut", "header_only", "png_cut"):
        # a header alone does not tell that a film was cut off
        assert films.readable(tmp_path / "film.jpg", "open") == (name in GOOD)


@given(st.binary(max_size=40), st.integers(0, 2000), st.sampled_from(["JPEG", "PNG"]))
def test_broken_files_stop_nothing(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, kind: str) -> None:
    whole = picture(kind)
    path = tmp_path_factory.mktemp("broken") / "film.jpg"
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    for check in ("decode", "open"):
        assert films.readable(path, check) in (True, False)


def test_absent_and_unreadable_films_are_counted_and_are_no_elements(film: Films, at: At) -> None:
    film.add("good", at(1)).add("gone", at(2), None).add("broken", at(3), BAD["cut"])
    film.add("png", at(4), picture("PNG"), suffix=".png").add("others", at(1), None, subject=OTHER)
    film.add("unlinked", at(30), None)
    assert film.names() == ["good", None, None, "png"]
    assert film.names(1) == [None]
    assert film.counts["listed but not there"] == 2
    assert film.counts["unreadable"] == 1
    # a film that was cut off has a sound header
    assert film.names(check="open") == ["good", None, "broken", "png"]
    with pytest.raises(ExtractError) as caught:
        film.made(absent="error")
    assert str(caught.value) == f"{METADATA}: 2 rows (rows 2, 5) with a film that is not below files"


def test_a_root_without_films_is_refused(film: Films, at: At) -> None:
    film.add("a", at(1), None)
    shutil.rmtree(film.root / "files")
    with pytest.raises(ExtractError, match="has no folder files with films"):
        film.made()


def test_films_of_a_later_stay_change_nothing(film: Films, at: At) -> None:
    film.add("own", at(1)).add("own_broken", at(2), BAD["text"])
    before = film.made()
    film.add("later", at(40)).add("later_broken", at(41), b"").add("not_yet", at(6)).add(
        "nobody", at(1), subject=11_000_000
    )
    assert film.made().equals(before)


def test_columns_that_are_not_listed_change_nothing(film: Films, at: At) -> None:
    film.add("a", at(1))
    before = film.made()
    for column in ("Rows", "Columns", "PerformedProcedureStepDescription", "ProcedureCodeSequence_CodeMeaning"):
        film.raw.rows[METADATA][0][column] = "nonsense"
    assert film.made().equals(before)


def test_a_film_in_two_windows_serves_both(film: Films, at: At) -> None:
    film.samples = film.samples.with_columns(subject_id=pl.lit(SUBJECT))
    film.add("shared", at(1))
    assert film.names(0) == film.names(1) == ["shared"]


def test_films_of_one_time_come_in_the_order_of_their_ids(film: Films, at: At) -> None:
    film.add("c", at(1)).add("a", at(1)).add("b", at(1))
    assert film.names() == ["a", "b", "c"]


def test_the_state_of_the_films(film: Films, at: At, tmp_path: Path) -> None:
    film.add("a", at(1)).add("b", at(2), subject=OTHER).add("c", at(3), picture("PNG"), suffix=".png")
    first = film.root / film.path("a")
    state = films.film_state(film.root)
    # by hand: place and size of each, in order
    paths = sorted(p for p in film.root.rglob("*") if p.suffix in (".jpg", ".png"))
    lines = "".join(f"{p.relative_to(film.root / 'files').as_posix()} {p.stat().st_size}\n" for p in paths)
    assert state == hashlib.sha256(lines.encode()).hexdigest()
    # other files, and where the folder lies, don't matter
    (first.parent / "index.html").write_text("x")
    film.raw.write(film.root)
    shutil.copytree(film.root, tmp_path / "moved")
    assert films.film_state(film.root) == films.film_state(tmp_path / "moved") == state
    first.write_bytes(first.read_bytes() + b"x")
    grown = films.film_state(film.root)
    first.unlink()
    gone = films.film_state(film.root)
    assert len({state, grown, gone}) == 3
    assert films.film_state(film.root, (".tfrecord",)) == hashlib.sha256().hexdigest()


def test_the_state_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match="the folder of films does not exist"):
        films.film_state(tmp_path / "nowhere")
