"""An extract in eICU's raw layout, drawn from a causal model whose missingness mechanism is known."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmnar_eicu.simulated import entries, measurements
from mmnar_eicu.simulated.aftermath import Aftermath
from mmnar_eicu.simulated.columns import COLUMNS
from mmnar_eicu.simulated.course import Course
from mmnar_eicu.simulated.patients import Registry, hospitals
from mmnar_eicu.simulated.population import PERSONS, population
from mmnar_lightning.simulation import MechanismKind

logger = logging.getLogger(__name__)

VERSION = "1"  # raise it with every change that changes a byte of an extract
MARKER = "simulation.json"
TRUTH = "truth"
_COMPRESSION = 4  # zlib's level 6 takes twice as long for a twentieth less
_ABOUT = (
    "Simulated records in the layout of eICU-CRD 2.0: no real patient is in them, and no clinical conclusion can be "
    "drawn from them. truth/ holds what no real extract tells (latent health, availability, outcome probabilities)."
)


def simulate(
    folder: Path,
    patients: int = 1000,
    seed: int = 0,
    mechanism: MechanismKind = "mnar",
    strength: float = 1.0,
    progress: bool = True,
) -> None:
    """Write a simulated extract in eICU's raw layout, and the truth behind it in `truth/`.

    The same arguments give the same bytes, and the first patients are the same however many follow. Where the same
    extract is already complete, nothing is done. It is written beside the folder and put in its place when complete.

    Args:
        folder: Where to write it: a folder that doesn't exist yet, or an empty one.
        patients: How many people; about one in eight has two hospital stays.
        seed: Decides about everything that is drawn.
        mechanism: What availability of a modality depends on: nothing (mcar), age, urgency and weight, which are always
            known (mar), or the latent health (mnar).
        strength: How much it depends, in log odds per standard deviation.
        progress: Show a progress bar.

    Raises:
        ValueError: If `patients` is below 1 or another argument is out of range.
        FileExistsError: If the folder holds anything but this very extract.
    """
    if patients < 1:
        raise ValueError(f"patients is {patients}; at least 1 is needed")
    population(seed, mechanism, strength)  # refuses bad arguments before anything is touched
    settings: dict[str, Any] = {
        "simulator": "eicu",
        "version": VERSION,
        "patients": patients,
        "seed": seed,
        "mechanism": mechanism,
        "strength": float(strength),
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
    patients, seed = settings["patients"], settings["seed"]
    model = population(seed, settings["mechanism"], settings["strength"])
    (folder / TRUTH).mkdir(parents=True)
    rows = dict.fromkeys(COLUMNS, 0)
    shown = Progress(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("patients"), TimeRemainingColumn(),
        disable=not progress,
    )  # fmt: skip
    with ExitStack() as open_files, shown:
        bar = shown.add_task("simulating", total=patients)
        files = {name: open_files.enter_context(_table_file(folder, name)) for name in COLUMNS}
        for number in range(-(-patients // PERSONS)):
            course = Course(model, number)
            registry = Registry(course)
            truth = registry.truth().filter(pl.Series(course.person < patients))
            truth.write_parquet(folder / TRUTH / f"stays-{number:06d}.parquet")
            for name, frame in _tables(course, registry):
                kept = course.cut(frame, patients)
                files[name].write(kept.write_csv(include_header=False).encode())
                rows[name] += len(kept)
            shown.update(bar, completed=min(patients, (number + 1) * PERSONS))
        frame = hospitals(seed)
        files["hospital"].write(frame.write_csv(include_header=False).encode())
        rows["hospital"] = len(frame)
    return rows


def _tables(course: Course, registry: Registry) -> Iterator[tuple[str, pl.DataFrame]]:
    """Raw tables of one chunk; a table may come in parts."""
    yield "patient", registry.patient()
    yield "apachePatientResult", registry.apache()
    yield "lab", measurements.lab(course)
    yield from zip(("vitalPeriodic", "vitalAperiodic"), measurements.vitals(course), strict=True)
    yield from zip(("respiratoryCharting", "respiratoryCare"), measurements.respiratory(course), strict=True)
    yield "microLab", measurements.micro(course)
    yield "medication", entries.medication(course)
    yield "infusionDrug", entries.infusion(course)
    yield "admissionDrug", entries.home_drugs(course)
    yield "treatment", entries.treatment(course)
    yield "diagnosis", entries.diagnosis(course)
    yield "admissionDx", entries.admission_diagnosis(course, registry)
    yield "pastHistory", entries.history(course)
    yield "note", entries.note(course)
    yield "physicalExam", entries.physical_exam(course)
    yield "carePlanGeneral", entries.care_plan(course)
    yield from Aftermath(course).tables().items()


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
