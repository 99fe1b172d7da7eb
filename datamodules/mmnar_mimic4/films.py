"""Chest films in the layout of MIMIC-CXR-JPG: which a sample may contain, where they lie, whether they can be read.

The metadata file has the same name in releases 2.0.0 and 2.1.0. ``StudyDate`` is YYYYMMDD and ``StudyTime`` HHMMSS.fff,
both numbers, so that leading zeros are lost: 93015.5 is half a second past 09:30:15. Films carry no hadm_id.

Source: A. E. W. Johnson et al., "MIMIC-CXR-JPG", PhysioNet, 2.0.0 (2019) and 2.1.0 (2024).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import polars as pl

from mmnar_lightning.extract import Clock, Column, ExtractError, TableSpec
from mmnar_lightning.extract.malformed import SHOWN, Rows
from mmnar_mimic4.tables import NUMBER, SUBJECT, TEXT, TIME, WHOLE
from mmnar_mimic4.windows import Source

Views = Literal["frontal", "all"]
Check = Literal["decode", "open"]
Absent = Literal["count", "error"]
FILM = "dicom_id"
FILES = "files"
SUFFIXES = (".jpg", ".png")  # in order of preference
THREADS = min(8, os.cpu_count() or 1)
AT_ONCE = 5_000  # films between two lines of progress

METADATA = TableSpec(
    "cxr",
    "mimic-cxr-2.0.0-metadata",
    {
        FILM: TEXT,
        SUBJECT: WHOLE,
        "study_id": WHOLE,
        "ViewPosition": TEXT,
        "ViewCodeSequence_CodeMeaning": Column(pl.String, required=False),
        "StudyDate": WHOLE,
        "StudyTime": NUMBER,
    },
    clock=None,
    key=(FILM,),
    not_null=(FILM, SUBJECT, "study_id"),
)
# The same with a time that can be compared; a film exists an hour after its study.
_STUDIES = TableSpec("cxr", METADATA.file, {SUBJECT: WHOLE, "studytime": TIME}, Clock("studytime"))

State = TypeVar("State")

log = logging.getLogger(__name__)


def metadata(cxr_root: Path) -> TableSpec:
    """The metadata table where it lies."""
    return replace(METADATA, folder=cxr_root)


def study_times(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Put date and time of the study together: ``studytime``; a date without a time is the end of that day.

    Args:
        frame: The metadata.

    Raises:
        ExtractError: If a date or time is none; names the column, the count and row numbers.
    """
    date, time = pl.col("StudyDate"), pl.col("StudyTime")
    day = date.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    eight_digits = date.is_between(10_000_000, 99_999_999)
    hour, minute = (time / 10_000).floor(), (time / 100).floor() % 100
    second = time - hour * 10_000 - minute * 100
    # DICOM allows the second 60
    no_time = (time < 0) | (hour > 23) | (minute > 59) | (second >= 61)
    wrong = {"StudyDate": date.is_not_null() & (day.is_null() | ~eight_digits), "StudyTime": no_time}
    problems = []
    for column, flag in wrong.items():
        count = frame.select(flag.sum()).collect(engine="streaming").item()
        if count:
            numbers = frame.with_row_index("row", offset=1).filter(flag).select("row").head(SHOWN)
            rows = Rows(count, numbers.collect(engine="streaming")["row"].sort().to_list())
            problems.append(f"{METADATA.file}: column {column}: {rows} where no {column[5:].lower()} could be read")
    if problems:
        raise ExtractError(*problems)
    since_midnight = (hour * 3600 + minute * 60) * 1e6 + (second * 1e6).round()
    known = pl.duration(microseconds=since_midnight.cast(pl.Int64), time_unit="us")
    midnight = day.cast(pl.Datetime("us"))
    return frame.with_columns(
        studytime=pl.when(time.is_null()).then(midnight.dt.offset_by("1d")).otherwise(midnight + known)
    )


