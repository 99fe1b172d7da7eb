from __future__ import annotations

import gc
import io
import logging
import pickle
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmnar_lightning.encoders import decoding
from mmnar_lightning.encoders.decoding import FilmReader, UnreadableError, eight_bit
from mmnar_lightning.records import Elements, Modality, RecordDataset, RecordLoader, RecordSchema, RecordStore, Task
from mmnar_lightning.records.loading import EpochBatches

NAN = float("nan")
Save = Callable[[Any, str], str]


def reader(channels: int = 3, side: int = 16, **options: Any) -> FilmReader:
    settings: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"} | options
    return FilmReader("cxr", (channels, side, side), **settings)


def films(paths: list[str], row: list[int] | None = None, hours: list[float] | None = None) -> Elements:
    n = len(paths)
    return Elements(
        torch.tensor(list(range(n)) if row is None else row, dtype=torch.long),
        torch.tensor([1.0] * n if hours is None else hours, dtype=torch.float32),
        tuple(paths),
        index=torch.arange(100, 100 + n),
    )


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(image: Any, name: str) -> str:
        if isinstance(image, bytes):
            (tmp_path / name).write_bytes(image)
        else:
            (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name)
        return str(tmp_path / name)

    return saved


def noise(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, high, shape)


def scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """From the least to the greatest value, in plain Python."""
    low, high = float(values.min()), float(values.max())
    return np.asarray([[round((float(v) - low) / (high - low) * 255) for v in line] for line in values])


