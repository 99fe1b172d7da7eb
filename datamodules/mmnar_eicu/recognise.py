"""Whether a folder is eICU-CRD, which edition, and what is missing in it."""

from __future__ import annotations

from pathlib import Path

from mmnar_eicu.tables import CARE_PLAN, CARE_PLAN_EOL, MICRO, PATIENT, RESPIRATORY_CARE, RESPIRATORY_CHARTING, STAY
from mmnar_eicu.tables import all_tables as required
from mmnar_lightning.extract.raw import column_of
from mmnar_lightning.extract.recognised import Part, Recognised, count_rows, counted, present, problems_of, simulated

# unit stays of eICU-CRD 2.0 and of its demo
FULL, DEMO = 200_859, 2_520
# names that no other source of this kind has; three of them are no accident
OWN = ("patient", "vitalPeriodic", "vitalAperiodic", "infusionDrug", "admissionDrug", "admissionDx", "pastHistory")
SOURCE = "https://physionet.org/content/eicu-crd/2.0/ (demo: https://physionet.org/content/eicu-crd-demo/2.0.1/)"


def recognise(root: Path) -> Recognised | None:
    """Say what a folder is if it holds tables of eICU-CRD.

    Args:
        root: The folder that is asked about.

    Returns:
        None where it is something else.
    """
    needed = [spec for spec in required() if not spec.optional]
    there = present(root, [*needed, CARE_PLAN, CARE_PLAN_EOL, RESPIRATORY_CARE, RESPIRATORY_CHARTING, MICRO])
    patient = there[PATIENT.file]
    own = [name for name in OWN if there.get(name) is not None]
    if (patient is None or column_of(patient, STAY) is None) and len(own) < 3:
        return None
    problems = problems_of(root, needed)
    rows = None if patient is None else count_rows(patient)
    if problems:
        problems = (*problems, f"get what is missing from {SOURCE}")
    command = ("mmnar", "prepare", "--config", "eicu", "--data.init_args.root", str(root))
    return Recognised(
        "eICU-CRD",
        "2.0",
        _edition(root, rows),
        counted(rows, "unit stays"),
        tuple(_parts(root, {file: raw is not None for file, raw in there.items()})),
        problems,
        () if problems else command,
    )


def _edition(root: Path, rows: int | None) -> str:
    if simulated(root):
        return "simulated"
    if rows == FULL:
        return "full"
    if rows is None:
        return ""
    return "demo" if rows <= DEMO else f"part of the full {FULL:,}"


def _parts(root: Path, there: dict[str, bool]) -> list[Part]:
    needed = {spec.file for spec in required() if not spec.optional}
    optional = {
        "care limits": ((CARE_PLAN.file, CARE_PLAN_EOL.file), "code status, for exclude_care_limits and reports"),
        "respiratory": ((RESPIRATORY_CARE.file, RESPIRATORY_CHARTING.file), "for include_respiratory: true"),
        "cultures": ((MICRO.file,), "for include_micro: true"),
    }
    parts = [Part("tables", sum(there[file] for file in needed), len(needed), root)]
    for name, (files, note) in optional.items():
        found = sum(there[file] for file in files)
        parts.append(Part(name, found, len(files), root if found else None, note))
    return parts
