"""What a reader should know first: each task in a few words, and what to be wary of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmnar_lightning.reports.cells import count, interval, number, pattern
from mmnar_lightning.reports.reading import Run

JUMP = 0.02
"""Gain of AUROC by rectification that is taken for an alarm: a shift by pattern only re-orders between patterns."""
EVENTS = 100
"""Events that a validation should have at least (Collins, Ogundimu and Altman 2016)."""
SLOPE = (0.8, 1.25)
"""Calibration slopes that are not remarked on."""


@dataclass(frozen=True)
class Notice:
    """Something to be wary of.

    Args:
        level: `alarm` for what may make the results wrong, `caution` for what limits them.
        title: In a few words.
        text: What it means, and what to do.
        items: What was seen, one for each task where it was.
    """

    level: Literal["alarm", "caution"]
    title: str
    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """A task in a few words.

    Args:
        task: Its name.
        about: Horizon and description.
        events: Events of the labelled samples.
        auroc: Of the rectified probabilities, with its interval.
        availability: AUROC of availability alone.
        sentences: What else to know.
    """

    task: str
    about: str
    events: str
    auroc: str
    availability: str
    sentences: tuple[str, ...]


def headlines(run: Run) -> list[Headline]:
    """Say of each task how well it is predicted, and what rectification did."""
    found = []
    for task in run.findings["tasks"]:
        name = task["name"]
        labelled, positive = run.labels(name)
        found.append(
            Headline(
                name,
                ": ".join(t for t in (task["horizon"], task["description"]) if t),
                f"{count(positive)} events in {count(labelled)} labelled samples",
                interval(run.estimate("rectified", name, "auroc")),
                interval(run.estimate("δ-only", name, "auroc")),
                (_rectification(run, name), *_calibration(run, name)),
            )
        )
    return found


def _rectification(run: Run, task: str) -> str:
    raw, recalibrated, rectified = (
        run.estimate(version, task, "log_loss")[0] for version in ("raw", "recalibrated", "rectified")
    )
    if raw is None or recalibrated is None or rectified is None:
        return "There is no log loss to tell rectification by: too few people, or one class alone."
    rung = next((r for r in run.findings["rectifier"]["rungs"] if r["task"] == task), None)
    if raw == recalibrated == rectified:
        why = f": {rung['reason']}" if rung and rung["reason"] else ""
        return f"Neither recalibration nor rectification changed anything{why}. The log loss is {number(raw)}."
    first = f"Recalibration took the log loss from {number(raw)} to {number(recalibrated)}"
    if recalibrated == rectified:
        return f"{first}; rectification by availability pattern added nothing to it."
    return f"{first}; rectification by availability pattern, on top of it, to {number(rectified)}."


def _calibration(run: Run, task: str) -> list[str]:
    slope = run.estimate("rectified", task, "calibration_slope")
    intercept = run.estimate("rectified", task, "calibration_intercept")
    if slope[0] is None or intercept[0] is None:
        return []
    return [
        f"Rectified calibration: slope {interval(slope, 2)} (ideal 1), intercept {interval(intercept, 2)} (ideal 0)."
    ]


def notices(run: Run) -> list[Notice]:
    """List what to be wary of, alarms first."""
    by_task = (_jump, _availability, _close, _events, _worse, _slope, _worst)
    found = [*_stage(run), *(notice for find in by_task for notice in find(run) if notice.items), *_coverage(run)]
    return sorted(found, key=lambda notice: notice.level != "alarm")


def _stage(run: Run) -> list[Notice]:
    found = []
    if run.stage == "val":
        text = (
            "The checkpoint was chosen on these samples, so the numbers read high. Run mmnar test, then report again."
        )
        found.append(Notice("alarm", "These are numbers of val, not of test", text))
    if not run.findings["rectifier"]["fitted"]:
        text = "The rectifier is not fitted and there are no conformal sets. mmnar fit --resume auto finishes the fit."
        found.append(Notice("alarm", "The fit has not come to its end", text))
    return found


def _jump(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        before, after = (run.estimate(version, task, "auroc")[0] for version in ("recalibrated", "rectified"))
        if before is not None and after is not None and after - before >= JUMP:
            items.append(f"{task}: from {number(before)} to {number(after)}")
    text = (
        "A shift by pattern can't order people inside a pattern better, only patterns among each other, so a large "
        "gain is a sign of leakage: look for modalities recorded after the prediction time, or because of the outcome."
    )
    return [Notice("alarm", "Rectification made AUROC jump", text, tuple(items))]


def _availability(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        alone, model = run.estimate("δ-only", task, "auroc"), run.estimate("rectified", task, "auroc")
        if alone[0] is not None and model[0] is not None and alone[0] >= model[0]:
            items.append(f"{task}: availability alone {interval(alone)}, the model {interval(model)}")
    text = "What the model has learned from values is not to be told from who was measured. AUROC:"
    return [Notice("alarm", "Availability alone does as well as the model", text, tuple(items))]


def _close(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        alone, model = run.estimate("δ-only", task, "auroc"), run.estimate("rectified", task, "auroc")
        if None in (alone[0], alone[2], model[0], model[1]):
            continue
        if alone[0] < model[0] and alone[2] >= model[1]:  # type: ignore[operator]
            items.append(f"{task}: availability alone {interval(alone)}, the model {interval(model)}")
    text = "The intervals of AUROC meet, which is no test of the difference, but no proof of one either:"
    return [Notice("caution", "Not clearly better than availability alone", text, tuple(items))]


def _events(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        labelled, positive = run.labels(task)
        fewer = None if labelled is None or positive is None else min(positive, labelled - positive)
        if fewer is None or fewer < EVENTS:
            items.append(f"{task} {count(fewer)}")
    text = (
        f"At least {EVENTS} are advised for a validation. Intervals are wide, calibration curves unsteady, and "
        "differences between methods undecided. Samples in the smaller class:"
    )
    return [Notice("caution", "Few events", text, (", ".join(items),) if items else ())]


def _worse(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        raw, rectified = (run.estimate(version, task, "log_loss")[0] for version in ("raw", "rectified"))
        if raw is not None and rectified is not None and rectified > raw:
            items.append(f"{task}: from {number(raw, 4)} to {number(rectified, 4)}")
    text = "Calibration and test samples differ there, if only by chance. The log loss rose:"
    return [Notice("caution", "Correction made it worse", text, tuple(items))]


def _slope(run: Run) -> list[Notice]:
    items = []
    for task in run.tasks:
        slope = run.estimate("rectified", task, "calibration_slope")
        if slope[0] is not None and not SLOPE[0] <= slope[0] <= SLOPE[1]:
            kind = "too extreme" if slope[0] < 1 else "too moderate"
            items.append(f"{task}: {interval(slope, 2)}, risks are {kind}")
    return [Notice("caution", "Calibration is off after rectification", "Calibration slope, ideally 1:", tuple(items))]


def _worst(run: Run) -> list[Notice]:
    items = []
    for row in run.findings["worst"]:
        if row["low"] is not None and row["low"] <= 0.5:
            auroc = interval((row["shrunken"], row["low"], row["high"]))
            items.append(f"{row['task']}: {auroc} where {pattern(row['modalities'], run.modalities)} was observed")
    text = "The interval of the shrunken AUROC holds 0.5:"
    return [Notice("caution", "A pattern in which the model may not rank at all", text, tuple(items))]


def _coverage(run: Run) -> list[Notice]:
    if run.stage == "test" and not run.findings["coverage"]:
        text = "The fit has not come to its end (mmnar fit --resume auto finishes it), or all groups are too small."
        return [Notice("caution", "There are no conformal sets", text)]
    promised = [row for row in run.findings["coverage"] if row["low"] is not None and row["coverage"] is not None]
    missed = [row for row in promised if row["coverage"] < row["low"]]
    if not missed:
        return []
    text = (
        f"In {len(missed)} of the {len(promised)} groups with an expected range, coverage is below it (about one in "
        "forty would be by chance). Test patients are unlike those of calibration there, or have several samples each."
    )
    return [Notice("caution", "Conformal sets cover less than expected", text)]
