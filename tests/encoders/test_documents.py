from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmnar_lightning.encoders.documents import (
    DocumentTokenizer,
    Tokens,
    Window,
    buckets,
    chunked,
    padded,
    tokenised,
)
from mmnar_lightning.encoders.nearest import nearest
from mmnar_lightning.records import Elements, RecordDataset, RecordStore, StoreError
from mmnar_lightning.records.derived import derive, derived_folder

NAN = float("nan")


def plain_windows(ids: list[int], body: int, overlap: int) -> list[list[int]]:
    """Windows one by one, until one reaches the end."""
    found, first = [], 0
    while True:
        found.append(ids[first : first + body])
        if first + body >= len(ids):
            return found
        first += body - overlap


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(3, 20), st.integers(0, 10), st.sampled_from([None, 1, 2]))
def test_windows_are_those_of_a_plain_loop(lengths: list[int], body: int, overlap: int, most: int | None) -> None:
    overlap = min(overlap, body - 1)
    ids = np.arange(sum(lengths) + 5, dtype=np.int32)
    stop = 5 + np.cumsum(lengths, dtype=np.int64)
    tokens = Tokens(ids, stop - np.asarray(lengths, dtype=np.int64), stop)
    chunks = chunked(tokens, Window(body + 2, overlap, most), 2)
    found = [
        (int(d), ids[s : s + n].tolist()) for d, s, n in zip(chunks.document, chunks.start, chunks.length, strict=True)
    ]
    expected = [
        (d, window)
        for d, (a, b) in enumerate(zip(tokens.start, tokens.stop, strict=True))
        for window in plain_windows(ids[a:b].tolist(), body, overlap)[:most]
    ]
    assert found == expected


def test_windows_and_padding_are_those_of_transformers(text_model: Path, words: Any) -> None:
    documents = [words(n, n) for n in (0, 1, 14, 40, 90)]
    official = AutoTokenizer.from_pretrained(text_model)(
        documents, max_length=16, truncation=True, stride=4, return_overflowing_tokens=True, padding=True
    )
    tokenizer = DocumentTokenizer.from_folder(text_model)
    tokens = tokenizer(documents)
    chunks = chunked(tokens, Window(16, 4), 2)
    ids, there = padded(tokens, chunks, np.arange(len(chunks.document)), tokenizer)
    assert ids.tolist() == official["input_ids"]
    assert there.astype(int).tolist() == official["attention_mask"]
    assert chunks.document.tolist() == list(official["overflow_to_sample_mapping"])


@given(
    st.lists(st.integers(1, 512), max_size=200),
    st.sampled_from([256, 2048, 32768]),
    st.sampled_from([0.0, 0.05, 0.15, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_buckets_hold_each_sequence_once_and_keep_their_limits(
    lengths: list[int], most: int, max_padding: float
) -> None:
    given_lengths = np.asarray(lengths, dtype=np.int64)
    groups = buckets(given_lengths, most, max_padding=max_padding)
    assert sorted(i for g in groups for i in g.tolist()) == list(range(len(lengths)))
    widest = [int(given_lengths[g].max()) for g in groups]
    assert widest == sorted(widest, reverse=True)
    assert all(len(g) == 1 or len(g) * w <= most for g, w in zip(groups, widest, strict=True))
    laid_out = sum(w * len(g) for w, g in zip(widest, groups, strict=True))
    assert laid_out - sum(lengths) <= max_padding * laid_out


def test_padding_of_a_realistic_batch_is_small_at_few_calls() -> None:
    rng = np.random.default_rng(0)
    # reports of some 100 to 400 tokens and the tails and full windows of summaries: log-normal, cut at the window
    lengths = np.minimum(512, np.exp(rng.normal(5.0, 0.8, 300)).astype(np.int64) + 2)
    together = 1 - lengths.sum() / (lengths.max() * len(lengths))
    groups = buckets(lengths, 32768)
    padding = 1 - lengths.sum() / sum(int(lengths[g].max()) * len(g) for g in groups)
    assert together > 0.5
    assert padding <= 0.15
    assert len(groups) <= 12


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.5, NAN])), max_size=15), st.integers(1, 4))
def test_the_nearest_documents_are_kept(elements: list[tuple[int, float]], most: int) -> None:
    elements = sorted(elements, key=lambda e: e[0])
    expected: list[int] = []
    for row in range(4):
        mine = [(np.inf if np.isnan(h) else h, k) for k, (r, h) in enumerate(elements) if r == row]
        expected += sorted(k for _, k in sorted(mine)[:most])
    rows = np.asarray([r for r, _ in elements], dtype=np.int64)
    hours = np.asarray([h for _, h in elements], dtype=np.float32)
    assert nearest(rows, hours, most).tolist() == expected


@pytest.fixture
def records(make_store: Any, tmp_path: Path) -> RecordStore:
    return RecordStore(make_store(tmp_path / "stores", 30))


