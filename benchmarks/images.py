"""Films: images/s of the reader against a bare Pillow loop, and the price of a step against the share of films.

Run: ``python benchmarks/images.py [--films 24] [--out benchmarks/results/images.json]``. All on one core, in processor
time. The ways are timed in turn, several rounds, and the best round of each is kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, least_seconds, machine, peak_rss_gib, save
from PIL import Image
from torch import Tensor, nn

from mmnar_lightning.encoders.decoding import FilmReader
from mmnar_lightning.encoders.image import ImageEncoder
from mmnar_lightning.records import Elements, Modality

SIDE, CROP = 224, 0.875
RESIZED = int(SIDE / CROP)
CXR = Modality("cxr", "image")
READ_TARGET, PACKED_TARGET, PACKING_TARGET = 0.85, 0.45, 1.05
MODEL, STEP_SIDE, BATCH = "resnet18", 96, 32


def write_films(folder: Path, n: int) -> dict[str, list[str]]:
    """Films of 3,056 × 2,544 as JPEG and PNG, in 16 bits at 2,048, and small grey PNGs; smooth shapes with noise."""
    rng = np.random.default_rng(0)
    paths: dict[str, list[str]] = {}
    for k in range(n):
        coarse = Image.fromarray(rng.integers(20, 230, (9, 9)).astype(np.uint8))
        large = np.asarray(coarse.resize((2544, 3056), Image.Resampling.BICUBIC), dtype=np.float32)
        film = np.clip(large + rng.normal(0, 4, large.shape), 0, 255)
        whole = Image.fromarray(film.astype(np.uint8))
        kinds = {
            "jpeg_3056x2544": (whole, "a.jpg"),
            "png_3056x2544": (whole, "a.png"),
            "png_16bit_2048": (Image.fromarray((film[:2048, :2048] * 16).astype(np.uint16)), "b.png"),
            "png_512": (whole.resize((512, 512)), "c.png"),
        }
        for kind, (image, name) in kinds.items():
            if k < n // 3 or not kind.startswith("png_3"):
                path = folder / f"{k}{name}"
                image.save(path)
                paths.setdefault(kind, []).append(str(path))
    return paths


def bare(path: str, channels: int) -> np.ndarray[Any, Any]:
    """The same operations with nothing around them: open, reduce, decode, resize the shorter edge, cut the centre."""
    with Image.open(path) as image:
        image.draft(image.mode, (2 * RESIZED, 2 * RESIZED))
        image.load()
        grey: Image.Image = image
    if grey.mode.startswith("I"):
        values = np.asarray(grey).astype(np.float64)
        low, high = values.min(), values.max()
        grey = Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))
    width, height = grey.size
    short = min(width, height)
    small = grey.resize((RESIZED * width // short, RESIZED * height // short), Image.Resampling.BICUBIC)
    left, top = round((small.size[0] - SIDE) / 2), round((small.size[1] - SIDE) / 2)
    cut = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)))
    return np.broadcast_to(cut, (channels, SIDE, SIDE)).copy()


def loading(folder: Path, n: int, repeat: int) -> dict[str, dict[str, float]]:
    """Films a second on one core, by kind of file."""
    reader = FilmReader("cxr", (3, SIDE, SIDE), CROP, "center", "bicubic")
    found = {}
    for kind, paths in write_films(folder, n).items():
        elements = Elements(torch.arange(len(paths)), torch.zeros(len(paths)), tuple(paths))
        read, plain = reader(elements).values, np.stack([bare(p, 3) for p in paths])
        assert isinstance(read, Tensor)
        assert np.abs(read.numpy().astype(int) - plain).max() <= 1, kind
        ways: dict[str, Callable[[], object]] = {
            "reader": lambda e=elements: reader(e),  # type: ignore[misc]
            "bare": lambda p=paths: torch.from_numpy(np.stack([bare(path, 3) for path in p])),  # type: ignore[misc]
        }
        seconds = least_seconds(ways, repeat, time.process_time)
        found[kind] = {name: len(paths) / s for name, s in seconds.items()}
        found[kind]["ratio"] = seconds["bare"] / seconds["reader"]
    return found


def packing(repeat: int) -> dict[str, float]:
    """Seconds of a training step over a batch: all rows, 30 % of them, none, and all without any packing."""
    torch.manual_seed(0)
    encoder = ImageEncoder(
        CXR, 64, model=MODEL, pretrained=False, image_size=STEP_SIDE, train="full", train_batch_norm=False, dropout=0.0
    ).train()
    films = torch.randint(0, 256, (BATCH, 3, STEP_SIDE, STEP_SIDE), dtype=torch.uint8)
    hours = torch.linspace(0, 100, BATCH)

    def step(rows: Tensor) -> None:
        encoder.zero_grad()
        tokens, _ = encoder(Elements(rows, hours[rows], films[rows]), rows)
        tokens.square().sum().backward()

    def dense() -> None:
        encoder.zero_grad()
        backbone = encoder.backbone
        assert isinstance(backbone, nn.Module)
        vectors = encoder.norm(backbone(films.float() * encoder.scale + encoder.shift))
        times = torch.stack([torch.log1p(hours / 24), torch.ones(BATCH)], 1)
        encoder.head(encoder.film(torch.cat([vectors, times], 1))).square().sum().backward()

    some = torch.arange(BATCH)[torch.randperm(BATCH)[: round(0.3 * BATCH)].sort().values]
    ways: dict[str, Callable[[], object]] = {
        "dense_without_packing": dense,
        "all_observed": lambda: step(torch.arange(BATCH)),
        "70_percent_unobserved": lambda: step(some),
        "none_observed": lambda: step(torch.arange(0)),
    }
    for way in ways.values():
        way()
    return least_seconds(ways, repeat, time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULTS / "images.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        speed = loading(Path(folder), arguments.films, arguments.repeat)
    steps = packing(arguments.repeat)
    whole = steps["all_observed"]
    result = {
        "what": f"films to 3 × {SIDE} × {SIDE} on one core, in processor time; steps of {MODEL} at {STEP_SIDE} px, "
        f"batch {BATCH}, one film a sample, trained in full; best of {arguments.repeat} rounds",
        "films_per_second_a_core": {k: {n: round(v, 3) for n, v in ways.items()} for k, ways in speed.items()},
        "reader_over_bare_least": round(min(ways["ratio"] for ways in speed.values()), 3),
        "reader_target": READ_TARGET,
        "seconds_a_step": {name: round(value, 4) for name, value in steps.items()},
        "70_percent_unobserved_over_all": round(steps["70_percent_unobserved"] / whole, 3),
        "70_percent_target": PACKED_TARGET,
        "packing_over_dense": round(whole / steps["dense_without_packing"], 3),
        "packing_target": PACKING_TARGET,
    }
    save(arguments.out, result, ("torch", "timm", "pillow", "numpy"), machine(peak_rss_gib=peak_rss_gib()))


if __name__ == "__main__":
    main()
