"""Whether a folder holds one's own tables: a ``schema.yaml``, and what it names."""

from __future__ import annotations

from pathlib import Path

from mmnar_lightning.extract import ExtractError
from mmnar_lightning.extract.recognised import Part, Recognised, problems_of
from mmnar_tables.description import FILE, SAMPLES
from mmnar_tables.extractor import TablesExtractor


def recognise(root: Path) -> Recognised | None:
    """Say what a folder is if there is a ``schema.yaml`` in it.

    Args:
        root: The folder that is asked about.

    Returns:
        None where it is something else.
    """
    if not (root / FILE).is_file():
        return None
    try:
        extractor = TablesExtractor(root)
        described = extractor.description
        files = [SAMPLES, *(entry.file for entry in described.modalities)]
        problems = problems_of(root, extractor.tables())
    except ExtractError as error:
        return Recognised("own tables", None, problems=tuple(error.problems))
    found = sum((root / f"{file}.parquet").is_file() for file in files)
    command = ("mmnar", "prepare", "--config", "tables", "--data.init_args.root", str(root))
    return Recognised(
        f"own tables ({described.dataset})",
        described.cohort,
        parts=(Part("tables", found, len(files), root),),
        problems=problems,
        command=() if problems else command,
    )