def test_no_batch_of_a_store_is_tokenised_again(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch, build_text: Any
) -> None:
    schema = records.schema.restrict(["notes"], None)
    dataset = RecordDataset(records, schema, np.arange(len(records)))
    batch = dataset.__getitems__([5, 0, 17, 3, 11, 8])
    elements = batch.elements["notes"]
    assert len(elements.values) > 2
    assert elements.index is not None
    assert records.strings("modality/notes.arrow").take(elements.index.numpy()).to_pylist() == list(elements.values)
    encoder = build_text().eval()
    rows = batch.observed[:, 0].nonzero()[:, 0]
    expected = encoder(elements, rows)[0]
    encoder.prepare(records)

    def never(*_: Any) -> Any:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(DocumentTokenizer, "__call__", never)
    torch.testing.assert_close(encoder(elements, rows)[0], expected, rtol=0, atol=0)
    # another process with the same tokenizer finds them
    other = build_text().eval()
    other.prepare(records)
    torch.testing.assert_close(other(elements, rows)[0], expected, rtol=0, atol=0)
    copied = pickle.loads(pickle.dumps(other._table))
    assert len(copied) == len(records.strings("modality/notes.arrow"))
    limited = build_text(max_documents=1).eval()
    limited.prepare(records)
    assert limited(elements, rows)[0].isfinite().all()
    strange = Elements(
        elements.row, elements.hours_before, tuple(f"{d}." for d in elements.values), index=elements.index
    )
    with pytest.raises(StoreError, match="other documents than the batch holds"):
        encoder(strange, rows)
    beyond = Elements(elements.row, elements.hours_before, elements.values, index=elements.index + 10_000)
    with pytest.raises(StoreError, match="other documents than the batch holds"):
        encoder(beyond, rows)


def test_token_ids_lie_beside_the_store_under_a_key(
    text_model: Path, records: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmnar_lightning.encoders.documents.SLICE", 3)
    tokenizer = DocumentTokenizer.from_folder(text_model)
    table = tokenised(records, "notes", tokenizer)
    assert table.folder.parent == records.path.parent / f"{records.path.name}.derived"
    documents = records.strings("modality/notes.arrow").to_pylist()
    official = AutoTokenizer.from_pretrained(text_model)(documents, add_special_tokens=False)["input_ids"]
    tokens = table.take(np.arange(len(documents)), documents)
    assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.start, tokens.stop, strict=True)] == official
    manifest = json.loads((table.folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["documents.arrow", "ids.arrow"]
    assert tokenised(records, "notes", tokenizer).folder == table.folder
    other = DocumentTokenizer(tokenizer.description.replace("[UNK]", "[UNC]"), tokenizer.pad)
    assert tokenised(records, "notes", other).folder != table.folder
    (table.folder / "ids.arrow").write_bytes(b"")
    with pytest.raises(StoreError, match=r"ids.arrow is missing or not of the size"):
        tokenised(records, "notes", tokenizer)
    (table.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"no readable manifest.json"):
        tokenised(records, "notes", tokenizer)


def test_derived_data_are_whole_or_not_there(records: RecordStore) -> None:
    described = {"what": "trial"}
    made: list[Path] = []

    def fails(text_model: Path) -> None:
        made.append(text_model)
        (text_model / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        derive(records, "trial", described, fails)
    place = derived_folder(records, "trial", described)
    assert not place.exists()
    assert not made[0].exists()
    left = place.parent / f".{place.name}.writing-killed"
    left.mkdir()
    assert derive(records, "trial", described, lambda f: None) == place
    assert not left.exists()
    assert (place.stat().st_mode & 0o077) == 0


def test_ids_of_another_tokenizer_are_not_used_after_loading(
    text_model: Path, records: RecordStore, build_text: Any
) -> None:
    batch = RecordDataset(records, records.schema.restrict(["notes"], None), np.arange(8)).__getitems__(range(8))
    elements, rows = batch.elements["notes"], batch.observed[:, 0].nonzero()[:, 0]
    state = build_text().state_dict()
    description = json.loads(state["_extra_state"]["tokenizer"])
    vocabulary = description["model"]["vocab"]
    plain = sorted(word for word in vocabulary if not word.startswith("["))
    # the same words under other numbers
    vocabulary |= dict(zip(plain, [vocabulary[word] for word in reversed(plain)], strict=True))
    state["_extra_state"] |= {"tokenizer": json.dumps(description)}
    encoder, other = build_text().eval(), build_text().eval()
    encoder.prepare(records)
    before = encoder(elements, rows)[0]
    encoder.load_state_dict(state)
    other.load_state_dict(state)
    assert not torch.allclose(encoder(elements, rows)[0], before)
    torch.testing.assert_close(encoder(elements, rows)[0], other(elements, rows)[0])
