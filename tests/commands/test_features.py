"""Features are found under the right key, looked up rightly, and written whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmnar_lightning.encoders.features import FeatureReader, FeatureShards, FeatureTable, described
from mmnar_lightning.records import Elements, StoreError

BOTH = ("notes", "films")


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "longer windows": ("notes", {"max_tokens": 20}),
    "less overlap": ("notes", {"stride": 2}),
    "fewer windows": ("notes", {"max_chunks": 1}),
    "first token": ("notes", {"pool": "cls"}),
    "held in bfloat16": ("notes", {"dtype": "bfloat16"}),
    "smaller films": ("films", {"image_size": 24}),
    "colour": ("films", {"channels": 3}),
    "no edge lost": ("films", {"crop_pct": 1.0}),
    "weights drawn anew": ("films", {"weights": None, "pretrained": False}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_features_changes_their_key(change: str, embedded: Any) -> None:
    modality, options = CHANGES[change]
    store = embedded.records
    usual, other = embedded.built(modality), embedded.built(modality, **options)
    assert usual.frozen() != other.frozen()
    other.prepare(store)
    assert not isinstance(other.reader(), FeatureReader)


UNCHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout behind it": ("notes", {"dropout": 0.5}),
    "more documents": ("notes", {"max_documents": None}),
    "another way to the same attention": ("notes", {"attention": "eager"}),
    "smaller groups": ("notes", {"max_batch_tokens": 64}),
    "fewer films": ("films", {"max_films": 1}),
    "unreadable films": ("films", {"unreadable": "count"}),
}


@pytest.mark.parametrize("change", UNCHANGED)
def test_what_does_not_change_the_features_finds_them(change: str, embedded: Any) -> None:
    modality, options = UNCHANGED[change]
    encoder = embedded.built(modality, **options)
    encoder.prepare(embedded.records)
    assert isinstance(encoder.reader(), FeatureReader)


@pytest.mark.parametrize(
    ("modality", "options"),
    [
        ("notes", {"train": "full"}),
        ("notes", {"train": "last_n"}),
        ("films", {"train": "full"}),
        ("films", {"augment": True}),
    ],
)
def test_what_is_trained_or_drawn_has_no_features(modality: str, options: dict[str, Any], embedded: Any) -> None:
    encoder = embedded.built(modality, **options)
    assert encoder.frozen() is None
    encoder.prepare(embedded.records)
    assert not isinstance(encoder.reader(), FeatureReader)


def test_other_weights_and_another_precision_are_not_mixed_up(embedded: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = embedded.records
    for modality in BOTH:
        encoder = embedded.built(modality)
        encoder.prepare(store, "bf16-mixed")
        assert not isinstance(encoder.reader(), FeatureReader), modality
        encoder.prepare(store)
        assert isinstance(encoder.reader(), FeatureReader), modality
        # as if a checkpoint had brought them: what the file on disk holds is not asked
        assert encoder.backbone is not None
        with torch.no_grad():
            next(encoder.backbone.parameters()).mul_(1.001)
        caplog.clear()
        caplog.set_level("INFO", "mmnar_lightning")
        encoder.prepare(store)
        assert not isinstance(encoder.reader(), FeatureReader), modality
        assert f"frozen features of {modality}: computed on the fly" in caplog.text


def test_shards_are_checked(embedded: Any, source: Any) -> None:
    store = source.records
    shards = FeatureShards(store, "notes", described("notes", {}, "32-true", "float16"), 40)
    count = torch.ones(40, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 of 40 vectors of a shard are not finite in float16"):
        shards.write(0, 40, torch.tensor([1e6] + [0.0] * 39)[:, None], count)
    with pytest.raises(ValueError, match=r"40 of 40 vectors of a shard are not finite$"):
        shards.write(0, 40, torch.full((40, 2), torch.nan), count)
    shards.write(0, 40, torch.zeros(40, 2), count)
    assert shards.missing() == [(40, len(embedded.strings("notes")))]
    with pytest.raises(StoreError, match="1 of 2 shards are not there"):
        shards.finish({})
    (written,) = shards.folder.glob("*.npz")
    written.with_name(f"40-{shards.elements}.npz").write_bytes(written.read_bytes()[:-30])
    with pytest.raises(StoreError, match=r"40-\d+.npz can't be read; remove it"):
        shards.finish({})
    table = FeatureTable(embedded.features("notes")[0])
    for index in ([0, len(table)], [-1]):
        with pytest.raises(StoreError, match="features of other elements"):
            table.take(np.asarray(index))
    vectors, number = table.take(np.zeros(0, dtype=np.int64))
    assert (vectors.shape, number.shape) == ((0, 16), (0,))


def test_frozen_features_of_some_films_alone(embedded: Any) -> None:
    """The film nearest to the prediction time is chosen as on the fly, in every row of a batch."""
    store = embedded.records
    encoder = embedded.built("films", max_films=1)
    row, hours = torch.tensor([0, 0, 1, 3]), torch.tensor([5.0, 2.0, torch.nan, 0.0])
    index = torch.tensor([7, 3, 0, 3])
    paths = tuple(str(embedded.root / embedded.strings("films")[k]) for k in index.tolist())
    elements, rows = Elements(row, hours, paths, index=index), torch.tensor([0, 1, 3])
    expected = encoder(elements, rows)[0]
    encoder.prepare(store)
    reader = encoder.reader()
    assert reader is not None
    read = reader(elements)
    assert (read.row.tolist(), read.index.tolist()) == ([0, 1, 3], [3, 0, 3])
    torch.testing.assert_close(encoder(read, rows)[0], expected, rtol=1e-4, atol=1e-5)
    # of no store: opened as ever
    loose = reader(Elements(row, hours, paths))
    assert loose.part_of is None
    torch.testing.assert_close(encoder(loose, rows)[0], expected, rtol=1e-4, atol=1e-5)
