"""The report of `mmnar rectify`, in Markdown: counts and means, none of fewer than ten people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmnar_lightning import __version__
from mmnar_lightning.commands._rectification import ENOUGH, METRICS, PatternMeans, Rectification
from mmnar_lightning.evaluation import Interval
from mmnar_lightning.rectifier import PoweredMean


def report(done: Rectification, options: Mapping[str, Any]) -> str:
    """Say what was fitted on whom, how its form was chosen, and what it changes on rows that it has not seen."""
    p = done.predictions
    people = len(set(p.patient[p.calibration & p.labelled.any(1)].tolist()))
    lines = ["# Rectified predictions", ""]
    lines += [
        f"mmnar-lightning {__version__}; `{p.path.name}`, {len(p.frame)} rows; fitted on {_count(people)} patients; "
        f"scale {done.rectifier.scale}; rung: {options['rung']}; folds {options['folds']}, seed {options['seed']}.",
        "",
        "Raw, recalibrated (global bias and temperature) and rectified (with effects of the availability pattern) "
        "probabilities are scored on rows that were not fitted on. What availability adds is rectified minus "
        "recalibrated; rectified minus raw holds bias and temperature too. A shift for each pattern can't change AUROC "
        "inside a pattern: a large gain of AUROC points to a leak. Groups of fewer than "
        f"{ENOUGH} patients, and means with fewer than {ENOUGH} patients with or without an event, are not shown.",
    ]
    if p.columns.fit_on == "labels":
        lines += ["", "Fitted on every row with a known label, so that none is left to be scored."]
    for k, task in enumerate(p.tasks):
        lines += ["", f"## {task}", ""]
        if done.rectifier.reasons[k]:
            lines += [f"Left as it is: {done.rectifier.reasons[k]}."]
            continue
        lines += [*_choice(done, k), *_fitted(done, k), *_scores(done, k), *_patterns(done, k)]
    return "\n".join(lines) + "\n"


def _count(number: int) -> str:
    return f"< {ENOUGH}" if number < ENOUGH else str(number)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(*cells: str) -> list[str]:
    return ["", _row(*cells), _row(*("---" for _ in cells))]


def _choice(done: Rectification, k: int) -> list[str]:
    rung = done.rectifier.rungs[k]
    if not done.rectifier.choices:
        return [f"Rung: `{rung}`, as given."]
    choice = done.rectifier.choices[k]
    if choice.reason:
        return [f"Rung: `{rung}`; not chosen by cross-validation, {choice.reason}."]
    lines = [
        f"Rung: `{rung}`, the simplest within one standard error of the best "
        f"({_count(choice.patients)} patients in {len(choice.fold_loss[0])} folds)."
    ]
    lines += _head("rung", "log loss", "minus the best", "its SE over patients", "log loss by fold")
    for r, name in enumerate(choice.rungs):
        folds = " ".join("–" if value is None else f"{value:.4f}" for value in choice.fold_loss[r])
        lines += [_row(name, f"{choice.loss[r]:.5f}", f"{choice.difference[r]:.5f}", f"{choice.se[r]:.5f}", folds)]
    return lines


def _fitted(done: Rectification, k: int) -> list[str]:
    state = done.rectifier.to_state()
    lines = ["", f"Bias {state['bias'][k]:+.3f}, temperature {state['temperature'][k]:.3f}."]
    if done.rectifier.rungs[k] != "global":
        lines[-1] += f" Shifts: τ of counts {state['tau_count'][k]:.3f}, of patterns {state['tau_pattern'][k]:.3f}."
        if done.rectifier.scale == "logit":
            slope, centre = 1 + state["global_slope"][k], state["centre"][k]
            lines[-1] += f" Slope that patterns share: {slope:.3f}, around a logit of {centre:+.3f}."
    if done.rectifier.rungs[k] == "slopes":
        count, pattern = state["slope_tau_count"][k], state["slope_tau_pattern"][k]
        lines[-1] += f" Slopes: τ of counts {count:.3f}, of patterns {pattern:.3f}."
    return lines


def _scores(done: Rectification, k: int) -> list[str]:
    task, lines = done.predictions.tasks[k], []
    for split in done.evaluated:
        found = done.scores.get((task, split))
        if found is None:
            lines += ["", f"{split}: too few patients with or without an event to be scored."]
            continue
        lines += _head(split, *METRICS)
        lines += [_row(version, *(f"{values[name]:.4f}" for name in METRICS)) for version, values in found.items()]
        for version, gains in done.gains[task, split].items():
            if version == "recalibrated" and done.rectifier.rungs[k] == "global":
                lines += ["", "Rectified minus recalibrated: nothing is added, since the rung is `global`."]
            else:
                lines += ["", f"Rectified minus {version}, 95 % patient bootstrap: {_intervals(gains)}."]
    return lines


def _intervals(gains: Mapping[str, Interval]) -> str:
    return "; ".join(f"{name} {gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for name, gain in gains.items())


def _patterns(done: Rectification, k: int) -> list[str]:
    p = done.predictions
    shown = done.patterns[p.tasks[k]]
    headings = ["pattern", "patients", "shift ± sd", "slope", "mean outcome [95 %], tuned λ", "the same, λ = 1"]
    lines = _head(*headings) if shown else []
    lines += [_row(_name(done, one.pattern), one.patients, *_effects(done, k, one)) for one in shown]
    hidden = len(done.rectifier.to_state()["patterns"]) - len(shown)
    lines += ["", f"{hidden} further patterns have fewer than {ENOUGH} labelled patients."] if hidden else []
    return [
        *lines,
        "",
        "What sets a pattern apart from raw predictions is bias, temperature, slope and shift together; a shift alone "
        "is its difference from what all patterns share. Shifts are shrunk towards other patterns; their intervals "
        "hold on average over patterns, not for each. Mean "
        "outcomes are not shrunk: prediction-powered intervals from the calibration labels and the raw predictions of "
        "all rows of the pattern, for labels that are unknown for reasons unrelated to the outcome.",
    ]


def _effects(done: Rectification, k: int, one: PatternMeans) -> list[str]:
    rung = done.rectifier.rungs[k]
    shift = "–" if rung == "global" else f"{one.shift:+.3f} ± {one.sd:.3f}"
    slope = f"{1 + one.slope:.2f}" if rung == "slopes" else "–"
    return [shift, slope, _mean(one.powered, True), _mean(one.plain, False)]


def _mean(found: PoweredMean | None, power: bool) -> str:
    if found is None:
        return "–"
    text = f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"{text}, λ = {found.power:.2f}" if power else text


def _name(done: Rectification, pattern: int) -> str:
    names = done.predictions.columns.observed
    if not names:
        return str(pattern)
    return "+".join(name for m, name in enumerate(names) if pattern >> m & 1) or "none"
