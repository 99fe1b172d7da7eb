"""Image files: opened once at prepare, since an unreadable film is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 4


def readable(path: Path) -> bool:
    """Whether a file can be decoded as an image: wholly, since a truncated film has a sound header."""
    from PIL import Image  # only where there are images

    try:
        with Image.open(path) as image:
            image.load()
    # PNG decoding reports broken files as SyntaxError
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def all_readable(paths: list[Path]) -> list[bool]:
    """`readable` of each file, in order."""
    with ThreadPoolExecutor(THREADS) as pool:  # decoding releases Python's lock
        return list(pool.map(readable, paths))


def sizes(paths: list[Path]) -> list[int]:
    """Bytes of each file, −1 where there is none: a film that is added or replaced makes another store."""
    return [path.stat().st_size if path.is_file() else -1 for path in paths]
