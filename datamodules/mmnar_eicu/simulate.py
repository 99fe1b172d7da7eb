"""An extract in eICU's raw layout, drawn from a causal model whose missingness mechanism is known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from mmnar_eicu.simulated import entries, measurements
from mmnar_eicu.simulated.aftermath import Aftermath
from mmnar_eicu.simulated.columns import COLUMNS
from mmnar_eicu.simulated.course import Course
from mmnar_eicu.simulated.patients import Registry, hospitals
from mmnar_eicu.simulated.population import PERSONS, population
from mmnar_lightning.simulation import ExtractWriter, MechanismKind, write_extract

VERSION = "1"  # raise it with every change that changes a byte of an extract
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
    write_extract(folder, settings, _ABOUT, COLUMNS, partial(_write, settings), progress)


def _write(settings: dict[str, Any], extract: ExtractWriter) -> None:
    """Write all tables, a chunk at a time."""
    patients, seed = settings["patients"], settings["seed"]
    model = population(seed, settings["mechanism"], settings["strength"])
    for number in range(-(-patients // PERSONS)):
        course = Course(model, number)
        registry = Registry(course)
        extract.append_truth(f"stays-{number:06d}", registry.truth().filter(pl.Series(course.person < patients)))
        for name, frame in _tables(course, registry):
            extract.append(name, course.cut(frame, patients))
        extract.advance(min(patients, (number + 1) * PERSONS))
    extract.append("hospital", hospitals(seed))


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
