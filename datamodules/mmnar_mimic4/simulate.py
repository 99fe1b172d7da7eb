"""An extract in MIMIC-IV's raw layout, drawn from a causal model whose missingness mechanism is known."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmnar_lightning.simulation import CausalModel, Floats, MechanismKind
from mmnar_mimic4.simulated import billing, documents, measurements, treatments
from mmnar_mimic4.simulated.columns import COLUMNS
from mmnar_mimic4.simulated.course import MOST, Course
from mmnar_mimic4.simulated.films import LARGEST, SMALLEST
from mmnar_mimic4.simulated.patients import Registry
from mmnar_mimic4.simulated.population import PERSONS, population
from mmnar_mimic4.simulated.truth import truth
from mmnar_mimic4.tfrecords import example, write_tfrecord

logger = logging.getLogger(__name__)

VERSION = "1"  # raise it with every change that changes a byte of an extract
MARKER = "simulation.json"
TRUTH = "truth"
ReleaseName = Literal["2.2", "3.1"]
FilmForm = Literal["jpg", "embeddings", "none"]
_COMPRESSION = 4  # zlib's level 6 takes twice as long for a twentieth less
_ABOUT = (
    "Simulated records in the layout of MIMIC-IV, MIMIC-IV-Note and MIMIC-CXR-JPG: no real patient is in them, and no "
    "clinical conclusion can be drawn from them. truth/ holds what no real extract tells (latent health, availability, "
    "outcome probabilities)."
)


def simulate(
    folder: Path,
    patients: int = 1000,
    seed: int = 0,
    mechanism: MechanismKind = "mnar",
    strength: float = 1.0,
    release: ReleaseName = "2.2",
    films: FilmForm = "jpg",
    film_size: int = 64,
    progress: bool = True,
) -> None:
    """Write a simulated extract in MIMIC-IV's raw layout, and the truth behind it in `truth/`.

    The folder is at once the root of the tables (`hosp`, `icu`, `note`); its subfolder `cxr` is that of the films. The
    same arguments give the same bytes, and the first patients are the same however many follow. Where the same extract
    is already complete, nothing is done. It is written beside the folder and put in its place when complete.

    Args:
        folder: Where to write it: a folder that doesn't exist yet, or an empty one.
        patients: How many people; about two in five have two hospital episodes.
        seed: Decides about everything that is drawn.
        mechanism: What availability of a modality depends on: nothing (mcar), age, urgency and insurance, which are
            always known (mar), or the latent health (mnar).
        strength: How much it depends, in log odds per standard deviation.
        release: Version of MIMIC-IV: 2.2 covers the years 2008 to 2019, 3.1 those to 2022.
        films: Chest films as JPEG files, as embeddings in TFRecord files, or none.
        film_size: Height and width of the JPEG files in pixels.
        progress: Show a progress bar.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If the folder holds anything but this very extract.
    """
    _refuse(patients, release, films, film_size)
    population(seed, mechanism, strength)  # refuses bad arguments before anything is touched
    settings: dict[str, Any] = {
        **{"simulator": "mimic4", "version": VERSION},
        **{"patients": patients, "seed": seed},
        "mechanism": mechanism,
        "strength": float(strength),
        "release": release,
        "films": films,
        "film_size": film_size,
    }
    folder = folder.absolute()
    if _complete(folder, settings):
        logger.info("%s already holds this extract", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if _complete(folder, settings):  # written by another process while this one waited
            return
        partial = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            rows = _write(partial, settings, progress)
            marker = settings | {"about": _ABOUT, "rows": rows}
            (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse(patients: int, release: str, films: str, film_size: int) -> None:
    """Refuse arguments that are out of range.

    Raises:
        ValueError: If one is.
    """
    if not 1 <= patients <= MOST:
        raise ValueError(f"patients is {patients}; it must be at least 1 and at most {MOST}, for there are no more ids")
    for name, value, known in (("release", release, ReleaseName), ("films", films, FilmForm)):
        if value not in get_args(known):
            raise ValueError(f"{name} {value!r} is not one of {', '.join(get_args(known))}")
    if not SMALLEST <= film_size <= LARGEST:
        raise ValueError(f"film_size is {film_size}; it must be at least {SMALLEST} and at most {LARGEST}")


def _complete(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the extract of these settings already.

    Raises:
        FileExistsError: If it holds anything else.
    """
    if folder.is_dir():
        if not any(folder.iterdir()):
            return False
    elif not folder.exists():
        return False
    marker = folder / MARKER
    if not marker.is_file():
        raise FileExistsError(f"{folder} exists, isn't empty and holds no simulated extract; choose another folder")
    found = json.loads(marker.read_text(encoding="utf-8"))
    other = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in settings.items() if found.get(key) != value]
    if other:
        raise FileExistsError(f"{folder} holds another simulated extract ({'; '.join(other)}); choose another folder")
    return True


