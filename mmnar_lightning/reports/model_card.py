"""A model card filled with what a run found, and with blanks for what only people can say."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmnar_lightning.reports import cohort, results
from mmnar_lightning.reports.cells import Table
from mmnar_lightning.reports.reading import Run
from mmnar_lightning.reports.summary import headlines, notices


def render_model_card(run: Run) -> str:
    """Render the card, after Mitchell and others, *Model Cards for Model Reporting* (2019).

    Args:
        run: What it is about.

    Returns:
        Markdown in which no text that came from data is markup, or HTML.
    """
    # not HTML, so what has to be escaped is another
    environment = Environment(
        loader=PackageLoader("mmnar_lightning.reports"),
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    card = environment.get_template("model_card.md.j2").render(
        run=run,
        data=run.findings["data"],
        headlines=headlines(run),
        notices=notices(run),
        facts=cohort.facts(run),
        splits=cohort.split_table(run),
        modalities=cohort.modality_table(run),
        excluded=cohort.flow_table(run),
        results={task: results.task_table(run, task) for task in run.tasks},
        table=_table,
        alone=results.availability_alone_table(run),
        worst=results.worst_table(run),
        groups=[
            results.group_table(run, variable, task)
            for variable in results.variables(run)
            if variable != "pattern"
            for task in run.tasks
        ],
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def _table(table: Table) -> Markup:
    rule = ["---" if k < table.words else "---:" for k in range(len(table.header))]
    rows = [[_escaped(cell) for cell in row] for row in (table.header, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    lines += ["", _escaped(table.note)] if table.note else []
    return Markup("\n".join([*lines, ""]))


def _escaped(value: Any) -> str:
    """Write a value on one line, so that Markdown shows it as it is."""
    if isinstance(value, Markup):
        return value
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", line)
