"""What is installed, what computes, and what a folder of data is: mmnar doctor --root data/mimic-iv"""

from __future__ import annotations

import shlex
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmnar_lightning import _terminal

if TYPE_CHECKING:
    from rich.text import Text

    from mmnar_lightning.commands._machine import Package
    from mmnar_lightning.extract.recognised import Recognised

DESCRIPTION = f"""{__doc__}

Reads names, headers and small tables of a folder, and changes nothing. The exit status is 1 where something is missing
that is needed: a package, or what a store of the folder is made from."""
# folders that are looked into where the one that is given holds no data itself, and how far down
MOST_FOLDERS, DEEPEST = 300, 4
GIB = 2**30


def run(arguments: Sequence[str]) -> int:
    """Say what there is; returns 1 where something needed is missing.

    Raises:
        ValueError: If an option is wrong.
    """
    from jsonargparse import ArgumentParser

    _terminal.begin()
    parser = ArgumentParser(prog="mmnar doctor", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--root", type=Path | None, default=None, help="Folder of data to look at: MIMIC-IV, eICU, …")
    try:
        root = parser.parse_args(list(arguments)).root
    except ArgumentError as error:
        raise ValueError(f"{error} (mmnar doctor --help lists the options)") from error
    missing = [*_versions(), *_plugins()]
    _devices()
    _extras()
    _folders()
    if root is not None:
        missing += _root(root.expanduser())
    for problem in missing:
        _terminal.result(f"missing: {problem}")
    if not missing:
        _terminal.result("nothing that is needed is missing")
    return 1 if missing else 0


def _versions() -> Iterator[str]:
    """Show versions of this package and of what it needs."""
    import platform

    from mmnar_lightning import __version__
    from mmnar_lightning.commands._machine import DISTRIBUTION, installed, packages

    table = _terminal.table("versions", "package", "version", "needed", "")
    _terminal.add_row(
        table,
        DISTRIBUTION,
        __version__,
        "",
        _terminal.marked("ok", True) if installed(DISTRIBUTION) else _terminal.marked("not installed", None),
    )
    _terminal.add_row(
        table, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", "≥3.11", ""
    )
    for package in packages():
        _terminal.add_row(table, package.name, package.found or "–", package.bound, _fit(package))
        if not package.fits:
            yield f"package {package.name}: pip install '{package.name}{package.bound}'"
    _terminal.result(table)


def _fit(package: Package) -> Text:
    if package.fits:
        return _terminal.marked("ok", True)
    return _terminal.marked("missing" if package.found is None else "another version is needed", False)


def _plugins() -> Iterator[str]:
    """Show which data sources are installed; one that can't be imported is a problem."""
    from mmnar_lightning.commands._config import plugins

    kinds = ("datamodule", "simulator", "recogniser")
    found = {kind: plugins(kind) for kind in kinds}
    table = _terminal.table("data sources (plugins)", "name", "trains", "simulates", "is recognised")
    for name in sorted({name for points in found.values() for name in points}):
        cells: list[str | Text] = []
        for kind in kinds:
            point = found[kind].get(name)
            if point is None:
                cells.append("–")
                continue
            try:
                point.load()
            except Exception as error:  # whatever somebody else's plugin raises
                cells.append(_terminal.marked("broken", False))
                yield f"plugin {point.value}: cannot be imported ({type(error).__name__}); install it again"
            else:
                cells.append(_terminal.marked("yes", True))
        _terminal.add_row(table, name, *cells)
    _terminal.result(table)


def _devices() -> None:
    from mmnar_lightning.commands._machine import devices

    found = devices()
    table = _terminal.table("devices", "device", "what", "memory", "bf16")
    for device in found:
        _terminal.add_row(table, device.name, device.what, device.memory, device.bf16)
    _terminal.result(table)
    if len(found) == 1:
        _terminal.result("no accelerator: --trainer.accelerator gpu or mps would fail; auto takes the processor")


def _extras() -> None:
    from mmnar_lightning.commands._machine import DISTRIBUTION, EXTRAS, extras

    table = _terminal.table("optional extras", "extra", "", "what for")
    for name, needed in extras().items():
        absent = [package.name for package in needed if not package.fits]
        if not absent:
            _terminal.add_row(table, name, _terminal.marked("there", True), EXTRAS.get(name, ""))
        else:
            install = f"pip install '{DISTRIBUTION}[{name}]' (brings {', '.join(absent)})"
            _terminal.add_row(
                table, name, _terminal.marked("not there", None), f"{EXTRAS.get(name, '')}; {install}".lstrip("; ")
            )
    _terminal.result(table)


def _folders() -> None:
    from mmnar_lightning.commands._machine import folders

    table = _terminal.table("folders", "folder", "what is kept there", "can be written to", "free")
    for folder in folders():
        state = _terminal.marked("yes", True) if folder.writable else _terminal.marked("no: choose another one", None)
        _terminal.add_row(table, str(folder.path), folder.what, state, f"{folder.free / GIB:.1f} GiB")
    _terminal.result(table)


def _root(root: Path) -> Iterator[str]:
    """Show what a folder is, and what comes next."""
    if not root.is_dir():
        yield f"{root}: {'is a file, not a folder' if root.exists() else 'no such folder'}; give the folder of the data"
        return
    found = _recognised(root)
    if not found:
        inside = _recognised_below(root)
        if inside:
            places = "; ".join(f"--root {shlex.quote(str(place))} ({name})" for place, name in inside)
            yield f"{root}: holds no data itself, but folders in it do: give {places}"
        else:
            yield (
                f"{root}: is none of what the installed plugins read; give the folder with hosp and icu (MIMIC-IV), "
                "with patient.csv.gz and the other tables (eICU), data/ and metadata/ (MEDS), "
                "or with a schema.yaml (own tables)"
            )
        return
    for one in found:
        _show(root, one)
        yield from one.problems


def _show(root: Path, one: Recognised) -> None:
    told = " ".join(filter(None, [one.dataset, one.version or "", f"({one.edition})" if one.edition else ""]))
    table = _terminal.table(f"{root}: {told}{', ' if one.size else ''}{one.size}", "part", "tables", "where", "")
    for part in one.parts:
        # what is optional has a note
        good = True if part.found == part.of else None if part.note else False
        where = "–" if part.folder is None else str(part.folder)
        _terminal.add_row(table, part.name, _terminal.marked(f"{part.found} of {part.of}", good), where, part.note)
    _terminal.result(table)
    if one.command and not one.problems:
        _terminal.result(f"next: {shlex.join(one.command)}")
        _terminal.result(f"then: {shlex.join([*one.command[:1], 'fit', *one.command[2:]])}")


def _recognised(root: Path) -> list[Recognised]:
    from mmnar_lightning.commands._config import plugins

    found = []
    for point in plugins("recogniser").values():
        try:
            one = point.load()(root)
        except PermissionError:
            continue
        if one is not None:
            found.append(one)
    return found


def _recognised_below(root: Path) -> list[tuple[Path, str]]:
    """Folders below one that are recognised, the nearest first; not far down, and not among thousands."""
    found: list[tuple[Path, str]] = []
    level, looked = [root], 0
    for _ in range(DEEPEST):
        below = []
        for folder in level:
            try:
                inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
            except PermissionError:
                continue
            for path in inside:
                looked += 1
                if looked > MOST_FOLDERS:
                    return found
                if ones := _recognised(path):
                    found += [(path, one.dataset) for one in ones]
                else:
                    below.append(path)
        level = below
        if found:
            break
    return found
