"""From a raw extract to a record store: locked, resumable, atomic, the same bytes from the same input."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import mmnar_lightning
from mmnar_lightning import _terminal
from mmnar_lightning.extract.closing import closing_table
from mmnar_lightning.extract.extraction import Counts, Elements, Extraction, Extractor
from mmnar_lightning.extract.parts import TABLES, Parts, workplace
from mmnar_lightning.extract.raw import Ledger, RawFile, locate
from mmnar_lightning.extract.scan import LEDGER, Table, cached, empty
from mmnar_lightning.extract.tables import ExtractError, TableSpec, digest

log = logging.getLogger(__name__)

# change with every change of what this room makes of the same rows
EXTRACT_VERSION = "1"
READERS = 2


def prepare(extractor: Extractor, root: Path | str | None, store: Path | str, progress: bool = True) -> Path:
    """Make the record store of an extract, or find the one that was made before.

    Tables are found, checked and cached; the extractor turns them into samples and elements; the store is written
    beside its final place and renamed. A process that is killed at any moment leaves nothing that could be taken for a
    store, and the next run goes on after the last finished table or modality. Others that prepare in the same folder
    wait.

    Args:
        extractor: The data source.
        root: Folder of the raw extract; None looks for a finished store of the same dataset, cohort and options.
        store: Folder that stores are kept in; made, private to the user, where it is absent.
        progress: Whether to show progress (a bar on a terminal, else log lines) and the closing table, on stderr.

    Returns:
        The store's folder.

    Raises:
        ExtractError: If the extract is bad; names all that is wrong with it. Then nothing was written.
        ValueError: If the extractor's result is no record store.
    """
    store = Path(store).expanduser()
    if root is None:
        return find_store(store, extractor.dataset, extractor.cohort, extractor.options())
    root = Path(root).expanduser()
    specs = _specs(extractor)
    raws = locate(root, specs)
    if any(store.glob(f"{extractor.dataset}-{extractor.cohort}-*")):
        ledger = Ledger(store / TABLES / LEDGER)
        found = _finished(store, extractor, _fingerprint(extractor, specs, _sources(raws, ledger)))
        if found is not None:
            return found
    with workplace(store) as tables, _steps(len(specs) + 3, progress) as step:
        step("hashing the raw files")
        ledger = Ledger(tables / LEDGER)
        sources = _sources(raws, ledger)
        fingerprint = _fingerprint(extractor, specs, sources)
        found = _finished(store, extractor, fingerprint)
        if found is None:
            counts = Counts()
            frames = _tables(specs, raws, sources, tables, counts, step)
            ledger.save()
            found = _build(extractor, frames, counts, sources, fingerprint, store, step)
    if progress:
        _show(found)
    return found


def find_store(parent: Path | str, dataset: str, cohort: str, options: Mapping[str, Any]) -> Path:
    """Find the store of a dataset, cohort and options, where the raw extract is not at hand.

    Args:
        parent: Folder that stores are kept in.
        dataset: Name of the source.
        cohort: Name of the cohort.
        options: The extractor's options.

    Raises:
        ExtractError: If there is none, or more than one (made from different extracts); lists those there are.
        ValueError: If the store is not whole, or a file of it is another store's.
    """
    parent = Path(parent).expanduser()
    wanted = json.loads(json.dumps(dict(options)))
    there = sorted(path.parent for path in parent.glob(f"{dataset}-{cohort}-*/manifest.json"))
    matching = [path for path in there if _manifest(path).get("options") == wanted]
    if len(matching) == 1:
        return _opened(matching[0])
    if matching:
        names = ", ".join(path.name for path in matching)
        raise ExtractError(
            f"{parent}: {len(matching)} stores fit ({names}); give the extract's folder (root) to choose"
        )
    hint = "none at all" if not there else f"{', '.join(path.name for path in there)}, with other options"
    raise ExtractError(
        f"{parent}: no store of {dataset} {cohort} with these options (there is {hint}); "
        "give the extract's folder (root) to make it"
    )


def _manifest(store: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    except ValueError:
        raise ExtractError(
            f"{store}: its manifest.json can't be read; remove the folder and prepare it again"
        ) from None
    return manifest


def _specs(extractor: Extractor) -> list[TableSpec]:
    specs = list(extractor.tables())
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"extractor {extractor.dataset}: table name {', '.join(twice)} stands twice")
    return specs


def _sources(raws: Mapping[str, RawFile | None], ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Path, size and hash of every raw file, by table."""
    found = {name: raw for name, raw in raws.items() if raw is not None}
    size = {raw.path: raw.path.stat().st_size for raw in found.values()}
    # two at a time, the largest first; hashing releases Python's lock
    paths = sorted(size, key=lambda path: (-size[path], path))
    with ThreadPoolExecutor(2) as pool:
        sha256 = dict(zip(paths, pool.map(ledger.sha256, paths), strict=True))
    return {
        name: {"file": raw.relative, "bytes": size[raw.path], "sha256": sha256[raw.path]} for name, raw in found.items()
    }


