"""Tables of what `mmnar evaluate` found, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """A table with what has to be read with it.

    Args:
        title: Its heading.
        note: What the numbers are and what they rest on.
        header: Names of the columns.
        rows: Cells, as text.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the tables of a report: overlap, values, their sensitivity, gains of AUROC, policy shift."""
    found = report["availability"]
    listed = [_overlap(found), _values(found), _sweep(found), _gains(found)]
    if report.get("as_if"):
        listed.append(_shift(report["as_if"]))
    return [section for section in listed if section.rows]


def _overlap(found: Mapping[str, Any]) -> Section:
    columns = ("eligible", "observed", "ess", "clipped_share", "lowest", "highest", "auroc", "refused")
    rows = tuple((o["modality"], *(_cell(o[c]) for c in columns)) for o in found["overlap"])
    note = (
        "Who has a modality, from what everyone has before it is ordered. Where overlap fails, estimates are refused."
    )
    return Section("Overlap", note, ("modality", *columns), rows)


def _values(found: Mapping[str, Any]) -> Section:
    rows = []
    for v in found["value"]:
        name = (v["modality"], v["task"], v["loss"])
        if v["refused"]:
            rows.append((*name, f"refused: {v['refused']}", "", ""))
            continue
        tipping = "> 20" if v["tipping_gamma"] is None else f"{v['tipping_gamma']:.2f}"
        rows.append((*name, _interval(v), tipping, _interval(v["among_recorded"])))
    note = (
        f"Loss without the modality minus loss with it, over all samples that could have it, {found['assumption']}. "
        "The tipping point is the smallest Γ at which the interval holds 0. Among those who have it, no assumption is "
        "needed, but the number is about them alone."
    )
    header = ("modality", "task", "loss", "value under ignorability", "tipping Γ", "among those who have it")
    return Section("Value of each modality", note, header, tuple(rows))


def _sweep(found: Mapping[str, Any]) -> Section:
    given = [v for v in found["value"] if not v["refused"]]
    gammas = [b["gamma"] for b in given[0]["sweep"]] if given else []
    rows = tuple(
        (
            v["modality"],
            v["task"],
            v["loss"],
            *(f"[{b['interval_low']:.4f}, {b['interval_high']:.4f}]" for b in v["sweep"]),
        )
        for v in given
    )
    note = (
        "Intervals of the same values where the odds of having the modality may, for reasons nobody recorded, differ "
        "by a factor of up to Γ from those given what everyone has (marginal sensitivity model)."
    )
    return Section("If ignorability fails", note, ("modality", "task", "loss", *(f"Γ = {g:g}" for g in gammas)), rows)


def _gains(found: Mapping[str, Any]) -> Section:
    rows = tuple(
        (g["modality"], g["task"], f"refused: {g['refused']}" if g["refused"] else _interval(g))
        for g in found["auroc_gain"]
    )
    note = "AUROC with the modality minus AUROC without it among those who have it, re-weighted; under ignorability."
    return Section("AUROC", note, ("modality", "task", "gain"), rows)


def _shift(found: Mapping[str, Any]) -> Section:
    title = f"As if availability were that of {found['as_if']}"
    if found["refused"]:
        return Section(title, "", ("refused",), ((found["refused"],),))
    rows = tuple(
        (task, name, *(_interval(m[kind]) for kind in ("as_is", "as_if", "difference")))
        for task, metrics in found["metrics"].items()
        for name, m in metrics.items()
    )
    again = "estimated again in each draw" if found["weights_estimated_in_each_draw"] else "held fixed in all draws"
    ess = "–" if found["ess"] is None else f"{found['ess']:.0f}"
    note = (
        f"Test samples outside of it, weighted; {found['assumption']}. Effective sample size {ess} of "
        f"{found['samples']}; mean weight {found['mean_weight']:.2f}; patient bootstrap, weights {again}."
    )
    return Section(title, note, ("task", "metric", "as it is", "as if", "difference"), rows)


def markdown(report: Mapping[str, Any]) -> str:
    """Say in Markdown what was found, each table with what it rests on."""
    found = report["availability"]
    lines = [f"# {report['dataset']}, {report['cohort']}: availability", ""]
    lines += [f"mmnar-lightning {report['version']}; checkpoint `{report['checkpoint']}`; {found['samples']} test "]
    lines[-1] += f"samples of {found['patients']} people; {found['left_out_as_incomplete']} left out as incomplete. "
    lines[-1] += f"Known for everyone: {', '.join([*found['known_before']['modalities'], *report['groups']])}."
    for section in sections(report):
        lines += ["", f"## {section.title}", ""]
        lines += [section.note, ""] if section.note else []
        lines += [f"| {' | '.join(section.header)} |", f"|{'---|' * len(section.header)}"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in section.rows]
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, Any]) -> str:
    ends = [found["estimate"], found["low"], found["high"]]
    if any(end is None for end in ends):
        return _cell(found["estimate"])
    return "{:.4f} [{:.4f}, {:.4f}]".format(*ends)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