def luma(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    grey: np.ndarray[Any, Any] = rgb @ np.asarray([0.299, 0.587, 0.114])
    return grey


GREY = noise(16, 16).astype(np.uint8)
COLOUR = noise(16, 16, 3).astype(np.uint8)
ALPHA = noise(16, 16, seed=1).astype(np.uint8)
DEEP = (1000 + 3 * noise(16, 16, high=1000)).astype(np.uint16)  # 12-bit values in 16 bits
WIDE = (noise(16, 16, high=2**31 - 1) - 2**30).astype(np.int32)
REAL = (noise(16, 16, high=10_000) / 7 - 300).astype(np.float32)
OVER_BLACK = COLOUR * (ALPHA[:, :, None] / 255)


def cmyk() -> tuple[Image.Image, np.ndarray[Any, Any]]:
    flat = np.zeros((16, 16, 4), dtype=np.uint8) + np.asarray([0, 128, 255, 20], dtype=np.uint8)
    rgb = 255 * (1 - flat[:, :, :3] / 255) * (1 - flat[:, :, 3:] / 255)
    return Image.frombytes("CMYK", (16, 16), flat.tobytes()), rgb


def palette() -> tuple[Image.Image, np.ndarray[Any, Any]]:
    colours = noise(4, 3, seed=2).astype(np.uint8)
    which = noise(16, 16, high=4).astype(np.uint8)
    image = Image.frombytes("P", (16, 16), which.tobytes())
    image.putpalette(colours.tobytes())
    return image, colours[which]


MODES: dict[str, tuple[Any, str, np.ndarray[Any, Any], float]] = {
    "L": (GREY, "png", GREY, 0),
    "RGB": (COLOUR, "png", COLOUR, 0),
    "16-bit": (DEEP, "png", scaled(DEEP), 0),
    "16-bit tiff": (DEEP, "tiff", scaled(DEEP), 0),
    "16-bit big-endian tiff": (DEEP, "be.tiff", scaled(DEEP), 0),
    "32-bit tiff": (WIDE, "tiff", scaled(WIDE), 1),
    "float tiff": (REAL, "tiff", scaled(REAL), 1),
    "1-bit": (Image.fromarray(GREY > 127), "png", (GREY > 127) * 255, 0),
    "palette": (palette()[0], "png", palette()[1], 0),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "png", GREY * (ALPHA / 255), 1),
    "RGBA": (np.dstack([COLOUR, ALPHA]), "png", OVER_BLACK, 1),
    "RGBA webp": (np.dstack([COLOUR, ALPHA]), "webp", OVER_BLACK, 1),
    "CMYK": (cmyk()[0], "jpg", cmyk()[1], 6),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_same_bytes(tmp_path: Path, mode: str, channels: int) -> None:
    given, suffix, expected, slack = MODES[mode]
    path = tmp_path / f"film.{suffix}"
    image = given if isinstance(given, Image.Image) else Image.fromarray(given)
    if suffix == "be.tiff":
        # Pillow writes none: the little-endian header of three fields by hand
        path.write_bytes(big_endian(DEEP))
    elif suffix == "webp":
        image.save(path, lossless=True, exact=True)
    else:
        image.save(path)
    values = reader(channels)(films([str(path)])).values
    assert isinstance(values, torch.Tensor)
    assert values.dtype == torch.uint8
    assert values.shape == (1, channels, 16, 16)
    if expected.ndim == 2:
        wanted = np.stack([expected] * channels)
    else:
        wanted = luma(expected)[None] if channels == 1 else expected.transpose(2, 0, 1)
    off = np.abs(values[0].numpy().astype(float) - wanted).max()
    assert off <= slack + (0.6 if channels == 1 and expected.ndim == 3 else 0.5)


def big_endian(values: np.ndarray[Any, Any]) -> bytes:
    """A TIFF in the byte order of other machines."""
    height, width = values.shape
    data = values.astype(">u2").tobytes()

    def entry(tag: int, value: int, kind: int = 4) -> bytes:
        packed = value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big")
        return tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + packed

    entries = [
        entry(256, width),
        entry(257, height),
        entry(258, 16, 3),
        entry(259, 1, 3),
        entry(262, 1, 3),
        entry(273, 8),
        entry(277, 1, 3),
        entry(278, height),
        entry(279, len(data)),
    ]
    directory = len(entries).to_bytes(2, "big") + b"".join(entries) + b"\0\0\0\0"
    return b"MM\0*" + (8 + len(data)).to_bytes(4, "big") + data + directory


@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_whatever_floats_a_film_holds_it_becomes_bytes(values: list[float]) -> None:
    image = Image.fromarray(np.asarray(values, dtype=np.float32).reshape(2, 2))
    found = np.asarray(eight_bit(image, 1)).reshape(-1).tolist()
    finite = [v for v in values if np.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    for value, byte in zip(values, found, strict=True):
        if high <= low or np.isnan(value):
            assert byte == 0
        else:
            share = (min(max(value, low), high) - low) / (high - low)
            assert abs(byte - 255 * share) <= 0.51


def test_the_orientation_is_applied_and_broken_metadata_are_not(save: Save, tmp_path: Path) -> None:
    upright = np.zeros((16, 16), dtype=np.uint8)
    upright[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    Image.fromarray(upright).save(tmp_path / "broken.jpg", exif=b"Exif\0\0no such thing", quality=100)
    values = reader(1)(films([str(tmp_path / "turned.jpg"), str(tmp_path / "broken.jpg")])).values
    assert isinstance(values, torch.Tensor)
    assert (values.int() - torch.from_numpy(upright.astype(int))).abs().max() <= 3


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "L"), (3, "RGB")])
def test_films_are_cut_and_resized_as_timm_does(save: Save, crop_mode: str, channels: int, mode: str) -> None:
    from timm.data import create_transform  # type: ignore[attr-defined]

    image = Image.fromarray(noise(50, 70, 3).astype(np.uint8)).convert(mode)
    settings: dict[str, Any] = {"crop_pct": 0.9, "crop_mode": crop_mode, "interpolation": "bicubic"}
    mean = (0.4,) * channels
    values = reader(channels, 24, mean=mean, **settings)(films([save(image, "a.png")])).values
    official = create_transform(24, is_training=False, mean=mean, std=(1,) * channels, **settings)
    wanted = (official(image.convert("L" if channels == 1 else "RGB")) + 0.4) * 255
    assert isinstance(values, torch.Tensor)
    torch.testing.assert_close(values[0].float(), wanted, rtol=0, atol=1e-3)


