"""Pictures that look a little like chest films and carry numbers, and embeddings that do.

A frontal film is put together from soft shapes: the trunk, two lungs, ribs, the mediastinum and the heart. Coordinates
run from −1 to 1, x to the right of the picture (the patient's left), y downwards. Nothing here is anatomy: the pictures
are for testing that an encoder finds what was put in.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmnar_lightning.simulation import Floats

FINDINGS = ("heart", "right_base", "left_base", "interstitial")
WIDTH = 4
EMBEDDING = 1376  # width of the published image embeddings of MIMIC-CXR
QUALITY = 90
SMALLEST, LARGEST = 32, 1024
CUT = 2.5  # values beyond so many standard deviations look like this one
_BLOCK = 1 << 18  # pixels drawn at once
NOISE = 0.025  # standard deviation of a pixel; black is 0 and white 1
_EMBEDDING_NOISE = 0.5

Pixels = NDArray[np.float32]  # [b, size, size], or what broadcasts to it


def render(values: Floats, generator: np.random.Generator, size: int = 64) -> list[bytes]:
    """Frontal films, as grey JPEG files.

    Args:
        values: About standard normal, greater is sicker, in the order of ``FINDINGS``, [n, 4]: width of the heart,
            level of the opacity at the right base, the same at the left, density and coarseness of the interstitium.
        generator: Source of all chance (place, brightness, pattern, noise); the same state gives the same bytes.
        size: Pixels a side.

    Raises:
        ValueError: If the values are not finite numbers of that shape, or the size is not within 32 … 1024.
    """
    _check(values, size)
    shown = np.clip(values, -CUT, CUT).astype(np.float32)
    pictures: list[bytes] = []
    for start in range(0, len(values), _rows_at_once(size)):
        part = shown[start : start + _rows_at_once(size)]
        pictures += _files(frontal(part, generator, size), generator)
    return pictures


def lateral(generator: np.random.Generator, n: int, size: int = 64) -> list[bytes]:
    """Lateral films, as grey JPEG files. They carry nothing.

    Args:
        generator: Source of all chance.
        n: How many.
        size: Pixels a side.

    Raises:
        ValueError: If the size is not within 32 … 1024.
    """
    _check(np.zeros((n, WIDTH)), size)
    pictures: list[bytes] = []
    for start in range(0, n, _rows_at_once(size)):
        count = min(_rows_at_once(size), n - start)
        pictures += _files(_side(count, generator, size), generator)
    return pictures


def embed(values: Floats, generator: np.random.Generator) -> NDArray[np.float32]:
    """Embeddings of films: tanh(A·x + b) + noise, [n, 1376] float32.

    A and b are the same in every call. A row depends on its values and on its noise alone: drawn in pieces from one
    generator, the rows are those of one draw.

    Args:
        values: About standard normal, [n, 4].
        generator: Source of the noise.

    Raises:
        ValueError: If the values are not finite numbers of that shape.
    """
    _check(values, SMALLEST)
    weights, bias = _projection()
    # a matrix product would round differently for another number of rows
    score = bias + sum(values[:, k, None] * weights[k] for k in range(WIDTH))
    noise = generator.standard_normal((len(values), EMBEDDING), dtype=np.float32)
    features: NDArray[np.float32] = np.tanh(score).astype(np.float32) + np.float32(_EMBEDDING_NOISE) * noise
    return features


@cache
def _projection() -> tuple[Floats, Floats]:
    rng = np.random.Generator(np.random.Philox(1376))
    return rng.standard_normal((WIDTH, EMBEDDING)) * 0.5, rng.standard_normal(EMBEDDING) * 0.5


def _check(values: Floats, size: int) -> None:
    if values.ndim != 2 or values.shape[1] != WIDTH or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: finite numbers [n, {WIDTH}] are needed")
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size {size} must lie within {SMALLEST} and {LARGEST} pixels")


def _rows_at_once(size: int) -> int:
    return max(1, _BLOCK // (size * size))


def frontal(values: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """Brightness of frontal films, about 0 … 1, [b, size, size]."""
    n = len(values)
    heart, right_base, left_base, interstitial = (values[:, k, None, None] for k in range(WIDTH))
    x, y = _moved(rng, n, size)
    ribs, trunk = _templates(size)
    wide = _uniform(rng, n, 0.95, 1.05)
    right = _ellipse(x, y, -0.40 * wide, -0.05, 0.30 * wide, 0.72, 6.0)
    left = _ellipse(x, y, 0.42 * wide, -0.05, 0.29 * wide, 0.72, 6.0)
    # domes of the diaphragm, the right one higher
    right *= _step(0.52 + 0.5 * np.square(x + 0.40) - y, 14.0)
    left *= _step(0.58 + 0.5 * np.square(x - 0.42) - y, 14.0)
    shadow = _ellipse(x, y, 0.11 + 0.025 * heart, 0.30, 0.27 + 0.055 * heart, 0.30 + 0.02 * heart, 2.5)
    middle = _step(0.13 - np.abs(x), 12.0)
    # a meniscus: fluid stands higher at the chest wall
    level_right = 0.34 - 0.13 * right_base - 1.1 * np.square(x + 0.30)
    level_left = 0.34 - 0.13 * left_base - 1.1 * np.square(x - 0.32)
    filled = np.where(x < 0.0, _step(y - level_right, 7.0), _step(y - level_left, 7.0))
    air = np.maximum(right, left) * (1.0 - np.maximum(shadow, middle))
    pattern = _reticulation(x, y, rng, n)
    severity = (interstitial + CUT) / (2.0 * CUT)
    haze = 0.30 * severity + 0.16 * severity * pattern
    dark = air * (1.0 - 0.9 * filled) * np.clip(0.72 - haze, 0.05, 0.75)
    bright = 0.60 + 0.06 * y + 0.08 * np.maximum(shadow, 0.8 * middle) + 0.07 * _step(y - 0.62, 6.0)
    phase = _uniform(rng, n, -0.6, 0.6)
    bars = ribs[0] * np.cos(phase) - ribs[1] * np.sin(phase)
    picture: Pixels = trunk * (bright * (1.0 - dark) + 0.035 * bars * (0.4 + air)) + 0.03
    return picture


def _side(n: int, rng: np.random.Generator, size: int) -> Pixels:
    """Brightness of lateral films, about 0 … 1, [b, size, size]."""
    x, y = _moved(rng, n, size)
    lungs = _ellipse(x, y, 0.0, -0.05, _uniform(rng, n, 0.55, 0.65), 0.74, 5.0)
    lungs *= _step(0.50 + 0.35 * x - y, 12.0)
    heart = _ellipse(x, y, -0.25, _uniform(rng, n, 0.20, 0.32), _uniform(rng, n, 0.24, 0.34), 0.30, 4.0)
    spine = _step(0.10 - np.abs(x - 0.48 + 0.25 * np.square(y)), 12.0)
    vertebrae = 0.5 + 0.5 * np.cos(22.0 * y)
    trunk = _ellipse(x, y, 0.0, 0.1, 0.80, 1.25, 6.0)
    dark = lungs * (1.0 - 0.6 * heart) * (1.0 - spine * (0.5 + 0.2 * vertebrae)) * _uniform(rng, n, 0.55, 0.70)
    picture: Pixels = trunk * (0.65 + 0.08 * _step(y - 0.6, 6.0)) * (1.0 - dark) + 0.03
    return picture


def _files(brightness: Pixels, rng: np.random.Generator) -> list[bytes]:
    """Jitter brightness and contrast, add noise, and write JPEG files."""
    n = len(brightness)
    gain, offset = _uniform(rng, n, 0.94, 1.06), _uniform(rng, n, -0.03, 0.03)
    noise = rng.standard_normal(brightness.shape, dtype=np.float32)
    jittered = gain * brightness + offset + np.float32(NOISE) * noise
    grey = np.rint(255.0 * np.clip(jittered, 0.0, 1.0)).astype(np.uint8)
    written = []
    for picture in grey:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
        written.append(buffer.getvalue())
    return written


def _moved(rng: np.random.Generator, n: int, size: int) -> tuple[Pixels, Pixels]:
    """Coordinates of the columns [n, 1, size] and rows [n, size, 1], a little out of place."""
    line = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    dx, dy = _uniform(rng, n, -0.04, 0.04), _uniform(rng, n, -0.04, 0.04)
    return line[None, None, :] + dx, line[None, :, None] + dy


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Pixels:
    return np.asarray(rng.uniform(low, high, (n, 1, 1)), dtype=np.float32)


def _ellipse(
    x: Pixels, y: Pixels, cx: Pixels | float, cy: Pixels | float, a: Pixels | float, b: Pixels | float, edge: float
) -> Pixels:
    """1 within, 0 outside, with a soft edge."""
    return _step(1.0 - np.square((x - cx) / a) - np.square((y - cy) / b), edge)


def _step(distance: NDArray[np.floating[Any]], edge: float) -> Pixels:
    """From 0 to 1 where the distance turns positive, over 1 / edge."""
    raised: Pixels = np.clip(np.float32(0.5) + np.float32(edge) * distance, 0.0, 1.0)
    return raised


def _reticulation(x: Pixels, y: Pixels, rng: np.random.Generator, n: int) -> Pixels:
    """A net of lines in random places, between −1 and 1."""
    fine = np.sin(19.0 * x + _uniform(rng, n, 0.0, 6.3)) * np.sin(17.0 * y + _uniform(rng, n, 0.0, 6.3))
    coarse = np.sin(11.0 * x + _uniform(rng, n, 0.0, 6.3)) * np.sin(13.0 * y + _uniform(rng, n, 0.0, 6.3))
    net: Pixels = 0.6 * fine + 0.4 * coarse
    return net


@cache
def _templates(size: int) -> tuple[Pixels, Pixels]:
    """Ribs (cosine and sine, so that they can be moved), [2, size, size], and the trunk, [size, size]."""
    line = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    x, y = line[None, :], line[:, None]
    bow = 26.0 * (y - 0.55 * np.square(np.abs(x) - 0.15))
    flank = _step(0.86 - np.abs(x) + 0.05 * np.cos(2.0 * y), 10.0)
    shoulders = _step(y + 1.02 - 0.5 * np.square(x) - 0.12 * np.abs(x), 8.0)
    neck = _step(0.22 - np.abs(x), 10.0)
    trunk = np.minimum(flank, np.maximum(shoulders, neck))
    return np.stack([np.cos(bow), np.sin(bow)]).astype(np.float32), trunk.astype(np.float32)
