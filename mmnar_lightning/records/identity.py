"""Names for patients that leave the store: keyed hashes, since a plain hash of an id can be enumerated."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

KEY = ".patient-key"


def patient_key(folder: Path) -> bytes:
    """Return the secret key of a folder of stores, made at first use and readable by its owner only.

    Args:
        folder: Folder that stores are kept in.

    Raises:
        ValueError: If the key file is damaged.
    """
    path = folder / KEY
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes the file readable by its owner only before there is anything in it
        handle, name = tempfile.mkstemp(prefix=f"{KEY}.", dir=folder)
        parts = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            # a link fails where another process was first, so that all use the same key
            os.link(parts, path)
        except FileExistsError:
            return patient_key(folder)
        finally:
            parts.unlink()
    key = path.read_bytes()
    if len(key) != 32:
        raise ValueError(f"{path}: not a key of 32 bytes; remove it to have a new one made")
    return key


def patient_hashes(patients: Iterable[str], key: bytes) -> list[str]:
    """Return a 16-digit keyed hash for each patient id."""
    return [hashlib.blake2b(p.encode(), key=key, digest_size=8).hexdigest() for p in patients]