def linked(source: Source, views: Views = "frontal", prospective: bool = True) -> pl.DataFrame:
    """Films of the samples' patients in their windows, known by the prediction time.

    Args:
        source: The table ``cxr``, and the samples.
        views: ``frontal`` takes those from front to back or back to front, ``all`` also lateral and unnamed ones.
        prospective: False takes films by the study's time alone.

    Returns:
        ``sample``, ``hours_before`` (Float32), ``dicom_id``, ``film`` (``p10/p10000032/s50414267/<dicom_id>``, the
        place below ``files``) and ``row`` (in the metadata, from 1), sorted by sample, time and film.

    Raises:
        ExtractError: If a date or time is none.
    """
    spec = _STUDIES if prospective else replace(_STUDIES, clock=Clock("studytime", lag=0.0))
    frame = study_times(source.frames[METADATA.name]).with_row_index("row", offset=1)
    never = frame.select(pl.col("studytime").is_null().sum()).collect(engine="streaming").item()
    source.log.add(METADATA.name, "rows without a date, not used", never)
    person = pl.col(SUBJECT).cast(pl.String)
    film = pl.format("p{}/p{}/s{}/{}", person.str.head(2), person, pl.col("study_id"), pl.col(FILM))
    rows = frame.select(SUBJECT, "studytime", FILM, "row", film=film, frontal=_frontal())
    known = source.known(spec, rows).collect(engine="streaming")
    if views == "frontal":
        source.log.add(METADATA.name, "not a frontal view, not used", int((~known["frontal"]).sum()))
        known = known.filter("frontal")
    hours = pl.col("hours_before").cast(pl.Float32)
    return known.sort("sample", "time", FILM).select("sample", hours, FILM, "film", "row")


def _frontal() -> pl.Expr:
    position = pl.col("ViewPosition").str.strip_chars().str.to_uppercase()
    # one film in 25 has no position; its code may say it
    meaning = pl.col("ViewCodeSequence_CodeMeaning").str.strip_chars().str.to_lowercase()
    coded = meaning.is_in(["antero-posterior", "postero-anterior"]).fill_null(False)
    return pl.when(position.is_null()).then(coded).otherwise(position.is_in(["AP", "PA"]))


def cxr(
    source: Source,
    cxr_root: Path,
    views: Views = "frontal",
    check: Check = "decode",
    absent: Absent = "count",
    prospective: bool = True,
) -> pl.DataFrame:
    """The ``cxr`` modality: films as image files.

    Args:
        source: The table ``cxr``, and the samples.
        cxr_root: Folder with ``files/``.
        views: ``frontal`` films, or ``all``.
        check: ``decode`` reads each film once, which finds one that is cut off; ``open`` reads its header.
        absent: Whether a film that is listed but not there is counted (``count``) or an ``error``.
        prospective: False takes films by the study's time alone.

    Returns:
        ``sample``, ``hours_before`` and ``path``, sorted by sample and time. Paths are relative to `cxr_root`, with
        forward slashes, so that neither store nor films are bound to a place. A film that is absent or unreadable is a
        row whose path is null: no element, but a reason.

    Raises:
        ExtractError: If a date or time is none, there is no ``files/``, or a film is absent and must not be.
    """
    if not (cxr_root / FILES).is_dir():
        raise ExtractError(f"{cxr_root}: has no folder {FILES} with films")
    rows = linked(source, views, prospective)
    names = rows["film"].unique().sort()
    found = pl.DataFrame(
        look_at(names.to_list(), partial(_state, cxr_root, check)),
        schema={"path": pl.String, "there": pl.Boolean},
        orient="row",
    )
    joined = rows.join(found.with_columns(film=names), on="film", how="left", validate="m:1", maintain_order="left")
    refuse_absent(joined.filter(~pl.col("there")), absent, source)
    source.log.add(METADATA.name, "unreadable", joined.filter("there")["path"].null_count())
    return joined.select("sample", "hours_before", "path")


