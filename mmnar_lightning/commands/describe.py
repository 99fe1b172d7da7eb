"""What a record store holds, and whether it is whole: mmnar describe stores/eicu-landmark-0123456789abcdef"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

from mmnar_lightning import _terminal

DESCRIPTION = f"""{__doc__}

Takes the folder of a store, a folder of stores (and lists them), or the folder of a run (and describes its store).
Counts that come from fewer than 10 people are not told."""


def run(arguments: Sequence[str]) -> int:
    """Describe a store, the stores of a folder, or the store of a run.

    Raises:
        ValueError: If an option is wrong, or the folder is none of these.
        StoreError: If the store is not whole; says which file.
    """
    from jsonargparse import ArgumentParser

    _terminal.begin()
    parser = ArgumentParser(prog="mmnar describe", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("folder", type=Path, metavar="STORE", help="Folder of a store, of stores, or of a run")
    parser.add_argument("--hashes", action="store_true", help="Show the hashes of the files it was made from, too")
    parser.add_argument("--check", action="store_true", help="Compare every file of it with its hash (reads all of it)")
    try:
        options = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(f"{error} (mmnar describe --help lists the options)") from error
    from mmnar_lightning.commands._store_tables import derived, listing, tables
    from mmnar_lightning.commands._stores import kept_in, store_of_run
    from mmnar_lightning.records import RecordStore

    folder = options.folder.expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {what}; give that of a store, of stores, or of a run")
    if (folder / "config.yaml").is_file():
        folder = store_of_run(folder)
        _terminal.show(f"the run's store: {folder}")
    if not (folder / "manifest.json").is_file():
        stores = kept_in(folder)
        if not stores:
            raise ValueError(f"{folder}: neither a store (it has no manifest.json) nor a folder of stores, nor a run")
        _terminal.result(listing(folder, stores))
        return 0
    store = RecordStore(folder)
    for table in tables(store, hashes=options.hashes):
        _terminal.result(table)
    beside, damaged = derived(store, check=options.check)
    if beside.row_count:
        _terminal.result(beside)
    if options.check:
        with _terminal.working("comparing every file with its hash"):
            store.verify()
    if damaged:
        raise ValueError(f"{folder.name}.derived: {', '.join(damaged)} is not whole; remove it to have it made anew")
    how = "size and content" if options.check else "size"
    more = "" if options.check else " (--check compares the content, too)"
    _terminal.result(f"all files are there, with the {how} that the manifest states{more}")
    return 0