def _fingerprint(extractor: Extractor, specs: Sequence[TableSpec], sources: Mapping[str, Mapping[str, Any]]) -> str:
    options = extractor.options()
    try:
        json.dumps(options)
    except TypeError:
        raise ValueError(f"extractor {extractor.dataset}: its options must be JSON types") from None
    return digest(
        {
            "dataset": extractor.dataset,
            "cohort": extractor.cohort,
            "options": options,
            "version": extractor.version,
            "extract": EXTRACT_VERSION,
            "tables": [spec.describe() for spec in specs],
            "sources": sorted([s["file"], s["bytes"], s["sha256"]] for s in sources.values()),
        }
    )


def _store_path(store: Path, extractor: Extractor, fingerprint: str) -> Path:
    # records brings torch: not before it is needed
    from mmnar_lightning.records import store_name

    return store / store_name(extractor.dataset, extractor.cohort, fingerprint)


def _opened(store: Path) -> Path:
    """The store, after opening it: that tells whether a file is missing, cut off, or another store's."""
    from mmnar_lightning.records import RecordStore

    RecordStore(store)
    return store


def _finished(store: Path, extractor: Extractor, fingerprint: str) -> Path | None:
    path = _store_path(store, extractor, fingerprint)
    if not (path / "manifest.json").is_file():
        return None
    Parts(store / f".building-{path.name}").remove()
    return _opened(path)


def _tables(
    specs: Sequence[TableSpec],
    raws: Mapping[str, RawFile | None],
    sources: Mapping[str, Mapping[str, Any]],
    cache: Path,
    counts: Counts,
    step: Step,
) -> dict[str, pl.LazyFrame]:
    """Check and cache all tables.

    Raises:
        ExtractError: With the problems of all tables.
    """
    there = [(spec, raw) for spec in specs if (raw := raws[spec.name]) is not None]
    there.sort(key=lambda pair: pair[1].path.stat().st_size, reverse=True)
    tables: dict[str, Table] = {}
    problems: dict[str, tuple[str, ...]] = {}
    # decompressing takes one core, so that two tables are read at once, the largest first
    with ThreadPoolExecutor(READERS) as readers:
        reading = [readers.submit(cached, raw, spec, cache, sources[spec.name]["sha256"]) for spec, raw in there]
        for (spec, raw), made in zip(there, reading, strict=True):
            step(f"reading {raw.relative}")
            try:
                tables[spec.name] = made.result()
            except ExtractError as error:
                problems[spec.name] = error.problems
    if problems:
        raise ExtractError(*(problem for spec in specs for problem in problems.get(spec.name, ())))
    for spec in specs:
        named = spec.counted_as or spec.name
        if spec.name not in tables:
            step(f"{spec.file}: absent")
            counts.add(named, "optional table is absent", 1)
            continue
        counts.add(named, "rows read", tables[spec.name].rows)
        if spec.only is not None:
            counts.add(named, spec.only.others, tables[spec.name].rows - tables[spec.name].kept)
    return {spec.name: tables[spec.name].frame if spec.name in tables else empty(spec) for spec in specs}


