"""The figures of a run, as inline SVG with words for those who don't see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmnar_lightning.evaluation.figures import (
    draw_calibration,
    draw_decision,
    draw_flow,
    draw_group_metric,
    draw_patterns,
    draw_shifts,
    svg,
)
from mmnar_lightning.reports.cells import count, number, pattern
from mmnar_lightning.reports.reading import Run
from mmnar_lightning.reports.results import groups, variable_name

SHOWN_PATTERNS = 20
COUNTED = ("found", "read", "kept")


@dataclass(frozen=True)
class Picture:
    """A figure with its caption.

    Args:
        caption: What it shows and how to read it.
        svg: The element; its texts are escaped by who drew it.
    """

    caption: str
    svg: Markup


def _picture(figure: Any, title: str, description: str, caption: str) -> Picture:
    # matplotlib escapes the texts of a figure and `svg` those of title and description
    return Picture(caption, Markup(svg(figure, title, description)))


def flow(run: Run) -> Picture | None:
    """Diagram of exclusions."""
    rows = exclusions(run)
    if not rows:
        return None
    described = "; ".join(f"{row['table']}: {row['what']}: {count(row['rows'])}" for row in rows)
    return _picture(
        draw_flow(rows), "Diagram of exclusions", described, "From the source to the samples, with who was left out."
    )


def exclusions(run: Run) -> list[dict[str, Any]]:
    """Counts of exclusions, each table's after what there was of it, and what was kept in the end."""
    counts = run.findings["cohort"]["flow"]
    first: dict[str, int] = {}
    for k, row in enumerate(counts):
        if row["what"].startswith("excluded"):
            first.setdefault(row["table"], k)
    before = {
        table: max((k for k, row in enumerate(counts[:at]) if row["table"] == table and _counted(row)), default=at)
        for table, at in first.items()
    }
    kept = [
        row
        for k, row in enumerate(counts)
        if row["what"].startswith("excluded")
        or before.get(row["table"]) == k
        or (row["table"], row["what"]) == ("samples", "kept")
    ]
    return kept if first else []


def _counted(row: dict[str, Any]) -> bool:
    return str(row["what"]).endswith(COUNTED)


def patterns(run: Run) -> Picture | None:
    """The most frequent patterns."""
    rows = run.findings["cohort"]["patterns"][:SHOWN_PATTERNS]
    if not rows:
        return None
    described = "; ".join(f"{pattern(row['modalities'], run.modalities)}: {count(row['samples'])}" for row in rows)
    caption = (
        f"The {len(rows)} most frequent availability patterns of train: a filled dot is a modality that was observed."
    )
    return _picture(draw_patterns(rows, run.modalities), "Availability patterns", described, caption)


def calibration(run: Run, task: str) -> Picture | None:
    """Calibration curves of a task."""
    curves = {v: c for v, c in run.findings["calibration"].get(task, {}).items() if c["predicted"]}
    if not curves:
        return None
    described = ". ".join(
        f"{version}: "
        + ", ".join(
            f"predicted {number(p, 2)} observed {number(o, 2)}"
            for p, o in zip(curve["predicted"], curve["observed"], strict=True)
        )
        for version, curve in curves.items()
    )
    caption = (
        "Calibration: observed rate against predicted risk, bins of at least 10 people, 95\u00a0% intervals of people."
    )
    return _picture(draw_calibration(curves), f"Calibration of {task}", described, caption)


def decision(run: Run, task: str) -> Picture | None:
    """Decision curves of a task."""
    curve = run.findings["decision"].get(task)
    if not curve or not curve["threshold"]:
        return None
    described = _decided(curve)
    caption = "Decision curve: net benefit of acting above a threshold, beside acting on everyone and on nobody."
    return _picture(draw_decision(curve), f"Decision curve of {task}", described, caption)


def _decided(curve: dict[str, Any]) -> str:
    at = [round(k * (len(curve["threshold"]) - 1) / 4) for k in range(5)]
    told = {"treat all": curve["treat_all"], **curve["net_benefit"]}
    return ". ".join(
        f"{name}: " + ", ".join(f"net benefit {number(values[k])} at {number(curve['threshold'][k], 2)}" for k in at)
        for name, values in told.items()
    )


def forest(run: Run, variables: Sequence[str], task: str, metric: str) -> Picture | None:
    """A metric, or the `rate`, of a task by the groups of some variables."""
    rows = [row | {"variable": variable_name(v)} for v in variables for row in groups(run, v, task)]
    told = [(row, row["rate"] if metric == "rate" else _rectified(row, metric)) for row in rows]
    told = [(row, found) for row, found in told if found and found[0] is not None]
    if not told:
        return None
    described = "; ".join(f"{row['variable']} {row['group']}: {number(found[0])}" for row, found in told)
    what = "label rate" if metric == "rate" else "AUROC of rectified probabilities"
    drawn = draw_group_metric([row for row, _ in told], metric, "rectified")
    return _picture(drawn, f"{task}: {what} by group", described, f"{task}: {what}, with 95\u00a0% intervals.")


def _rectified(row: dict[str, Any], metric: str) -> Any:
    return row["metrics"].get("rectified", {}).get(metric)


def shifts(run: Run) -> Picture | None:
    """Shifts of the rectifier."""
    known = {tuple(row["modalities"]) for row in run.findings["cohort"]["patterns"][:SHOWN_PATTERNS]}
    found = [row for row in run.findings["rectifier"]["shifts"] if row["shift"] is not None]
    rows = [row for row in found if tuple(row["modalities"]) in known] or found
    if not rows:
        return None
    described = "; ".join(
        f"{row['task']}, {pattern(row['modalities'], run.modalities)}: {number(row['shift'])}" for row in rows
    )
    caption = "Shift of the log-odds by availability pattern. It reflects how care was given, not biology."
    return _picture(draw_shifts(rows, run.modalities), "Shifts of the rectifier by pattern", described, caption)
