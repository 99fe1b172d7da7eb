"""Whether a folder is a MEDS dataset: shards under ``data``, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

from mmnar_lightning.extract import ExtractError
from mmnar_lightning.extract.recognised import Part, Recognised
from mmnar_meds.layout import CODES, DATA, DATASET, SPLITS, data_tables, label_tables, parquet_files


def recognise(root: Path) -> Recognised | None:
    """Say what a folder is if it has a ``data`` folder with parquet files, and ``metadata`` or columns of MEDS.

    Args:
        root: The folder that is asked about.

    Returns:
        None where it is something else.
    """
    try:
        shards = parquet_files(root / DATA, "the folder of events")
    except ExtractError:
        return None
    if not (root / "metadata").is_dir():
        return None
    problems: list[str] = []
    labels: list[str] = []
    try:
        data_tables(root, texts=False)
        labels = [task.name for task in label_tables(root / "tasks", None)]
    except ExtractError as error:
        problems = list(error.problems)
    beside = [f"{CODES}.parquet", f"{SPLITS}.parquet", DATASET]
    there = [name for name in beside if (root / name).is_file()]
    absent = ", ".join(name for name in beside if name not in there)
    command = ("mmnar", "prepare", "--config", "meds", "--data.init_args.root", str(root))
    return Recognised(
        "MEDS dataset",
        _version(root),
        parts=(
            Part("events", len(shards), len(shards), root / DATA),
            Part("metadata", len(there), len(beside), root / "metadata", f"absent: {absent}" if absent else ""),
            Part("labels", len(labels), len(labels), (root / "tasks") if labels else None, ", ".join(labels)),
        ),
        problems=tuple(problems),
        command=() if problems else command,
    )


def _version(root: Path) -> str | None:
    """The version of the standard that the dataset names; None where it names none that can be read."""
    try:
        named = json.loads((root / DATASET).read_text(encoding="utf-8")).get("meds_version")
    except (OSError, ValueError, AttributeError):
        return None
    return str(named) if named else None
