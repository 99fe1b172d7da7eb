"""Tables of what was run on whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmnar_lightning.reports.cells import Table, count, pattern, share
from mmnar_lightning.reports.reading import Run

HIDDEN = "hidden"
REASONS = ("observed", "not_ordered", "not_collected", "unknown", "unreadable")
SPLITS = {"calibration": "calibration A (rectifier)", "conformal": "calibration B (conformal sets)"}


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, in order: name and value."""
    ran, data, versions = (run.findings[part] for part in ("run", "data", "versions"))
    devices = f"{ran['device']}, {ran.get('devices', 1)} process" + ("" if ran.get("devices", 1) == 1 else "es")
    splits = ", ".join(f"{k} {_setting(v)}" for k, v in data["splits"].items() if v not in (None, [], ()))
    return [
        ("Run", run.name),
        ("Numbers of", run.stage),
        ("Dataset, cohort", f"{data['dataset']}, {data['cohort']}"),
        ("Data fingerprint", data["fingerprint"]),
        ("Record store", data["store"]),
        ("Samples, people", f"{count(data['samples'])}, {count(data['patients'])}"),
        ("Splits", splits),
        ("Model", f"{ran['model']}, {count(ran['parameters'])} parameters"),
        ("Weights", f"after epoch {ran['epochs']}, {ran['steps']} steps"),
        ("Seed", "not set" if ran["seed"] is None else str(ran["seed"])),
        ("Device", devices),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _setting(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def flow_table(run: Run) -> Table:
    """Who was left out, in the words of the data source."""
    rows = [r for r in run.findings["cohort"]["flow"] if "excluded" in r["what"]]
    cells = tuple((r["table"], r["what"].removeprefix("excluded: "), count(r["rows"])) for r in rows)
    return Table("Left out, in the order of the steps", ("table", "why", "rows"), cells, words=2)


def counts_table(run: Run) -> Table:
    """All counts of preparation."""
    cells = tuple((r["table"], r["what"], count(r["rows"])) for r in run.findings["cohort"]["flow"])
    return Table("All counts of the preparation", ("table", "what", "rows"), cells, words=2)


def split_table(run: Run) -> Table:
    """Samples, people and label rates of the splits."""
    labels = {(r["split"], r["task"]): r for r in run.findings["cohort"]["labels"]}
    rows = []
    for split in run.findings["cohort"]["splits"]:
        cells = [SPLITS.get(split["split"], split["split"]), count(split["samples"]), count(split["patients"])]
        for task in run.tasks:
            row = labels.get((split["split"], task), {"labelled": None, "positive": None})
            known = row["positive"] is not None and row["labelled"]
            percent = f" ({share(row['positive'] / row['labelled'])})" if known else ""
            cells.append(f"{count(row['positive'])} of {count(row['labelled'])}{percent}")
        rows.append(tuple(cells))
    note = "Whole patients at a time: nobody is in two splits. Rates are of the labelled samples."
    return Table("Splits, with events of each task", ("split", "samples", "people", *run.tasks), tuple(rows), note=note)


def modality_table(run: Run) -> Table:
    """The modalities."""
    rows = tuple((m["name"], m["kind"], "–" if m["items"] is None else str(m["items"])) for m in _modalities(run))
    return Table("Modalities of the model", ("modality", "kind", "items"), rows, words=2)


def _modalities(run: Run) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = run.findings["modalities"]
    return listed


def availability_table(run: Run) -> Table:
    """Who has each modality, and why the others don't, in train and in the split that is reported."""
    found = {(r["modality"], r["split"]): r for r in run.findings["cohort"]["availability"]}
    wanted = [(modality, split) for modality in run.modalities for split in ("train", run.stage)]
    rows = [found[key] for key in wanted if key in found]
    told = [reason for reason in REASONS if any(r.get(reason, 0.0) != 0 for r in rows)]
    cells = tuple((r["modality"], r["split"], *(_told(r.get(reason, 0.0)) for reason in told)) for r in rows)
    note = (
        "Not ordered: the site records it, but this person has none. Not collected: the site has no interface for it. "
        "Unknown: too few training samples of the site to tell. Reasons are never an input of the model. "
        f"{HIDDEN.capitalize()}: fewer than 10 people have it, or lack it."
    )
    header = ("modality", "split", *(reason.replace("_", " ") for reason in told))
    return Table("Availability and its reasons, share of samples", header, cells, words=2, note=note)


def site_table(run: Run) -> Table:
    """What each site records."""
    rows = tuple(
        (r["site"], count(r["samples"]), *(_site_cell(r, modality) for modality in run.modalities))
        for r in run.findings["cohort"]["sites"]
    )
    note = (
        "Sites of at least 10 people, largest first, at most 30. Who lacks a modality was not ordered it, unless the "
        f"cell says otherwise. {HIDDEN.capitalize()}: fewer than 10 people have it, or lack it."
    )
    return Table("Availability by site, % of samples", ("site", "samples", *run.modalities), rows, note=note)


def _site_cell(site: dict[str, Any], modality: str) -> str:
    absent = site.get("absent", {}).get(modality, {})
    others = (f"{_words(reason)} {_bare(absent[reason])}" for reason in REASONS if reason in absent)
    return "; ".join([_bare(site["observed"].get(modality)), *(o for o in others if not o.startswith("not ordered"))])


def _told(value: float | None) -> str:
    return HIDDEN if value is None else share(value)


def _bare(value: float | None) -> str:
    return _told(value).removesuffix("\u00a0%")


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def pattern_table(run: Run) -> Table:
    """The most frequent patterns, and why what is absent in them is."""
    rows = tuple(
        (pattern(r["modalities"], run.modalities), count(r["samples"]), _why(r, run.modalities))
        for r in run.findings["cohort"]["patterns"]
    )
    note = "Of train; patterns of at least 10 people, most frequent first, at most 40. In brackets: % of their samples."
    header = ("observed modalities", "samples", "why the others are absent")
    return Table("Availability patterns", header, rows, note=note)


def _why(row: dict[str, Any], modalities: Sequence[str]) -> str:
    absent = row.get("absent", {})
    told = []
    for name in (m for m in modalities if m in absent):
        reasons = ", ".join(f"{_words(r)} {_bare(absent[name][r])}" for r in REASONS if r in absent[name])
        told.append(f"{name} ({reasons})")
    return "; ".join(told) or "–"
