"""One HTML page on a run, and a model card: mmnar report RUN_DIR [--compare RUN_DIR …] --out report.html"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = f"""{__doc__}

Reads what `mmnar test` (and `mmnar evaluate`, where it ran) left in the run's folder, and no model or data. The page
loads nothing from elsewhere. Nothing that came from fewer than 10 people is shown."""


def run(arguments: Sequence[str]) -> int:
    """Write the report of a run, and its model card where it is asked for.

    Raises:
        ValueError: If an option is wrong, or a folder holds no run or files that can't be read; says what to do.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(f"{error} (mmnar report --help lists the options)") from error
    out = Path(options.run_dir) / "report.html" if options.out is None else Path(options.out)
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"{out}: not an .html file")
    if options.model_card is not None and Path(options.model_card).suffix != ".md":
        raise ValueError(f"{options.model_card}: not an .md file")
    from mmnar_lightning.reports.given_tables import read_table
    from mmnar_lightning.reports.reading import read_run

    # before anything is drawn, which takes longer
    found = read_run(Path(options.run_dir))
    compared = [read_run(Path(folder)) for folder in options.compare]
    tables = [read_table(Path(path)) for path in options.tables]
    from mmnar_lightning.reports.model_card import render_model_card
    from mmnar_lightning.reports.page import render_page

    _write(out, render_page(found, compared, tables))
    if options.model_card is not None:
        _write(Path(options.model_card), render_model_card(found))
    return 0


def _parser() -> Any:
    # a second to import; the list of commands has no use for it
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="mmnar report", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("run_dir", type=str, metavar="RUN_DIR", help="Folder of a run that was tested (required)")
    parser.add_argument(
        "--compare", type=str, nargs="+", default=[], metavar="RUN_DIR", help="Folders of runs to put beside it"
    )
    parser.add_argument(
        "--tables",
        type=str,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Results to show with it: .csv, .parquet, or .json with a list of rows",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, metavar="FILE", help="The page; RUN_DIR/report.html if not given"
    )
    parser.add_argument(
        "--model-card", type=str | None, default=None, metavar="FILE", help="Write a model card in Markdown as well"
    )
    return parser


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only, and say where it is."""
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        parts.touch(mode=0o600)
        parts.write_text(text, encoding="utf-8", newline="\n")
        parts.replace(path)
    finally:
        parts.unlink(missing_ok=True)
    sys.stdout.write(f"{path}\n")
