"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mmnar_lightning.evaluation.availability_tables import Section, sections
from mmnar_lightning.reports import cohort, comparison, drawing, results
from mmnar_lightning.reports.cells import Table, share
from mmnar_lightning.reports.reading import Run
from mmnar_lightning.reports.summary import headlines, notices

MINUS = re.compile(r"(?<![\w.)])-(?=\d)")
NUMERIC = re.compile(r"[<>]? ?\[?[−-]?\d|–$|$")


def render_page(run: Run, compared: Sequence[Run] = (), tables: Sequence[Table] = ()) -> str:
    """Render the report; the same arguments give the same bytes.

    Args:
        run: What it is about.
        compared: Runs to put beside it.
        tables: Further tables to show, as `read_table` reads them.

    Returns:
        HTML that loads nothing and runs no script. All that came from data is escaped.
    """
    environment = Environment(
        loader=PackageLoader("mmnar_lightning.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # the one that can fail comes before figures are drawn
    evaluation = _evaluation(run)
    page = environment.get_template("report.html.j2").render(
        run=run,
        data=run.findings["data"],
        headlines=headlines(run),
        notices=notices(run),
        facts=cohort.facts(run),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100),
        cohort=_cohort(run),
        tasks=[_task(run, task) for task in run.tasks],
        alone=results.availability_alone_table(run),
        groups=_groups(run),
        worst=results.worst_table(run),
        rectifier=_rectifier(run),
        coverage=results.coverage_table(run),
        evaluation=evaluation,
        comparison=_comparison([run, *compared]) if compared else None,
        tables=tables,
        share=share,
    )
    return re.sub(r"\n{2,}", "\n", page)


def _cohort(run: Run) -> dict[str, Any]:
    return {
        "flow": drawing.flow(run),
        "excluded": cohort.flow_table(run),
        "counts": cohort.counts_table(run),
        "splits": cohort.split_table(run),
        "modalities": cohort.modality_table(run),
        "availability": cohort.availability_table(run),
        "sites": cohort.site_table(run),
        "patterns": cohort.pattern_table(run),
        "pattern_figure": drawing.patterns(run),
    }


def _task(run: Run, task: str) -> dict[str, Any]:
    return {
        "name": task,
        "table": results.task_table(run, task),
        "figures": [f for f in (drawing.calibration(run, task), drawing.decision(run, task)) if f],
    }


def _groups(run: Run) -> list[dict[str, Any]]:
    """What there is by availability pattern, and by subgroup: figures and tables, by task."""
    found = results.variables(run)
    by_pattern = [v for v in found if v in results.BY_PATTERN]
    parts = {
        "By availability pattern": (by_pattern, ("auroc", "rate")),
        "By subgroup": ([v for v in found if v not in by_pattern], ("auroc",)),
    }
    listed = []
    for name, (variables, metrics) in parts.items():
        figures = [drawing.forest(run, variables, task, metric) for task in run.tasks for metric in metrics]
        tables = [results.group_table(run, variable, task) for variable in variables for task in run.tasks]
        if tables:
            listed.append({"name": name, "figures": [f for f in figures if f], "tables": tables})
    return listed


def _rectifier(run: Run) -> dict[str, Any]:
    return {
        "rungs": results.rung_table(run),
        "shifts": results.shift_table(run),
        "figure": drawing.shifts(run),
    }


def _evaluation(run: Run) -> list[dict[str, Table]]:
    """Tables of `mmnar evaluate`, each with what was refused apart from it."""
    if run.evaluation is None:
        return []
    try:
        found = sections(run.evaluation)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"evaluation.json of {run.name} is not as this release writes it ({error}); run `mmnar evaluate` again"
        ) from error
    return [_section(section) for section in found]


def _section(section: Section) -> dict[str, Table]:
    rows = [tuple(MINUS.sub("−", cell) for cell in row) for row in section.rows]
    refused = [row for row in rows if any(cell.startswith("refused: ") for cell in row)]
    told = [row for row in rows if row not in refused]
    header = tuple(name.replace("_", " ") for name in section.header)
    words = _words(told)
    empty = [k for k, name in enumerate(header) if k >= words and all(not row[k] for row in refused)]
    short = [tuple(cell for k, cell in enumerate(row) if k not in empty) for row in refused]
    names = tuple(name for k, name in enumerate(header) if k not in empty)
    return {
        "told": Table(section.title, header, tuple(told), words, section.note),
        "refused": Table(f"{section.title}: refused", names, tuple(short), len(names)),
    }


def _words(rows: Sequence[Sequence[str]]) -> int:
    """Leading columns that hold words."""
    numeric = [all(NUMERIC.match(cell) for cell in column) for column in zip(*rows, strict=True)]
    return max(1, next((k for k, is_number in enumerate(numeric) if is_number), len(numeric)))


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "doubts": comparison.doubts(runs),
        "table": comparison.comparison_table(runs),
        "settings": comparison.settings_table(runs),
    }
