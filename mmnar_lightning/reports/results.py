"""Tables of results: by task, by pattern and subgroup, of the rectifier and of the conformal sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmnar_lightning.reports.cells import NONE, Table, count, interval, number, pattern, rate, share, written_pattern
from mmnar_lightning.reports.reading import PREFIXES, Run

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "log_loss": "log loss",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
    "excess_ece": "excess ECE",
}
WORDS = {
    "raw": "raw",
    "recalibrated": "recalibrated",
    "rectified": "rectified",
    "δ-only": "availability alone (δ\u2011only)",
}
RUNGS = {
    "global": "global: one recalibration for all",
    "intercepts": "intercepts: a shrunken shift for each pattern",
    "slopes": "slopes: shrunken shifts and slopes",
}
BY_PATTERN = ("pattern", "modality_count")
VARIABLES = {
    "pattern": "availability pattern",
    "modality_count": "number of modalities",
    "age": "age band",
    "age_band": "age band",
}


def task_table(run: Run, task: str) -> Table:
    """The four kinds of probabilities side by side."""
    names = [m for m in METRICS if any(run.estimate(v, task, m)[0] is not None for v in PREFIXES)]
    rows = tuple(
        (WORDS[version], *(interval(run.estimate(version, task, m)) for m in names))
        for version in PREFIXES
        if any(run.estimate(version, task, m)[0] is not None for m in names)
    )
    labelled, positive = run.labels(task)
    caption = f"{count(positive)} events in {count(labelled)} labelled samples of {run.stage}"
    return Table(caption, ("probabilities", *(METRICS[m] for m in names)), rows)


def availability_alone_table(run: Run) -> Table:
    """What availability predicts by itself, and beyond what is known of everyone."""
    rows = []
    for task in run.tasks:
        found = [
            run.estimate(*of)
            for of in (
                ("structured-only", task, "auroc"),
                ("δ-only", task, "auroc"),
                ("δ-only", task, "adjusted_auroc"),
            )
        ]
        if any(estimate is not None for estimate, _, _ in found):
            rows.append((task, *map(interval, found)))
    note = (
        "Adjusted: AUROC of availability among people of the same structured-only risk (Janes and Pepe 2009); 0.5 "
        "where availability tells nothing beyond what is known of everyone."
    )
    header = ("task", "structured-only AUROC", "availability alone", "adjusted")
    return Table("What availability predicts", header, tuple(rows), note=note)


def variables(run: Run) -> list[str]:
    """Variables that there are groups of, patterns first."""
    found = list(dict.fromkeys(row["variable"] for row in run.findings["groups"]))
    return sorted(found, key=lambda variable: variable not in BY_PATTERN)


def variable_name(variable: str) -> str:
    """Name a variable in words."""
    return VARIABLES.get(variable, variable.replace("_", " "))


def groups(run: Run, variable: str, task: str) -> list[dict[str, Any]]:
    """Rows of a variable's groups for a task, with names as they are shown."""
    return [
        row | {"group": _group_name(run, variable, row["group"])}
        for row in run.findings["groups"]
        if row["variable"] == variable and row["task"] == task
    ]


def _group_name(run: Run, variable: str, group: str) -> str:
    return written_pattern(group, run.modalities) if variable in BY_PATTERN else group


def group_table(run: Run, variable: str, task: str) -> Table:
    """A variable's groups for a task."""
    rows = groups(run, variable, task)
    columns = [
        (version, metric)
        for metric in METRICS
        # it goes with the rate, so that groups can't be compared by it
        if metric != "auprc"
        for version in ("raw", "rectified")
        if any(_has(row, version, metric) for row in rows)
    ]
    cells = tuple(
        (
            row["group"],
            count(row["samples"]),
            count(row["people"]),
            count(row["events"]),
            rate(row["rate"]),
            *(interval(row["metrics"].get(v, {}).get(m, (None,) * 3)) for v, m in columns),
        )
        for row in rows
    )
    header = ("group", "samples", "people", "events", "rate", *(f"{METRICS[m]}, {v}" for v, m in columns))
    return Table(f"{task} by {variable_name(variable)}", header, cells)


def _has(row: dict[str, Any], version: str, metric: str) -> bool:
    found: Sequence[float | None] = row["metrics"].get(version, {}).get(metric, (None,))
    return found[0] is not None


def worst_table(run: Run) -> Table:
    """The lowest AUROC inside a pattern."""
    rows = tuple(
        (
            w["task"],
            pattern(w["modalities"], run.modalities),
            count(w["patterns"]) if w["patterns"] is None else str(w["patterns"]),
            number(w["raw"]),
            interval((w["shrunken"], w["low"], w["high"])),
        )
        for w in run.findings["worst"]
    )
    note = (
        "Of the patterns that at least 10 people have with the outcome and 10 without. The least of many reads low, so "
        "all are shrunken before the lowest is taken; intervals cover on average over patterns."
    )
    header = ("task", "observed modalities", "patterns compared", "raw AUROC", "shrunken AUROC")
    return Table("Lowest AUROC inside a pattern", header, rows, words=2, note=note)


def rung_table(run: Run) -> Table:
    """How far the rectifier went, by task."""
    rows = tuple(
        (r["task"], RUNGS.get(r["chosen"], r["chosen"] or NONE), r["reason"] or NONE)
        for r in run.findings["rectifier"]["rungs"]
    )
    note = "The simplest rung whose held-out log loss on calibration patients is within one standard error of the best."
    return Table("Rungs of the rectifier", ("task", "rung", "why"), rows, words=3, note=note)


def shift_table(run: Run) -> Table:
    """Shifts of the rectifier by pattern, on the logit scale."""
    rows = tuple(
        (r["task"], pattern(r["modalities"], run.modalities), _signed(r["shift"]))
        for r in run.findings["rectifier"]["shifts"]
    )
    note = "On the logit scale; 0.7 doubles the odds, −0.7 halves them."
    return Table("Shifts by pattern", ("task", "observed modalities", "shift"), rows, words=2, note=note)


def _signed(value: float | None) -> str:
    return number(value) if value is None or round(value, 3) <= 0 else f"+{number(value)}"


def coverage_table(run: Run) -> Table:
    """Coverage of the conformal sets."""
    rows = tuple(
        (
            row["task"],
            "event" if row["label"] else "no event",
            written_pattern(row["group"], run.modalities) if row["group"] != "all" else "everyone",
            count(row["calibration"]),
            count(row["samples"]),
            share(row["coverage"]),
            NONE if row["low"] is None else f"{share(row['low'])} to {share(row['high'])}",
            number(row["size"], 2),
            *(share(row[name]) for name in ("empty", "single", "both")),
        )
        for row in run.findings["coverage"]
    )
    sizes = ("mean size", "empty", "one label", "both")
    header = ("task", "true class", "observed modalities", "calibration", run.stage, "coverage", "expected", *sizes)
    note = (
        "How often a set holds the true label. Expected: the range of 95\u00a0% of such coverages for as many rows, "
        "were they exchangeable; where there is none (–), and inside a group, nothing is promised."
    )
    return Table("Coverage of the conformal sets", header, rows, words=3, note=note)
