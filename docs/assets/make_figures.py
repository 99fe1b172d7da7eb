"""Draws the pictures that the documentation shows, `python docs/assets/make_figures.py [FOLDER]`.

Everything in them is drawn at random with a fixed seed: nobody's records, and no result of any method. The same
versions of numpy and matplotlib write the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmnar_lightning.evaluation import figures
from mmnar_lightning.evaluation.calibration_curve import calibration_curve
from mmnar_lightning.evaluation.decision_curve import decision_curve
from mmnar_lightning.evaluation.groups import by_group

Array = NDArray[np.float64]
MODALITIES = ["structured", "vitals", "labs", "medication", "notes", "films"]
TASK = "mortality_hospital"
# An image in a page doesn't see the page's colours, so a file brings both of its own.
_COLOURS = (
    "<style>svg { background: #ffffff; color: #1a1b1c } "
    "@media (prefers-color-scheme: dark) { svg { background: #1e2129; color: #e2e4e9 } }</style>"
)


def simulated(people: int = 6000) -> tuple[NDArray[np.bool_], Array, Array, Array]:
    """Availability [n, M], outcome [n], probabilities that ignore availability [n], and those that don't [n]."""
    g = np.random.default_rng(8)
    severity = g.standard_normal(people)
    leaning = np.array([9.0, 2.4, 1.6, 0.9, 0.6, -0.8])
    slope = np.array([0.0, 0.2, 0.4, 0.5, -0.7, 0.9])
    observed = g.random((people, 6)) < 1 / (1 + np.exp(-leaning - slope * severity[:, None]))
    shift = 0.8 * observed[:, 5] - 0.9 * observed[:, 4]
    seen = severity + 0.6 * g.standard_normal(people)
    outcome = (g.random(people) < 1 / (1 + np.exp(2.2 - 1.1 * severity - shift))).astype(float)
    raw, rectified = 1 / (1 + np.exp(2.2 - 1.3 * seen)), 1 / (1 + np.exp(2.15 - 0.75 * seen - shift))
    return observed, outcome, raw, rectified


def drawings() -> Iterator[tuple[str, str, str, Figure]]:
    """Name, title, description and figure of each picture."""
    observed, outcome, raw, rectified = simulated()
    people, versions = np.arange(len(outcome)), {"raw": raw, "rectified": rectified}
    bits = (observed << np.arange(6)).sum(1)
    ids, counts = np.unique(bits, return_counts=True)
    common = ids[np.argsort(-counts, kind="stable")][:12]
    names = [[name for m, name in enumerate(MODALITIES) if i >> m & 1] for i in common.tolist()]
    yield (
        "calibration",
        "Calibration",
        "Observed rate against predicted probability, raw and rectified.",
        figures.draw_calibration({v: asdict(calibration_curve(p, outcome, people)) for v, p in versions.items()}),
    )
    curves = {
        v: decision_curve(p, outcome, thresholds=np.linspace(0.01, 0.5, 50).tolist()) for v, p in versions.items()
    }
    net_benefit = {v: curve.net_benefit for v, curve in curves.items()}
    yield (
        "decision",
        "Decision curve",
        "Net benefit against the threshold from which one would act.",
        figures.draw_decision(asdict(curves["raw"]) | {"net_benefit": net_benefit}),
    )
    frequent = [
        {"modalities": there, "samples": int((bits == i).sum())} for there, i in zip(names, common, strict=True)
    ]
    yield (
        "patterns",
        "Availability patterns",
        "Which modalities are observed together, and in how many samples.",
        figures.draw_patterns(frequent, MODALITIES),
    )
    shown = np.isin(bits, common[:8])
    rows = by_group(
        {v: p[shown, None] for v, p in versions.items()},
        outcome[shown, None],
        np.ones((int(shown.sum()), 1), bool),
        people[shown],
        [TASK],
        {},
        pattern=bits[shown],
        modalities=MODALITIES,
        draws=200,
    )
    rate = [asdict(row) for row in rows if row.variable == "pattern" and not row.group.startswith("other")]
    yield (
        "rate",
        "Rate by pattern",
        "Share with the outcome, with 95 % intervals.",
        figures.draw_group_metric(rate, "rate", "raw"),
    )
    yield (
        "shifts",
        "Shifts by pattern",
        "What is added to the log-odds of each pattern.",
        figures.draw_shifts(_shifts(bits, common.tolist(), names, outcome, raw), MODALITIES),
    )
    weights = np.random.default_rng(9).dirichlet(np.full(6, 2.0), len(common))
    yield (
        "gates",
        "Gates by pattern",
        "Heat map of the weight of each modality in each pattern.",
        figures.draw_gates(weights, names, MODALITIES, "mean gate of a modality, by pattern"),
    )
    yield "flow", "Exclusions", "From what was read to the samples.", figures.draw_flow(_flow(len(outcome)))
    yield (
        "precision_recall",
        "Precision against recall",
        "Precision-recall curves, raw and rectified.",
        figures.draw_precision_recall(
            {v: _precision_recall(p, outcome) for v, p in versions.items()}, prevalence=float(outcome.mean())
        ),
    )


def _shifts(
    bits: NDArray[np.int64], common: list[int], names: list[list[str]], outcome: Array, raw: Array
) -> list[dict[str, object]]:
    """Log-odds of what happened less those of what was predicted, by pattern; a rectifier would shrink them."""
    found: list[dict[str, object]] = []
    for i, there in zip(common, names, strict=True):
        rate, predicted = outcome[bits == i].mean(), raw[bits == i].mean()
        shift = np.log(rate / (1 - rate)) - np.log(predicted / (1 - predicted))
        found.append({"task": TASK, "modalities": there, "shift": float(shift)})
    return found


def _flow(kept: int) -> list[dict[str, object]]:
    counts = [
        ("stays", "read", kept + 1302),
        ("stays", "excluded: no unit discharge", None),
        ("stays", "excluded: under 18", 212),
        ("episodes", "found", kept + 981),
        ("episodes", "excluded: not the first of the hospital stay", 413),
        ("episodes", "excluded: left the unit or died by hour 24", 568),
        ("samples", "kept", kept),
    ]
    return [{"table": table, "what": what, "rows": rows} for table, what, rows in counts]


def _precision_recall(probabilities: Array, outcome: Array) -> dict[str, list[float]]:
    hits = np.cumsum(outcome[np.argsort(-probabilities, kind="stable")])
    return {"precision": (hits / np.arange(1, len(hits) + 1)).tolist(), "recall": (hits / hits[-1]).tolist()}


def write(folder: Path) -> list[Path]:
    """Write the pictures as SVG files into a folder."""
    written = []
    for name, title, description, figure in drawings():
        path = folder / f"{name}.svg"
        head, mark, rest = figures.svg(figure, title, description).partition("</desc>")
        path.write_text(f"{head}{mark}{_COLOURS}{rest}\n", encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
