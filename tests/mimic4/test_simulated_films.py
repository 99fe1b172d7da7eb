from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from mmnar_mimic4.simulated import films

N, TRAIN = 2400, 1800
# R² = 2·cov − var of predictions that follow nothing: their variance is at most about 0.1, and the covariance over 300
# held-out rows then has a standard deviation of √(0.1 / 300), so that this is below three of R²'s
CHANCE = 0.1
Floats = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def values() -> Floats:
    return np.random.default_rng(5).standard_normal((N, films.WIDTH))


@pytest.fixture(scope="module")
def frontal(values: Floats) -> list[bytes]:
    return films.render(values, np.random.default_rng(7))


def pixels(pictures: list[bytes], side: int = 16) -> Floats:
    """[n, side, side] between 0 and 1."""
    opened = [Image.open(io.BytesIO(one)).resize((side, side), Image.Resampling.BOX) for one in pictures]
    return np.stack([np.asarray(one, dtype=np.float64) / 255 for one in opened])


def recovered(features: Numbers, values: Floats, train: int = TRAIN) -> Floats:
    """R² of each value on rows the ridge was not fitted to."""
    flat = features.reshape(len(features), -1)
    predicted = Ridge(1.0).fit(flat[:train], values[:train]).predict(flat[train:])
    return np.asarray(r2_score(values[train:], predicted, multioutput="raw_values"))


def test_values_are_recovered_from_small_pictures(frontal: list[bytes], values: Floats) -> None:
    assert recovered(pixels(frontal), values).min() > 0.9


def test_shuffled_pictures_tell_nothing(frontal: list[bytes], values: Floats) -> None:
    order = np.random.default_rng(8).permutation(N)
    assert recovered(pixels(frontal)[order], values).max() < CHANCE


def test_lateral_pictures_tell_nothing(values: Floats) -> None:
    pictures = films.lateral(np.random.default_rng(7), 1200)
    assert recovered(pixels(pictures), values[:1200], 900).max() < CHANCE


@pytest.mark.parametrize("size", [32, 64, 65, 224, 1024])
def test_pictures_are_grey_and_of_the_size(size: int) -> None:
    rng = np.random.default_rng(0)
    for one in [*films.render(np.zeros((2, 4)), rng, size), *films.lateral(rng, 2, size)]:
        with Image.open(io.BytesIO(one)) as opened:
            opened.load()
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "L", (size, size))
            assert np.asarray(opened).std() > 20  # neither blank nor washed out


def test_each_finding_shows_where_it_belongs() -> None:
    calm = np.full((40, 4), -1.0)
    plain = pixels(films.render(calm, np.random.default_rng(3)), 64).mean(0)
    change = []
    for which in range(films.WIDTH):
        sick = calm.copy()
        sick[:, which] = 2.0
        change.append(pixels(films.render(sick, np.random.default_rng(3)), 64).mean(0) - plain)
    heart, right, left, interstitial = change
    low, upper = slice(36, 50), slice(14, 26)
    assert heart[low, 38:50].mean() > 0.1  # the heart grows to the left of the patient
    assert right[low, 10:26].mean() > 5 * abs(right[low, 40:54].mean())
    assert left[low, 40:54].mean() > 5 * abs(left[low, 10:26].mean())
    assert min(interstitial[upper, 12:24].mean(), interstitial[upper, 42:52].mean()) > 0.05
    assert max(abs(one[upper, 12:24].mean()) for one in (heart, right, left)) < 0.02


def test_pictures_differ_in_more_than_the_values() -> None:
    rng = np.random.default_rng(0)
    same = pixels(films.render(np.zeros((200, 4)), rng), 64)
    assert same.mean((1, 2)).std() > 0.005  # brightness
    assert same.std(0).mean() > 0.03  # place, pattern, noise
    assert len(set(films.render(np.zeros((200, 4)), rng))) == 200


def test_the_same_generator_draws_the_same(frontal: list[bytes], values: Floats) -> None:
    assert films.render(values, np.random.default_rng(7)) == frontal
    assert films.render(values[:9], np.random.default_rng(8)) != frontal[:9]
    one, two = (films.lateral(np.random.default_rng(7), 150, 48) for _ in range(2))
    assert one == two


def test_large_pictures_are_drawn_in_blocks(frontal: list[bytes]) -> None:
    # more of them than one block holds, each with noise of its own
    large = films.render(np.zeros((3, 4)), np.random.default_rng(0), 1024)
    assert len(set(large)) == 3
    assert 800 < np.median([len(one) for one in frontal]) < 4000


def test_values_are_recovered_from_embeddings(values: Floats) -> None:
    embedded = films.embed(values, np.random.default_rng(7))
    assert embedded.shape == (N, 1376)
    assert embedded.dtype == np.float32
    assert recovered(embedded, values).min() > 0.85
    order = np.random.default_rng(8).permutation(N)
    assert recovered(embedded[order], values).max() < 0.0


def test_embeddings_do_not_depend_on_the_pieces(values: Floats) -> None:
    whole = films.embed(values[:500], np.random.default_rng(7))
    rng = np.random.default_rng(7)
    pieces = [films.embed(values[a:b], rng) for a, b in ((0, 1), (1, 130), (130, 500))]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    # without noise they are a function of the values that bends
    quiet = np.mean([films.embed(np.repeat([[v]] * 1, 4, 1) * np.ones((300, 4)), rng).mean(0) for v in (-2.0, 2.0)], 0)
    middle = films.embed(np.zeros((600, 4)), rng).mean(0)
    assert np.abs(quiet - middle).max() > 0.3


def test_no_pictures_of_no_values() -> None:
    rng = np.random.default_rng(0)
    assert films.render(np.empty((0, 4)), rng) == []
    assert films.lateral(rng, 0) == []
    assert films.embed(np.empty((0, 4)), rng).shape == (0, 1376)


def test_wrong_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"values of shape \(5, 3\)"):
        films.render(np.zeros((5, 3)), rng)
    with pytest.raises(ValueError, match="finite"):
        films.embed(np.full((5, 4), np.inf), rng)
    for size in (31, 1025):
        with pytest.raises(ValueError, match=f"size {size}"):
            films.render(np.zeros((1, 4)), rng, size)
        with pytest.raises(ValueError, match=f"size {size}"):
            films.lateral(rng, 1, size)