def refuse_absent(missing: pl.DataFrame, absent: Absent, source: Source) -> None:
    """Count the linked films that are not there, or refuse them.

    Args:
        missing: Their rows of `linked`.
        absent: What to do.
        source: Takes the count.

    Raises:
        ExtractError: If they are an error; names the count and the rows of the metadata.
    """
    if absent == "error" and missing.height:
        numbers = missing["row"].unique().sort()
        rows = Rows(len(numbers), numbers.head(SHOWN).to_list())
        raise ExtractError(f"{METADATA.file}: {rows} with a film that is not below {FILES}")
    source.log.add(METADATA.name, "listed but not there", missing.height)


def look_at(names: Sequence[str], state: Callable[[str], State]) -> list[State]:
    """Look at many files at once, in order; says how far it is."""
    states: list[State] = []
    with ThreadPoolExecutor(THREADS) as pool:  # reading and decoding release Python's lock
        for start in range(0, len(names), AT_ONCE):
            states += pool.map(state, names[start : start + AT_ONCE])
            log.info("films: %d of %d looked at", len(states), len(names))
    return states


def _state(cxr_root: Path, check: Check, name: str) -> tuple[str | None, bool]:
    """Path of a film, null where it is absent or unreadable, and whether it is there."""
    for suffix in SUFFIXES:
        relative = f"{FILES}/{name}{suffix}"
        if (cxr_root / relative).is_file():
            return relative if readable(cxr_root / relative, check) else None, True
    return None, False


def readable(path: Path, check: Check = "decode") -> bool:
    """Whether a file is a JPEG or PNG image.

    Args:
        path: The file.
        check: ``decode`` reads all of it, since a film that is cut off has a sound header; ``open`` its header alone.
    """
    from PIL import Image  # only where there are films

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if check == "decode":
                image.draft("L", (1, 1))  # an eighth of the size: all bytes of a JPEG are read, fewer pixels made
                image.load()
    except Exception:  # decoders raise what they like over broken bytes: OSError, SyntaxError, struct.error …
        return False
    return True


def film_state(cxr_root: Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    """Hash place below `cxr_root` and size of every film: one added, lost or of another size makes another store.

    Pixels are not read, which would take hours: a film replaced by another of the same size goes unnoticed.

    Args:
        cxr_root: Folder with ``files/`` or, for embeddings, with files that hold many records.
        suffixes: Which files count.

    Raises:
        ExtractError: If a folder can't be read.
    """
    wanted = tuple(suffixes)
    state = hashlib.sha256()
    try:
        state.update(_listing(cxr_root, "", 0, wanted))
        groups = [folder for folder in sorted((cxr_root / FILES).glob("p[0-9][0-9]")) if folder.is_dir()]
        for group in groups:
            people = sorted(folder.name for folder in group.iterdir() if folder.is_dir())
            with ThreadPoolExecutor(THREADS) as pool:
                list_one = partial(_person, group, suffixes=wanted)
                for part in pool.map(list_one, people):
                    state.update(part)
    except PermissionError:
        raise ExtractError(f"{cxr_root}: a folder of films can't be read (permission denied)") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ExtractError(f"{cxr_root}: the folder of films does not exist") from None
    return state.hexdigest()


def _person(group: Path, name: str, suffixes: tuple[str, ...]) -> bytes:
    return _listing(group / name, f"{group.name}/{name}/", 1, suffixes)


def _listing(folder: Path, place: str, depth: int, suffixes: tuple[str, ...]) -> bytes:
    """A line of place and size for each file with such a suffix, in folders so deep below this one."""
    return b"".join(_lines(folder, place, depth, suffixes))


def _lines(folder: Path, place: str, depth: int, suffixes: tuple[str, ...]) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(suffixes):
                try:
                    size = entry.stat().st_size
                except OSError:
                    # a link to nowhere: a film that is not there, which is counted later
                    continue
                yield f"{place}{entry.name} {size}\n".encode()
            elif depth and entry.is_dir():
                yield from _lines(folder / entry.name, f"{place}{entry.name}/", depth - 1, suffixes)
