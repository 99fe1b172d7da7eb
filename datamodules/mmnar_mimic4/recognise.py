"""Whether a folder is MIMIC-IV, which release, and which of its modules are at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmnar_lightning.extract import ExtractError, TableSpec
from mmnar_lightning.extract.recognised import Part, Recognised, count_rows, counted, present, problems_of, simulated
from mmnar_mimic4 import tables
from mmnar_mimic4.embeddings import SUFFIX
from mmnar_mimic4.extractor import MIMIC4Extractor
from mmnar_mimic4.films import FILES, METADATA
from mmnar_mimic4.versions import detect

# patients of 2.2 and 3.1, and of the demo
FULL, DEMO = (299_712, 364_627), 100
ROOMS = ("hosp", "icu")
NOTES = (tables.RADIOLOGY_NOTES, tables.DISCHARGE_NOTES)
SOURCE = "https://physionet.org/content/mimiciv/3.1/ (demo: https://physionet.org/content/mimic-iv-demo/2.2/)"
# where PhysioNet's downloads put a module beside the tables: files/mimiciv/3.1, files/mimic-iv-note/2.2
NOTE_FOLDERS = ("mimic-iv-note*", "mimic-iv-note*/*", "note*")
FILM_FOLDERS = ("mimic-cxr-jpg*", "mimic-cxr-jpg*/*", "cxr*")


def recognise(root: Path) -> Recognised | None:
    """Say what a folder is if it holds tables of MIMIC-IV or of its notes.

    Args:
        root: The folder that is asked about.

    Returns:
        None where it is something else.
    """
    needed = [spec for spec in MIMIC4Extractor().tables() if not spec.optional]
    there = present(root, needed)
    old = present(root, [TableSpec("core", "core/admissions", {}, clock=None)])["core/admissions"] is not None
    if sum(raw is not None for raw in there.values()) < 2 and not old:
        return _notes_alone(root)
    notes, films = _beside(root, NOTES, NOTE_FOLDERS), _beside(root, (METADATA,), FILM_FOLDERS)
    patients = there[tables.PATIENTS.file]
    rows = None if patients is None else count_rows(patients)
    version, problems = _release(root, needed)
    command = ["mmnar", "prepare", "--config", "mimic4", "--data.init_args.root", str(root)]
    command += [] if notes in (None, root) else ["--data.init_args.note_root", str(notes)]
    command += [] if films is None else ["--data.init_args.cxr_root", str(films), *_form(films)]
    return Recognised(
        "MIMIC-IV",
        version,
        _edition(root, rows),
        counted(rows, "patients"),
        (
            *_rooms(root, needed),
            _optional(root),
            _module(notes, "notes", NOTES),
            _module(films, "chest films", (METADATA,)),
        ),
        problems,
        () if problems else tuple(command),
    )


def _release(root: Path, needed: list[TableSpec]) -> tuple[str | None, tuple[str, ...]]:
    """Its version, or why it can't be read: a release that is refused says more than the tables it lacks."""
    missing = problems_of(root, needed)
    try:
        version = detect(root).name
    except ExtractError as error:
        if refused := tuple(p for p in error.problems if ": missing table" not in p):
            return None, refused
        version = None
    return version, (*missing, f"get what is missing from {SOURCE}") if missing else ()


def _edition(root: Path, rows: int | None) -> str:
    if simulated(root):
        return "simulated"
    if rows in FULL:
        return "full"
    if rows is None:
        return ""
    return "demo" if rows <= DEMO or (root / "demo_subject_id.csv").is_file() else "part of the full release"


def _rooms(root: Path, needed: list[TableSpec]) -> list[Part]:
    parts = []
    for room in ROOMS:
        files = {spec.file: spec for spec in needed if spec.file.startswith(f"{room}/")}
        found = sum(raw is not None for raw in present(root, list(files.values())).values())
        parts.append(Part(room, found, len(files), root / room if found else None))
    return parts


def _optional(root: Path) -> Part:
    specs = (tables.SERVICES, tables.ORDERS, tables.ORDER_DETAILS)
    found = sum(raw is not None for raw in present(root, specs).values())
    return Part(
        "services, orders", found, len(specs), root / "hosp" if found else None, "optional; code status is in poe"
    )


def _module(folder: Path | None, name: str, specs: tuple[TableSpec, ...]) -> Part:
    if folder is None:
        option = "note_root" if specs == NOTES else "cxr_root"
        return Part(name, 0, len(specs), None, f"optional; where they lie is told by --data.init_args.{option}")
    found = sum(raw is not None for raw in present(folder, [replace(s, folder=None) for s in specs]).values())
    return Part(name, found, len(specs), folder)


def _beside(root: Path, specs: tuple[TableSpec, ...], names: tuple[str, ...]) -> Path | None:
    """The folder of a module: the root itself, one in it, or one beside it as PhysioNet's downloads lie."""
    here = root.absolute()
    beside = [base for base in (here.parent, here.parent.parent) if base != base.parent]
    folders = [root, *(path for base in (root, *beside) for name in names for path in sorted(base.glob(name)))]
    listed = [folder for folder in folders if folder.is_dir()]
    return next((f for f in listed if any(raw is not None for raw in present(f, specs).values())), None)


def _form(films: Path) -> list[str]:
    """How the films are given: embeddings lie in TFRecord files."""
    first = next((films / FILES).glob("p*/p*/s*/*"), None)
    embedded = first.suffix == SUFFIX if first is not None else any(films.glob(f"*{SUFFIX}"))
    return ["--data.init_args.cxr", "embeddings"] if embedded else []


def _notes_alone(root: Path) -> Recognised | None:
    if not any(raw is not None for raw in present(root, NOTES).values()):
        return None
    problem = (
        f"{root}: holds the notes alone; give the folder with hosp and icu of MIMIC-IV, and this one by "
        "--data.init_args.note_root"
    )
    return Recognised("MIMIC-IV-Note", None, "", "", (_module(root, "notes", NOTES),), (problem,))
