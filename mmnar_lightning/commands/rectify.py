"""Correct anybody's predictions by availability pattern: mmnar rectify --predictions FILE --out FILE"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmnar_lightning import _terminal

if TYPE_CHECKING:
    from mmnar_lightning.commands._rectification import Rectification

DESCRIPTION = f"""{__doc__}

Reads predictions.parquet of `mmnar predict` as it is. Other tables, parquet or csv, need a column with a patient id;
for each task a score and a label (0, 1 or nothing where it is not known); the availability pattern as a number or a
boolean column a modality; and a column that says which rows are for calibration. Writes all rows with corrected
probabilities, and a report beside them. Labels of rows that are not for calibration are scored and never fitted on."""


def run(arguments: Sequence[str]) -> int:
    """Fit the rectifier on the calibration rows of a table, correct all of its rows, and report.

    Raises:
        ValueError: If an option is wrong, or the table can't be used; counts, and names no patient.
    """
    parser = _parser()
    try:
        options = vars(parser.parse_args(arguments))
    except ArgumentError as error:
        raise ValueError(f"{error} (mmnar rectify --help lists the options)") from error
    from mmnar_lightning.commands._predictions import Columns, read_predictions, write_beside
    from mmnar_lightning.commands._rectification import rectify
    from mmnar_lightning.commands._rectification_report import report

    out = Path(options["out"])
    if out.resolve() == Path(options["predictions"]).resolve():
        raise ValueError(f"{out}: the table that is read; write to another file")
    # before anything is computed that couldn't be written
    if out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{out}: not a .parquet or .csv file")
    columns = Columns(**{name: options[name] for name in Columns.__dataclass_fields__})
    _terminal.begin()
    with _terminal.working("reading"):
        predictions = read_predictions(Path(options["predictions"]), columns)
    rows = len(predictions.frame)
    with _terminal.working(f"fitting on {int(predictions.calibration.sum())} of {rows} rows"):
        done = rectify(predictions, options["scale"], options["rung"], options["folds"], options["seed"])
    write_beside(done.frame, out, predictions.metadata, report(done, options))
    _terminal.show(_table(done))
    _terminal.result(f"{out}\n{out.with_suffix('.md')}")
    return 0


def _parser() -> Any:
    # a second to import; the list of commands has no use for it
    from jsonargparse import ArgumentParser

    from mmnar_lightning.commands._predictions import Columns
    from mmnar_lightning.commands._rectification import Wanted
    from mmnar_lightning.rectifier import Scale

    parser = ArgumentParser(prog="mmnar rectify", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--predictions", type=str, required=True, help="The table: .parquet or .csv")
    parser.add_argument(
        "--out", type=str, required=True, help="Where to write: .parquet or .csv; the report is FILE.md"
    )
    parser.add_argument("--rung", type=Wanted, default="ladder", help="Chosen for each task, or given for all of them")
    parser.add_argument(
        "--scale", type=Scale, default="logit", help="Where shifts are added; probability has no slopes"
    )
    parser.add_argument("--folds", type=int, default=5, help="Folds of patients by which a rung is chosen")
    parser.add_argument("--seed", type=int, default=0, help="Key by which patients are put into folds")
    parser.add_class_arguments(Columns)
    return parser


def _table(done: Rectification) -> Any:
    from rich.table import Table

    table = Table(title="rectified: log loss raw → recalibrated → rectified")
    for heading in ("task", "rung", "rows", *done.evaluated):
        table.add_column(heading)
    for k, task in enumerate(done.predictions.tasks):
        rung = done.rectifier.reasons[k] or done.rectifier.rungs[k]
        cells = []
        for split in done.evaluated:
            found = done.scores.get((task, split))
            values = [] if found is None else [found[version]["log_loss"] for version in found]
            cells.append(" → ".join(f"{value:.4f}" for value in values) or "too few")
        fitted_on = done.predictions.calibration & done.predictions.labelled[:, k]
        table.add_row(task, rung, str(int(fitted_on.sum())), *cells)
    return table
