"""An extract in MIMIC-IV's raw layout, drawn from a causal model whose missingness mechanism is known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from mmnar_lightning.simulation import CausalModel, ExtractWriter, Floats, MechanismKind, write_extract
from mmnar_mimic4.simulated import billing, documents, measurements, treatments
from mmnar_mimic4.simulated.columns import COLUMNS
from mmnar_mimic4.simulated.course import MOST, Course
from mmnar_mimic4.simulated.films import LARGEST, SMALLEST
from mmnar_mimic4.simulated.patients import Registry
from mmnar_mimic4.simulated.population import PERSONS, population
from mmnar_mimic4.simulated.truth import truth
from mmnar_mimic4.tfrecords import example, write_tfrecord

VERSION = "1"  # raise it with every change that changes a byte of an extract
ReleaseName = Literal["2.2", "3.1"]
FilmForm = Literal["jpg", "embeddings", "none"]
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
        "simulator": "mimic4",
        "version": VERSION,
        "patients": patients,
        "seed": seed,
        "mechanism": mechanism,
        "strength": float(strength),
        "release": release,
        "films": films,
        "film_size": film_size,
    }
    tables = {name: columns for name, columns in COLUMNS.items() if films != "none" or not name.startswith("cxr/")}
    write_extract(folder, settings, _ABOUT, tables, partial(_write, settings), progress)


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


def _write(settings: dict[str, Any], extract: ExtractWriter) -> None:
    """Write all tables, a chunk at a time."""
    patients = settings["patients"]
    model = population(settings["seed"], settings["mechanism"], settings["strength"])
    for number in range(-(-patients // PERSONS)):
        _write_chunk(extract, model, number, settings)
        extract.advance(min(patients, (number + 1) * PERSONS))
    for name, frame in billing.dictionaries():
        extract.append(name, frame)


def _write_chunk(extract: ExtractWriter, model: CausalModel, number: int, settings: dict[str, Any]) -> None:
    """Write one chunk's rows, the truth about it, and its films."""
    patients, form = settings["patients"], settings["films"]
    course = Course(model, number, settings["release"], form != "none")
    registry = Registry(course)
    extract.append_truth(f"episodes-{number:06d}", course.cut(truth(course), patients))
    for name, frame in _tables(course, registry):
        extract.append(name, course.cut(frame, patients))
    if form == "none":
        return
    taken = documents.taken(course)
    for name, frame in documents.film_tables(course, taken):
        extract.append(name, course.cut(frame, patients))
    kept = number * PERSONS + course.person[taken.e] < patients
    for path, content in documents.film_files(course, taken, form, settings["film_size"], kept):
        _write_film(extract.folder / "cxr" / path, content)


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
