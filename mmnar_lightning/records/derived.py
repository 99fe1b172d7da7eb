"""Data derived from a record store (token ids, embeddings), kept beside it and keyed by everything they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmnar_lightning.records.store import RecordStore, StoreError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def derived_folder(store: RecordStore, name: str, described: Mapping[str, Any]) -> Path:
    """Where data derived from a store belong: `<store>.derived/<name>-<key>`.

    Args:
        store: What they are derived from.
        name: What they are, a word for people.
        described: Everything they depend on besides the store, as plain types: modality, model, revision, hash of the
            weights, preprocessing, format version.

    Returns:
        The folder; its key is the hash of the store's fingerprint and of `described`.
    """
    text = json.dumps([store.fingerprint, described], sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return store.path.parent / f"{store.path.name}.derived" / f"{name}-{key}"


def find_derived(store: RecordStore, name: str, described: Mapping[str, Any]) -> Path | None:
    """Return the folder of derived data; None where no one has written them.

    Args:
        store: What they are derived from.
        name: What they are, a word for people.
        described: See `derived_folder`.

    Raises:
        StoreError: If the folder is incomplete; says which file.
    """
    folder = derived_folder(store, name, described)
    return _checked(folder) if folder.exists() else None


def derive(store: RecordStore, name: str, described: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Return the folder of derived data, writing it first where it is not there: one process writes, others wait.

    Args:
        store: What they are derived from.
        name: What they are, a word for people.
        described: See `derived_folder`; kept in the manifest.
        write: Writes the files into the empty folder it is given. It becomes the derived data when it is complete.

    Raises:
        StoreError: If the folder is incomplete; says which file.
    """
    folder = derived_folder(store, name, described)
    if folder.exists():
        return _checked(folder)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that writes %s", folder.name)
        lock.acquire()
    try:
        if not folder.exists():
            _write(store, folder, described, write)
    finally:
        lock.release()
    return _checked(folder)


def _write(store: RecordStore, folder: Path, described: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    # whoever holds the lock is alone: what lies here is left over from killed runs
    for left in folder.parent.glob(f".{folder.name}.writing-*"):
        shutil.rmtree(left)
    parts = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        write(parts)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in parts.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            files[str(path.relative_to(parts))] = {"bytes": path.stat().st_size, "sha256": digest}
        manifest = {"store": store.fingerprint, "described": dict(described), "files": files}
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (parts / MANIFEST).write_text(text, encoding="utf-8")
        parts.rename(folder)
    finally:
        # gone already where it was renamed
        shutil.rmtree(parts, ignore_errors=True)


def _checked(folder: Path) -> Path:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder.name}: no readable {MANIFEST}; remove the folder to have it made anew") from error
    for name, facts in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise StoreError(
                f"{folder.name}: {name} is missing or not of the size its manifest states; remove the folder to have "
                "it made anew"
            )
    return folder
