"""From image files to bytes of one size: opened where batches are gathered, in bounded memory, whatever their mode."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from mmnar_lightning.encoders.nearest import nearest
from mmnar_lightning.records import Elements

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
# what Pillow may take a file for: no format that another program would have to read
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
# a JPEG is decoded at a reduced scale at which it is still this many times larger than what it is resized to
GAP = 2
ORIENTATION = 0x0112
# rows of a 16-bit film scaled at a time
STRIP = 256
# films named in an error
SHOWN = 5
# without one readable film among that many, the folder is gone rather than the films
SUSPICIOUS = 10


class UnreadableError(ValueError):
    """Films can't be read; names the modality, how many, and their rows in the store's file, never a path."""

    def __init__(self, message: str) -> None:
        # a loader's worker hands on a whole traceback as the message, with this at its end
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class TooLargeError(ValueError):
    """An image has more pixels than may be decoded."""


@dataclass(frozen=True)
class FilmReader:
    """Opens films: strings in, uint8 [E, C, H, W] out, by timm's transform for evaluation without its normalisation.

    Only the tensor that is returned and one decoded film are held at a time. Large JPEGs are decoded at 1/2, 1/4 or
    1/8 of their scale (by libjpeg), so long as they stay twice as large as what they are resized to.

    Every mode becomes 8 bits the same way each time: 16- and 32-bit and float films are scaled from their own least and
    greatest finite value to 0 … 255 (12-bit films are stored in 16 bits, so the type's range would leave them black);
    1-bit is black and white; palettes and CMYK become RGB; transparency is laid over black; colour becomes grey by its
    luma (ITU-R 601), grey becomes colour by repetition; the EXIF orientation is applied; of several frames the first is
    taken; colour profiles are not applied. 16-bit colour loses its low bytes (Pillow reads no more).

    Args:
        modality: Name in messages.
        size: C (1 or 3), H and W.
        crop_pct: H over the size a film is resized to before its centre is cut out.
        crop_mode: ``center``, ``squash`` or ``border``, as in timm.
        interpolation: ``bilinear``, ``bicubic`` …
        mean: C numbers of 0 to 1, the colour of borders; None is black.
        most: Films of a sample that are opened, those nearest to the prediction time; None opens all.
        unreadable: ``error``, or ``count``: left out, as if it were not there, and counted.
        max_pixels: Most pixels decoded of a film.
    """

    modality: str
    size: tuple[int, int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...] | None = None
    most: int | None = None
    unreadable: Literal["error", "count"] = "error"
    max_pixels: int = 50_000_000

    def __call__(self, elements: Elements) -> Elements:
        """Open the films of a batch.

        Raises:
            UnreadableError: If a film can't be read; with ``count`` only if none of ten or more can.
        """
        chosen = np.arange(len(elements.row))
        if self.most is not None:
            chosen = nearest(elements.row.cpu().numpy(), elements.hours_before.cpu().numpy(), self.most)
        films = torch.empty(len(chosen), *self.size, dtype=torch.uint8)
        kept: list[int] = []
        broken: dict[int, str] = {}
        with warnings.catch_warnings():
            # `max_pixels` says what is too large
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for e in chosen.tolist():
                film = self._film(str(elements.values[e]))
                if isinstance(film, str):
                    broken[e] = film
                else:
                    films[len(kept)] = film
                    kept.append(e)
        if broken:
            self._complain(elements, len(chosen), broken)
        device = elements.row.device
        which = torch.tensor(kept, dtype=torch.int64, device=device)
        return replace(
            elements,
            row=elements.row[which],
            hours_before=elements.hours_before[which],
            values=films[: len(kept)].to(device),
            index=None if elements.index is None else elements.index[which],
            unreadable=torch.tensor(len(broken), device=device) if self.unreadable == "count" else None,
        )

    def _film(self, path: str) -> Tensor | str:
        """One film, uint8 [C or 1, H, W], or why it can't be read."""
        try:
            image = self._opened(path)
            taken: Tensor = self._transform(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins let through what their parsers raise
            return _reason(error, path)
        return taken

    def _opened(self, path: str) -> Image.Image:
        with Image.open(path, formats=FORMATS) as image:
            least = [GAP * math.ceil(side / self.crop_pct) for side in self.size[1:]]
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                whole = image.size
                image.draft(image.mode, (least[1], least[0]))
                # a progressive one is held whole, whatever comes out
                self._check_size(*(whole if image.info.get("progressive") else image.size))
            else:
                self._check_size(*image.size)
            image.load()
            upright = _upright(image)
        grey = eight_bit(upright, self.size[0])
        # timm fills borders with a colour
        return grey.convert("RGB") if self.size[0] == 3 and self.crop_mode == "border" else grey

    def _check_size(self, width: int, height: int) -> None:
        resized = 0.0
        if self.crop_mode == "center":
            # the shorter edge is resized: a line one pixel wide would become a sheet
            resized = (max(self.size[1:]) / self.crop_pct) ** 2 * max(width, height) / min(width, height)
        if width * height > self.max_pixels or resized > self.max_pixels:
            raise TooLargeError(f"{width} × {height} pixels; max_pixels is {self.max_pixels}")

    @cached_property
    def _transform(self) -> Any:
        from timm.data import create_transform  # type: ignore[attr-defined]

        return create_transform(
            input_size=self.size,
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.mean or (0.0,) * self.size[0],
            normalize=False,
        )

    def _complain(self, elements: Elements, opened: int, broken: dict[int, str]) -> None:
        of_store = elements.index is not None
        rows = elements.row.cpu() if elements.index is None else elements.index.cpu()
        listed = [f"{int(rows[e])} ({reason})" for e, reason in sorted(broken.items())[:SHOWN]]
        where = f"rows of modality/{self.modality}.arrow" if of_store else "rows of the batch"
        more = ", …" if len(broken) > SHOWN else ""
        what = f"modality {self.modality!r}: {len(broken)} of {opened} films of a batch can't be read, {where}: "
        what += ", ".join(listed) + more
        if self.unreadable == "error":
            raise UnreadableError(f"{what}; restore the files, or leave them out with `unreadable: count`")
        if len(broken) == opened >= SUSPICIOUS:
            raise UnreadableError(f"{what}; are the files still where the store says?")
        _warn_once(self.modality, what)


@lru_cache
def _warned(modality: str) -> list[str]:
    return []


def _warn_once(modality: str, what: str) -> None:
    # once a process: each epoch meets the same films again
    if not _warned(modality):
        _warned(modality).append(what)
        log.warning("%s; they are left out, further ones without a word", what)


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "not permitted"
    if isinstance(error, TooLargeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow opens"
    if isinstance(error, UnidentifiedImageError):
        return "empty" if Path(path).is_file() and not Path(path).stat().st_size else "no image"
    if isinstance(error, OSError) and "truncated" in str(error):
        return "truncated"
    return f"broken, {type(error).__name__}"


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # the pixels are sound, whatever stands in the metadata
        turned = False
    return (ImageOps.exif_transpose(image) or image) if turned else image


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to 8 bits a channel: ``L``, or ``RGB`` where 3 channels are wanted of colour."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_scaled(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        grey = image.mode in ("LA", "La")
        image = Image.alpha_composite(black, straight).convert("L" if grey else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "L":
        return image
    # CMYK and others have no way to grey of their own
    colour = image if image.mode == "RGB" else image.convert("RGB")
    return colour if channels == 3 else colour.convert("L")


def _scaled(values: Array) -> Array:
    """Scale an image from its least and greatest finite value to 0 … 255; NaN is 0, one of a single value is black."""
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    out = np.zeros(values.shape, dtype=np.uint8)
    if high > low and values.dtype.itemsize == 2 and values.dtype.kind == "u":
        # 65,536 values at most: computed once each
        table = (np.arange(high + 1) - low).clip(0) * (255 / (high - low))
        out = np.rint(table).astype(np.uint8)[values]
    elif high > low:
        for at in range(0, len(values), STRIP):
            part = (values[at : at + STRIP].astype(np.float64) - low) * (255 / (high - low))
            out[at : at + STRIP] = np.rint(np.clip(np.nan_to_num(part, nan=0.0), 0, 255))
    return out