def _write(folder: Path, settings: dict[str, Any], progress: bool) -> dict[str, int]:
    """Write all tables, a chunk at a time, and return how many rows each has."""
    patients = settings["patients"]
    model = population(settings["seed"], settings["mechanism"], settings["strength"])
    names = [name for name in COLUMNS if settings["films"] != "none" or not name.startswith("cxr/")]
    for room in {TRUTH, *(name.split("/")[0] for name in names)}:
        (folder / room).mkdir(parents=True)
    rows = dict.fromkeys(names, 0)
    shown = Progress(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("patients"), TimeRemainingColumn(),
        disable=not progress,
    )  # fmt: skip
    with ExitStack() as open_files, shown:
        bar = shown.add_task("simulating", total=patients)
        files = {name: open_files.enter_context(_table_file(folder, name)) for name in names}

        def append(name: str, frame: pl.DataFrame) -> None:
            files[name].write(frame.write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S").encode())
            rows[name] += len(frame)

        for number in range(-(-patients // PERSONS)):
            for name, frame in _chunk(folder, model, number, settings):
                append(name, frame)
            shown.update(bar, completed=min(patients, (number + 1) * PERSONS))
        for name, frame in billing.dictionaries():
            append(name, frame)
    return rows


def _chunk(
    folder: Path, model: CausalModel, number: int, settings: dict[str, Any]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Rows of one chunk for each raw table; writes the truth about it, and its films, on the way."""
    patients, form = settings["patients"], settings["films"]
    course = Course(model, number, settings["release"], form != "none")
    registry = Registry(course)
    course.cut(truth(course), patients).write_parquet(folder / TRUTH / f"episodes-{number:06d}.parquet")
    for name, frame in _tables(course, registry):
        yield name, course.cut(frame, patients)
    if form == "none":
        return
    taken = documents.taken(course)
    for name, frame in documents.film_tables(course, taken):
        yield name, course.cut(frame, patients)
    kept = number * PERSONS + course.person[taken.e] < patients
    for path, content in documents.film_files(course, taken, form, settings["film_size"], kept):
        _write_film(folder / "cxr" / path, content)


def _write_film(path: Path, content: bytes | Floats) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    image = str(path.relative_to(path.parents[4]).with_suffix("")).encode()
    write_tfrecord(path, [example({"embedding": np.asarray(content, np.float32), "image/id": image})])


def _tables(course: Course, registry: Registry) -> Iterator[tuple[str, pl.DataFrame]]:
    """Raw tables of one chunk but those of films; a table may come in parts."""
    yield "hosp/patients", registry.patients()
    for frame in registry.admissions():
        yield "hosp/admissions", frame
    for frame in registry.transfers():
        yield "hosp/transfers", frame
    yield "hosp/services", registry.services()
    yield "icu/icustays", registry.stays()
    for frame in measurements.labs(course):
        yield "hosp/labevents", frame
    yield from measurements.charts(course)
    for frame in measurements.micro(course):
        yield "hosp/microbiologyevents", frame
    yield "hosp/omr", measurements.outpatient(course)
    yield from treatments.prescriptions(course)
    yield from treatments.infusions(course)
    yield "icu/procedureevents", treatments.procedures(course)
    yield from billing.codes(course)
    yield from documents.radiology(course)
    yield from documents.summaries(course, registry)


def _table_file(folder: Path, name: str) -> _Gzip:
    """Open a raw table and write its header. No time and no name stand in the gzip header: same rows, same bytes."""
    file = _Gzip(folder / f"{name}.csv.gz")
    file.write((",".join(COLUMNS[name]) + "\n").encode())
    return file


class _Gzip(gzip.GzipFile):
    """A gzip file without a time stamp that closes the file under it, too."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        super().__init__(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=self._raw, mtime=0)

    def close(self) -> None:
        super().close()
        self._raw.close()