def test_a_large_jpeg_is_decoded_at_a_reduced_scale(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = np.sin(np.linspace(0, 9, 1600))[:, None] * np.cos(np.linspace(0, 7, 1400)) * 100 + 128
    path = save(waves.astype(np.uint8), "large.jpg")
    sizes: list[tuple[int, int]] = []

    def seen(image: Image.Image, channels: int) -> Image.Image:
        sizes.append(image.size)
        return image

    monkeypatch.setattr(decoding, "eight_bit", seen)
    reduced = reader(1, 64)(films([path])).values
    with Image.open(path) as image:
        full = np.asarray(image.resize((64, 73), Image.Resampling.BILINEAR), dtype=float)[4:68]
    assert sizes == [(175, 200)]  # an eighth, still twice as large as 64
    assert isinstance(reduced, torch.Tensor)
    assert np.abs(reduced[0, 0].numpy() - full).mean() < 1.5


BROKEN = {
    "truncated.png": "truncated",
    "truncated.jpg": "truncated",
    "truncated.tiff": "truncated|broken",
    "empty.png": "empty",
    "text.png": "no image",
    "gone.png": "no such file",
    "folder.png": "broken, IsADirectoryError",
    "postscript.png": "no image",
    "huge.png": "60000000 pixels|7500 × 8000 pixels; max_pixels is 50000000",
    "progressive.jpg": "7500 × 8000 pixels",
    "line.png": "1 × 30000 pixels",
    "bomb.png": "more pixels than Pillow opens",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that goes wrong, `sound.png`, and a film of 60 megapixels as `huge.jpg`."""
    folder = tmp_path_factory.mktemp("p10000032")
    image = Image.fromarray(noise(64, 64).astype(np.uint8))
    image.save(folder / "sound.png")
    for suffix in ("png", "jpg", "tiff"):
        kept = io.BytesIO()
        image.save(kept, {"png": "PNG", "jpg": "JPEG", "tiff": "TIFF"}[suffix])
        (folder / f"truncated.{suffix}").write_bytes(kept.getvalue()[: len(kept.getvalue()) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a film of the chest")
    (folder / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (folder / "folder.png").mkdir()
    huge = Image.new("L", (7500, 8000), 90)
    huge.save(folder / "huge.png", compress_level=1)
    huge.save(folder / "huge.jpg")
    huge.save(folder / "progressive.jpg", progressive=True)
    Image.new("L", (1, 30000)).save(folder / "line.png")
    header = bytearray((folder / "huge.png").read_bytes()[:4096])
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(header)
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_an_error_that_says_where(broken: Path, name: str) -> None:
    paths = [str(broken / "sound.png"), str(broken / name), str(broken / "sound.png"), str(broken / name)]
    message = rf"'cxr': 2 of 4 films of a batch .*modality/cxr.arrow: 101 \(.*({BROKEN[name]}).*\), 103 \("
    with pytest.raises(UnreadableError, match=message) as error:
        reader(side=224, crop_pct=0.875)(films(paths))
    # the path holds ids; not even the chain of causes may show it
    assert "p10000032" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


def test_what_cannot_be_read_is_left_out_and_counted(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoding._warned.cache_clear()
    paths = [str(broken / name) for name in ("text.png", "sound.png", "gone.png", "empty.png", "sound.png")]
    counting = reader(unreadable="count")
    taken = counting(films(paths, [0, 0, 1, 2, 2], [1, 2, 3, 4, NAN]))
    assert taken.row.tolist() == [0, 2]
    assert taken.index is not None
    assert taken.index.tolist() == [101, 104]
    assert taken.hours_before[0] == 2
    assert taken.hours_before[1].isnan()
    assert taken.unreadable is not None
    assert int(taken.unreadable) == 3
    only = reader()(films([paths[1]]))
    assert only.unreadable is None
    torch.testing.assert_close(taken.values[0], only.values[0], rtol=0, atol=0)
    counting(films(paths))
    assert caplog.text.count("3 of 5 films") == 1
    assert "p10000032" not in caplog.text
    nothing = counting(films([paths[0]]))
    assert nothing.values.shape == (0, 3, 16, 16)  # type: ignore[union-attr]


def test_a_folder_that_is_gone_is_not_ten_broken_films(broken: Path) -> None:
    counting = reader(unreadable="count")
    with pytest.raises(UnreadableError, match=r"10 of 10 films .*are the files still where the store says"):
        counting(films([str(broken / f"gone{k}.png") for k in range(10)]))
    assert len(counting(films([str(broken / f"gone{k}.png") for k in range(9)])).row) == 0


def test_sixty_megapixels_are_read_where_the_format_can_reduce_them(broken: Path) -> None:
    values = reader(1, 224)(films([str(broken / "huge.jpg")])).values
    assert isinstance(values, torch.Tensor)
    assert (values.int() - 90).abs().max() <= 1
    larger = reader(1, 224, max_pixels=60_000_000)(films([str(broken / "huge.png")])).values
    assert isinstance(larger, torch.Tensor)
    assert (larger == 90).all()


def test_only_the_nearest_films_are_opened(broken: Path) -> None:
    sound, text = str(broken / "sound.png"), str(broken / "text.png")
    limited = reader(most=1)
    taken = limited(films([text, sound, sound, text], [0, 0, 3, 3], [9.0, 2.0, 5.0, NAN]))
    assert taken.row.tolist() == [0, 3]
    assert taken.hours_before.tolist() == [2.0, 5.0]
    with pytest.raises(UnreadableError, match=r"1 of 2 .*: 100 \(no image\)"):
        limited(films([text, sound, sound, text], [0, 0, 3, 3], [1.0, 2.0, 5.0, NAN]))


def test_a_reader_travels(broken: Path) -> None:
    first = reader()
    expected = first(films([str(broken / "sound.png")])).values
    again = pickle.loads(pickle.dumps(first))
    torch.testing.assert_close(again(films([str(broken / "sound.png")])).values, expected, rtol=0, atol=0)
    assert first(films([])).values.shape == (0, 3, 16, 16)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def store(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    """Eight samples: films that are sound, none, one that breaks and a sound one, only one that breaks."""
    import polars as pl

    from mmnar_lightning.records import write_store

    schema = RecordSchema((Modality("age", "vector", ("years",)), Modality("cxr", "image")), (Task("death"),))
    samples = pl.DataFrame(
        {"patient": [f"p{k}" for k in range(8)], "site": "s", "prediction_time": 0.0, "label/death": [True, False] * 4}
    )
    names = [(0, "sound.png"), (2, "text.png"), (2, "sound.png"), (3, "gone.png"), (4, "sound.png"), (6, "sound.png")]
    cxr = pl.DataFrame(
        {"sample": [s for s, _ in names], "hours_before": [2.0] * 6, "path": [n for _, n in names]},
        schema_overrides={"sample": pl.Int64},
    )
    age = pl.DataFrame({"sample": list(range(8)), "hours_before": 0.0, "years": [float(40 + k) for k in range(8)]})
    path = write_store(
        tmp_path_factory.mktemp("stores"), "films", "all", "f" * 16, schema, samples, {"age": age, "cxr": cxr}, {}
    )
    return RecordStore(path)


def dataset(store: RecordStore, folder: Path, **options: Any) -> RecordDataset:
    return RecordDataset(store, store.schema, np.arange(8), {"cxr": reader(**options)}, {"cxr": folder})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_opens_films_and_takes_lost_ones_for_not_observed(
    store: RecordStore, broken: Path, workers: int
) -> None:
    seen = dataset(store, broken, unreadable="count")
    batches = list(RecordLoader(seen, EpochBatches(8, 4, shuffle=False), workers))
    assert [b.observed[:, 1].tolist() for b in batches] == [[True, False, True, False], [True, False, True, False]]
    assert all(b.observed[:, 0].all() for b in batches)
    elements = [b.elements["cxr"] for b in batches]
    assert [e.row.tolist() for e in elements] == [[0, 2], [0, 2]]
    assert [int(e.unreadable) for e in elements if e.unreadable is not None] == [2, 0]
    assert all(e.values.dtype == torch.uint8 and e.values.shape == (2, 3, 16, 16) for e in elements)  # type: ignore[union-attr]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_of_a_worker_is_one_line(store: RecordStore, broken: Path, workers: int) -> None:
    loader = RecordLoader(dataset(store, broken), EpochBatches(8, 4, shuffle=False), workers)
    expected = (
        r"^modality 'cxr': 2 of 4 films of a batch can't be read, rows of modality/cxr.arrow: 1 \(no image\), "
        r"3 \(no such file\); restore the files, or leave them out with `unreadable: count`$"
    )
    with pytest.raises(UnreadableError, match=expected) as error:
        list(loader)
    del error
    start = time.monotonic()
    gc.collect()
    # nobody waits for workers that don't know that they may go
    assert time.monotonic() - start < 4


@pytest.mark.shared_data
@pytest.mark.parametrize("channels", [1, 3])
def test_real_films_in_every_mode(
    open_data: Callable[[str], Path], tmp_path: Path, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    paths = sorted(str(p) for p in open_data("cxr-sample").rglob("*.png"))
    assert len(paths) == 62
    values = reader(channels, 64)(films(paths)).values
    assert isinstance(values, torch.Tensor)
    for path, film in zip(paths, values, strict=True):
        with Image.open(path) as image:
            resized = image.convert("L" if channels == 1 else "RGB").resize((64, 64), Image.Resampling.BILINEAR)
            wanted = torch.from_numpy(np.array(resized)).reshape(64, 64, channels).permute(2, 0, 1)
        # grey is taken before the resizing, or after it: a rounding
        assert (film.int() - wanted.int()).abs().max() <= 1
        assert 20 < film.float().mean() < 220
    with Image.open(paths[0]) as image:
        grey = image.convert("L")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        changed = {
            "16.png": deep,
            "16.tiff": deep,
            "f.tiff": grey.convert("F"),
            "1.png": grey.convert("1"),
            "p.png": grey.convert("P"),
            "la.png": grey.convert("LA"),
            "rgba.png": grey.convert("RGBA"),
            "cmyk.jpg": grey.convert("CMYK"),
        }
        for name, film in changed.items():
            film.save(tmp_path / name)
    opened = reader(channels, 64)(films([paths[0], *(str(tmp_path / name) for name in changed)])).values
    assert isinstance(opened, torch.Tensor)
    apart = {name: float((opened[k].float() - opened[0].float()).abs().mean()) for k, name in enumerate(changed, 1)}
    # the film spans nearly all of 0 … 255, so that its own range changes it little; 1 bit is dithered
    assert all(off < (12 if name == "1.png" else 4) for name, off in apart.items()), apart
