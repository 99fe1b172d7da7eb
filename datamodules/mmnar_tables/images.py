"""Image files: opened once at prepare, since an unreadable film is none."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 4
# What the reader of films takes (`mmnar_lightning.encoders.decoding`; a test holds the two together).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
MAX_PIXELS = 50_000_000


def readable(path: Path) -> bool:
    """Whether a file can be decoded as an image: wholly, since a truncated film has a sound header.

    One of more than 50 million pixels is not, for training would refuse it; but for a JPEG that can be decoded at a
    reduced scale, which a progressive one cannot.
    """
    from PIL import Image, JpegImagePlugin  # only where there are images

    try:
        with Image.open(path, formats=FORMATS) as image:
            if isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive"):
                image.draft(image.mode, (1, 1))  # an eighth of the size: all bytes are read, fewer pixels made
            if image.width * image.height > MAX_PIXELS:
                return False
            image.load()
    except MemoryError:
        raise
    except Exception:  # decoders raise what they like over broken bytes: OSError, SyntaxError, struct.error …
        return False
    return True


def all_readable(paths: list[Path]) -> list[bool]:
    """`readable` of each file, in order."""
    from PIL import Image

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:  # decoding releases Python's lock
        # `MAX_PIXELS` says what is too large
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return list(pool.map(readable, paths))


def sizes(paths: list[Path]) -> list[int]:
    """Bytes of each file, −1 where there is none: a film that is added or replaced makes another store."""
    return [path.stat().st_size if path.is_file() else -1 for path in paths]
