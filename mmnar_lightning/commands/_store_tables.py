"""The manifest of a record store, as tables for people; no number in them comes from fewer than 10 people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from mmnar_lightning import _terminal
from mmnar_lightning.commands._stores import manifest_of
from mmnar_lightning.records import RecordStore

if TYPE_CHECKING:
    from rich.table import Table

SMALL = 10
UNITS = ("B", "kB", "MB", "GB", "TB")
# how a manifest calls what was left out of the cohort
EXCLUDED = "excluded: "


def tables(store: RecordStore, *, hashes: bool = False) -> Iterator[Table]:
    """Describe a store.

    Args:
        store: Which one.
        hashes: Whether to show hashes: of the raw files, and the whole fingerprint.
    """
    yield _overview(store, hashes)
    yield _tasks(store)
    yield _modalities(store)
    counts = store.manifest.get("counts", [])
    if counts:
        yield _cohort(store, counts)
    yield _sources(store.manifest, hashes)


def listing(folder: Path, stores: Sequence[Path]) -> Table:
    """List the stores of a folder."""
    right = ("samples", "patients", "modalities", "tasks", "size")
    table = _terminal.table(str(folder), "store", *right, right=right)
    for path in stores:
        manifest = manifest_of(path)
        if manifest is None or not {"samples", "patients", "schema"} <= manifest.keys():
            _terminal.add_row(table, path.name, *["not a whole store"] + [""] * 4)
            continue
        small = 0 < manifest["patients"] < SMALL
        numbers = [_count(manifest[name], small) for name in ("samples", "patients")]
        numbers += [str(len(manifest["schema"][name])) for name in ("modalities", "tasks")]
        _terminal.add_row(table, path.name, *numbers, _size(_bytes_in(path)))
    return table


def derived(store: RecordStore, *, check: bool = False) -> tuple[Table, list[str]]:
    """What was derived from a store and lies beside it (vectors, token ids, splits), and which of it is not whole.

    Args:
        store: Which one.
        check: Whether to compare every file with its hash, too.
    """
    parent = store.path.parent / f"{store.path.name}.derived"
    table = _terminal.table("derived from it, beside it", "folder", "what from", "size", "", right=("size",))
    damaged = []
    for folder in sorted(p for p in parent.glob("*") if p.is_dir() and not p.name.startswith(".")):
        manifest = manifest_of(folder)
        # splits and fitted schemas have no manifest, and shards that are being written have none yet
        facts = {} if manifest is None else manifest
        whole = all(_is_whole(folder / name, told, check) for name, told in facts.get("files", {}).items())
        if not whole:
            damaged.append(folder.name)
        what = facts.get("described", {})
        words = "splits, fitted schema" if folder.name.startswith("splits-") else ""
        words = words or ", ".join(
            str(what[key]) for key in ("modality", "model", "dtype") if what.get(key) is not None
        )
        state = _terminal.marked("whole" if whole else "not whole", whole) if manifest else ""
        _terminal.add_row(table, folder.name, words, _size(_bytes_in(folder)), state)
    return table, damaged


def _is_whole(path: Path, told: Mapping[str, Any], check: bool) -> bool:
    if not path.is_file() or path.stat().st_size != told["bytes"]:
        return False
    if not check:
        return True
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == told["sha256"])


def _overview(store: RecordStore, hashes: bool) -> Table:
    manifest = store.manifest
    table = _terminal.table(store.path.name, "", "")
    table.show_header = False
    small = 0 < manifest["patients"] < SMALL
    sites = _sites(store.samples)
    versions = manifest.get("versions", {})
    options = {k: v for k, v in manifest.get("options", {}).items() if v is not None and not isinstance(v, dict)}
    rows = {
        "dataset": manifest["dataset"],
        "cohort": manifest["cohort"],
        "notice": manifest.get("notice"),
        "samples": _count(manifest["samples"], small),
        "patients": _count(manifest["patients"], small),
        "sites": sites,
        "size": f"{_size(_bytes_in(store.path))} in {store.path.absolute().parent}",
        "fingerprint": store.fingerprint if hashes else store.fingerprint[:16],
        "made by": ", ".join(f"{name} {value}" for name, value in versions.items()) or None,
        "options": ", ".join(f"{name}: {json.dumps(value)}" for name, value in options.items()) or None,
        "terms": manifest.get("data_use"),
    }
    for name, value in rows.items():
        if value:
            _terminal.add_row(table, name, str(value))
    return table


def _sites(samples: pl.DataFrame) -> str | None:
    if "site" not in samples.columns or samples["site"].null_count() == samples.height:
        return None
    people = samples.group_by("site").agg(people=pl.col("patient").n_unique())["people"]
    return f"{len(people):,}, of which {int((people >= SMALL).sum()):,} with at least {SMALL} people"


def _tasks(store: RecordStore) -> Table:
    right = ("known", "positive", "rate")
    table = _terminal.table("tasks", "task", "horizon", "description", *right, right=right, whole=("task",))
    for task in store.schema.tasks:
        label = pl.col(f"label/{task.name}")
        known, positive = _share(store.samples, label.is_not_null(), None), _share(store.samples, label, label)
        only = f" (only where {task.parent})" if task.parent else ""
        # beside a finer share the number of those who are unknown could be worked out
        rate = positive[1] if known[1] else _coarse(positive[1])
        _terminal.add_row(table, task.name, task.horizon, f"{task.description}{only}", known[0], positive[0], rate)
    return table


def _modalities(store: RecordStore) -> Table:
    right = ("items", "observed", "share", "elements", "size")
    table = _terminal.table("modalities", "modality", "kind", *right, right=right)
    files = store.manifest["files"]
    for modality in store.schema.modalities:
        name = modality.name
        file = f"modality/{name}.arrow"
        items = len(store.codes(name)) if modality.kind == "codes" else len(modality.items)
        observed = pl.col(f"observed/{name}")
        elements = store.samples.select((pl.col(f"stop/{name}") - pl.col(f"start/{name}")).sum()).item()
        counted = _share(store.samples, observed, pl.lit(True))
        size = sum(files[f]["bytes"] for f in (file, f"modality/{name}.items.arrow") if f in files)
        # how many elements few people have is theirs, too
        few = counted[0].startswith("<")
        what = f"{items:,}" if items else "–"
        _terminal.add_row(table, name, modality.kind, what, *counted, "–" if few else f"{elements:,}", _size(size))
    return table


def _share(samples: pl.DataFrame, true: pl.Expr, known: pl.Expr | None) -> tuple[str, str]:
    """How many samples something holds for, and their share, where neither side has fewer than ten people.

    Args:
        samples: Rows with ``patient``.
        true: Whether it holds; null where that isn't known.
        known: Null where it isn't known; None for something that is always known.
    """
    rows = samples.select("patient", true=true)
    if known is not None:
        rows = rows.drop_nulls()
    people = {held: rows.filter(pl.col("true") == held)["patient"].n_unique() for held in (True, False)}
    count, of = int(rows["true"].sum() or 0), rows.height
    if not of:
        return "none known", ""
    if 0 < people[True] < SMALL:
        return f"< {SMALL}", ""
    if 0 < people[False] < SMALL:
        return f"all but < {SMALL}", ""
    return f"{count:,}", f"{count / of:.1%}"


def _coarse(share: str) -> str:
    return f"{float(share.rstrip('%')):.0f}%" if share else ""


def _cohort(store: RecordStore, counts: Sequence[Sequence[Any]]) -> Table:
    table = _terminal.table("who was left out, in this order", "of", "because", "rows", right=("rows",))
    for name, what, rows in counts:
        if str(what).startswith(EXCLUDED):
            _terminal.add_row(table, str(name), str(what).removeprefix(EXCLUDED), _count(rows))
    small = 0 < store.manifest["patients"] < SMALL
    table.add_section()
    _terminal.add_row(table, "samples", "kept", _count(store.manifest["samples"], small))
    return table


def _sources(manifest: Mapping[str, Any], hashes: bool) -> Table:
    columns = ["file", "size", *(["sha256"] if hashes else [])]
    # a file may be read by two specs
    sources = list({source["file"]: source for source in manifest.get("sources", [])}.values())
    title = f"made from {len(sources)} files, {_size(sum(source['bytes'] for source in sources))}"
    table = _terminal.table(title, *columns, right=("size",))
    for source in sources:
        row = [str(source["file"]), _size(source["bytes"]), *([str(source["sha256"])] if hashes else [])]
        _terminal.add_row(table, *row)
    return table


def _count(count: int, small: bool = False) -> str:
    return f"< {SMALL}" if small or 0 < count < SMALL else f"{count:,}"


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    size, unit = float(count), UNITS[0]
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
