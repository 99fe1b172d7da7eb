"""Several runs beside each other, and whether their numbers can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmnar_lightning.reports.cells import NONE, Table, interval
from mmnar_lightning.reports.reading import Run
from mmnar_lightning.reports.results import METRICS

SHOWN = {"raw": ("auroc",), "rectified": ("auroc", "auprc", "brier", "log_loss", "calibration_slope")}
ELSEWHERE = ("run_dir", "resume", "ckpt_path", "weights_only", "data.init_args.root", "data.init_args.store")
"""Settings that say where, not what."""
LONGEST = 120


def names(runs: Sequence[Run]) -> list[str]:
    """Name each run by its folder, with a number where several are called so."""
    called = [run.name for run in runs]
    return [f"{name} ({k + 1})" if called.count(name) > 1 else name for k, name in enumerate(called)]


def doubts(runs: Sequence[Run]) -> list[str]:
    """Say why numbers of the runs can't be compared; nothing where they can."""
    first = runs[0].findings["data"]
    found = []
    for run, name in zip(runs[1:], names(runs)[1:], strict=True):
        data = run.findings["data"]
        differing = [
            what
            for what, differs in {
                "data fingerprints": data["fingerprint"] != first["fingerprint"],
                "cohorts": (data["dataset"], data["cohort"]) != (first["dataset"], first["cohort"]),
                "splits": data["splits"] != first["splits"],
                "numbers of tested samples": _sizes(run) != _sizes(runs[0]),
                "kinds of split (test, val)": run.stage != runs[0].stage,
            }.items()
            if differs
        ]
        if differing:
            found.append(f"{name} and {names(runs)[0]} differ in {', '.join(differing)}")
    return found


def _sizes(run: Run) -> dict[str, Any]:
    return {task: run.labels(task) for task in run.tasks}


def comparison_table(runs: Sequence[Run]) -> Table:
    """The same task and metric of all runs in a row."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    rows = []
    for task in tasks:
        for version, metrics in SHOWN.items():
            for metric in metrics:
                cells = [interval(run.estimate(version, task, metric)) for run in runs]
                if any(cell != NONE for cell in cells):
                    rows.append((task, f"{METRICS[metric]}, {version}", *cells))
    note = (
        "Each run has its own intervals; whether two of them meet is no test of their difference, which has to be "
        "taken pair by pair of patients."
    )
    return Table("Runs beside each other", ("task", "metric", *names(runs)), tuple(rows), words=2, note=note)


def settings_table(runs: Sequence[Run]) -> Table:
    """Settings that are not the same in all runs."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = tuple(
        (key, *(_short(one.get(key)) for one in flat))
        for key in keys
        if not key.startswith(ELSEWHERE) and len({repr(one.get(key)) for one in flat}) > 1
    )
    return Table("Settings that differ", ("setting", *names(runs)), rows, words=1 + len(runs))


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}".lstrip("."))
    else:
        yield at, value


def _short(value: Any) -> str:
    written = NONE if value is None else str(value)
    return written if len(written) <= LONGEST else f"{written[:LONGEST]}…"