def _build(
    extractor: Extractor,
    frames: Mapping[str, pl.LazyFrame],
    counts: Counts,
    sources: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    store: Path,
    step: Step,
) -> Path:
    from mmnar_lightning.records import write_store

    parts = Parts(store / f".building-{_store_path(store, extractor, fingerprint).name}")
    step("cohort, prediction times, labels")
    made = extractor.extract(frames, counts)
    if made.samples.height == 0:
        lost = [f"{count} {table} {what}" for (table, what), count in counts.items() if count and "excluded" in what]
        raise ExtractError(f"no sample is left: {'; '.join(lost) or 'the tables hold none'}")
    elements = {}
    for modality in made.schema.names:
        if modality not in made.elements:
            raise ValueError(f"extractor {extractor.dataset}: made no elements for modality {modality!r}")
        step(f"modality {modality}", more=True)
        elements[modality] = _elements(made.elements[modality], modality, parts, counts)
    _count_labels(made, counts)
    manifest = {
        "options": extractor.options(),
        "versions": {
            "mmnar_lightning": mmnar_lightning.__version__,
            "extract": EXTRACT_VERSION,
            "extractor": extractor.version,
            "polars": pl.__version__,
        },
        "sources": sorted(sources.values(), key=lambda source: str(source["file"])),
        **({} if (notice := getattr(extractor, "notice", None)) is None else {"notice": notice}),
        "tables": _columns_read(extractor.tables()),
        "data_use": getattr(extractor, "data_use", "Derived from people's records: keep it private."),
        "counts": counts.to_list(),
    }
    step("writing the store")
    path = write_store(
        store, extractor.dataset, extractor.cohort, fingerprint, made.schema, made.samples, elements, manifest
    )
    parts.remove()
    return path


def _columns_read(specs: Sequence[TableSpec]) -> dict[str, list[str]]:
    """Columns that are read of each file, by whichever specs."""
    found: dict[str, dict[str, None]] = {}
    for spec in specs:
        found.setdefault(spec.file, {}).update(dict.fromkeys(spec.columns))
    return {file: list(columns) for file, columns in found.items()}


def _elements(given: Elements, modality: str, parts: Parts, counts: Counts) -> pl.DataFrame:
    return given if isinstance(given, pl.DataFrame) else parts.step(modality, given, counts)


def _count_labels(made: Extraction, counts: Counts) -> None:
    counts.add("samples", "kept", made.samples.height)
    for task in made.schema.task_names:
        label = made.samples.get_column(f"label/{task}", default=None)
        if label is not None:
            counts.add(f"label/{task}", "positive", int(label.sum() or 0))
            counts.add(f"label/{task}", "unknown", label.null_count())


class Step:
    """Says what is being done: a bar on a terminal, else log lines."""

    def __init__(self, total: int, bar: Progress | None) -> None:
        self._bar = bar
        self._total = total
        self._task = None if bar is None else bar.add_task("", total=total)
        self._done = -1

    def __call__(self, what: str, more: bool = False) -> None:
        """Begin the next step; `more` says that it wasn't foreseen in the total."""
        self._done += 1
        self._total += more
        if self._bar is None or self._task is None:
            log.info("[%d/%d] %s", self._done + 1, self._total, what)
        else:
            self._bar.update(self._task, description=what, completed=self._done, total=self._total)


@contextmanager
def _steps(total: int, progress: bool) -> Iterator[Step]:
    if not (progress and _terminal.shows_bars()):
        yield Step(total, None)
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_terminal.console(stderr=True), transient=True) as bar:
        yield Step(total, bar)


def _show(path: Path) -> None:
    from mmnar_lightning.records import RecordStore

    opened = RecordStore(path)
    table = closing_table(path.name, opened.manifest["counts"], opened.samples)
    _terminal.show(table)
