"""From documents to padded windows of token ids: tokenised once, cut with overlap, sorted into buckets of length."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from mmnar_lightning.encoders.nearest import nearest
from mmnar_lightning.records import Elements, RecordStore, StoreError
from mmnar_lightning.records.derived import derive

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
# part of the key of token ids: raise it when what is written changes
FORMAT = 1
IDS, DOCUMENTS = "ids.arrow", "documents.arrow"
# documents tokenised at a time: bounds memory, and is enough for all cores
SLICE = 4096


@dataclass(frozen=True)
class Tokens:
    """Token ids of E documents, without special tokens: those of document e are `ids[start[e]:stop[e]]`.

    Args:
        ids: int32 [T], possibly of more documents than these.
        start: int64 [E].
        stop: int64 [E].
    """

    ids: Array
    start: Array
    stop: Array


class DocumentTokenizer:
    """A fast tokenizer that travels as text, so that a checkpoint can hold it.

    Args:
        description: What `tokenizer.json` holds.
        pad: Id that fills up a window; attention is masked there.

    Attributes:
        prefix: Special tokens that the tokenizer puts before a document, int32.
        suffix: Those it puts after it, int32.
        digest: SHA-256 of what decides on the ids.
    """

    def __init__(self, description: str, pad: int) -> None:
        self._tokenizer = Tokenizer.from_str(description)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.description, self.pad = self._tokenizer.to_str(), pad
        self.digest = hashlib.sha256(f"{self.description}{pad}".encode()).hexdigest()
        self.prefix, self.suffix = self._special_tokens()

    @classmethod
    def from_folder(cls, folder: Path) -> DocumentTokenizer:
        """Read the tokenizer of a pretrained model's folder.

        Raises:
            ValueError: If there is none that the `tokenizers` library can run.
        """
        # here, not above: who uses no text should not wait for it
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            description = tokenizer.backend_tokenizer.to_str()
        except Exception as error:  # as many kinds as there are tokenizers
            first = (str(error).splitlines() or [""])[0]
            raise ValueError(f"the model's folder holds no tokenizer that can be used ({first})") from error
        return cls(description, 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id))

    def __call__(self, documents: Sequence[str]) -> Tokens:
        """Tokenise, on all cores.

        A document without any token becomes one padding token where the tokenizer adds no special ones: a window
        can't be empty.
        """
        encoded = self._tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
        instead = [] if len(self.prefix) + len(self.suffix) else [self.pad]
        ids = [np.asarray(e.ids or instead, dtype=np.int32) for e in encoded]
        stop = np.cumsum([len(i) for i in ids], dtype=np.int64)
        flat = np.concatenate([*ids, np.empty(0, dtype=np.int32)])
        return Tokens(flat, np.concatenate([[0], stop[:-1]]).astype(np.int64)[: len(stop)], stop)

    def _special_tokens(self) -> tuple[Array, Array]:
        with_them = self._tokenizer.encode("a").special_tokens_mask
        ids = self._tokenizer.encode("a").ids
        plain = [i for i, special in enumerate(with_them) if not special]
        if not plain:  # it makes nothing of the letter: whatever is there stands before
            return np.asarray(ids, dtype=np.int32), np.empty(0, dtype=np.int32)
        return np.asarray(ids[: plain[0]], dtype=np.int32), np.asarray(ids[plain[-1] + 1 :], dtype=np.int32)


class TokenTable:
    """Token ids of every document of a modality, mapped from beside the store.

    Args:
        folder: What `tokenised` returned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids = _mapped(folder / IDS, "ids")
        self._stop, self._characters = (_mapped(folder / DOCUMENTS, name) for name in ("stop", "characters"))

    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        # a copy in another process maps the files itself
        return (TokenTable, (self.folder,))

    def __len__(self) -> int:
        return len(self._stop)

    def take(self, index: Array, documents: Sequence[str]) -> Tokens:
        """Look up documents.

        Args:
            index: int64 [E], rows of the modality's file in the store.
            documents: The E documents themselves, to check that they are those that were tokenised.

        Raises:
            StoreError: If their lengths differ: the batch comes from another store.
        """
        known = index[(index >= 0) & (index < len(self))]
        length = np.fromiter(map(len, documents), dtype=np.int32, count=len(documents))
        if len(known) != len(index) or not np.array_equal(self._characters[known], length):
            raise StoreError(f"{self.folder.name}: token ids of other documents than the batch holds; call prepare()")
        stop = self._stop[index]
        start = np.where(index > 0, self._stop[np.maximum(index - 1, 0)], 0)
        return Tokens(self._ids, start, stop)


def tokenised(store: RecordStore, modality: str, tokenizer: DocumentTokenizer) -> TokenTable:
    """Return the token ids of a modality's documents, tokenising them first if no one has: no epoch does it again.

    They are whole documents without special tokens, so that windows can change and they needn't. Models that share a
    tokenizer share them, too. Memory is bounded: documents are read in slices and ids go to disk.

    Args:
        store: Where the documents are.
        modality: Name of the `text` modality.
        tokenizer: What makes ids of them.
    """
    documents = store.strings(f"modality/{modality}.arrow")

    def write(folder: Path) -> None:
        stops, characters, total = [], [], 0
        raw = folder / "ids.raw"
        with raw.open("wb") as file:
            for first in range(0, len(documents), SLICE):
                part = documents.slice(first, SLICE).to_pylist()
                tokens = tokenizer(part)
                tokens.ids.tofile(file)
                stops.append(tokens.stop + total)
                characters.append(np.fromiter(map(len, part), dtype=np.int32, count=len(part)))
                total += len(tokens.ids)
        ids = np.memmap(raw, dtype=np.int32, mode="r") if total else np.empty(0, dtype=np.int32)
        _write(folder / IDS, {"ids": ids})
        raw.unlink()
        log.info("tokenised %d documents of %r once and for all: %d tokens", len(documents), modality, total)
        stop = np.concatenate([*stops, np.empty(0, dtype=np.int64)])
        _write(folder / DOCUMENTS, {"stop": stop, "characters": np.concatenate([*characters, np.empty(0, np.int32)])})

    described = {"what": "token ids", "format": FORMAT, "modality": modality, "tokenizer": tokenizer.digest}
    return TokenTable(derive(store, f"tokens-{modality}", described, write))


def _write(path: Path, columns: dict[str, Array]) -> None:
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def _mapped(path: Path, name: str) -> Array:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(name)
    if not column.num_chunks:
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    values: Array = column.chunk(0).to_numpy(zero_copy_only=True)
    return values


@dataclass(frozen=True)
class Window:
    """How a document is cut into what a model can read at once.

    Args:
        tokens: Longest window, special tokens included.
        overlap: Tokens that a window shares with the one before it.
        most: Windows of a document that are read, the first ones; None reads all.
    """

    tokens: int
    overlap: int
    most: int | None = None


@dataclass(frozen=True)
class Chunks:
    """C windows of documents, in the order of the documents.

    Args:
        document: int64 [C], which document.
        start: int64 [C], where its ids begin.
        length: int64 [C], number of its ids, special tokens not counted.
    """

    document: Array
    start: Array
    length: Array


def chunked(tokens: Tokens, window: Window, special: int) -> Chunks:
    """Cut documents: windows begin every `tokens − special − overlap` ids, and the last one reaches the end.

    Args:
        tokens: E documents.
        window: How they are cut.
        special: Number of special tokens in each window.
    """
    body = window.tokens - special
    step = body - window.overlap
    count = 1 + np.maximum(0, -(-(tokens.stop - tokens.start - body) // step))
    if window.most is not None:
        count = np.minimum(count, window.most)
    document = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    start = tokens.start[document] + place * step
    return Chunks(document, start, np.minimum(body, tokens.stop[document] - start))


def padded(tokens: Tokens, chunks: Chunks, chosen: Array, tokenizer: DocumentTokenizer) -> tuple[Array, Array]:
    """Lay windows out as a matrix: special tokens, ids, special tokens, padding.

    Args:
        tokens: What `chunks` were cut from.
        chunks: All windows.
        chosen: int64 [N], which of them.
        tokenizer: Knows the special tokens.

    Returns:
        int64 [N, L] ids and bool [N, L] True where there is a token; L is the longest of them.
    """
    before, after = len(tokenizer.prefix), len(tokenizer.suffix)
    start, length = chunks.start[chosen][:, None], chunks.length[chosen][:, None]
    place = np.arange(before + int(length.max()) + after)[None, :]
    inside = (place >= before) & (place < before + length)
    ids = np.full(inside.shape, tokenizer.pad, dtype=np.int64)
    ids[inside] = tokens.ids[(start + place - before)[inside]]
    ids[:, :before] = tokenizer.prefix
    rows = np.arange(len(chosen))[:, None]
    ids[rows, before + length + np.arange(after)[None, :]] = tokenizer.suffix
    return ids, place < before + length + after


def buckets(
    lengths: Array, max_tokens_per_batch: int, *, max_padding: float = 0.15, overhead: int = 2048
) -> list[Array]:
    """Group sequences of similar length, so that padding is at most `max_padding` of all tokens.

    Sorted by length and cut where Σ (tokens with padding) + overhead · groups is least; where that leaves too much
    padding, the overhead is taken for less, at last for nothing (no padding at all).

    Args:
        lengths: int64 [N], tokens of each sequence, > 0.
        max_tokens_per_batch: Most tokens of a group, padding included; a longer sequence is a group of its own.
        max_padding: Largest share of padding among all tokens.
        overhead: What one more call of the model costs, in tokens.

    Returns:
        int64 indices of each group, longest first. Every sequence is in one.
    """
    if not len(lengths):
        return []
    order = np.argsort(lengths, kind="stable")
    distinct, count = np.unique(lengths, return_counts=True)
    while True:
        groups = [
            order[first:stop]
            for low, high in _cuts(distinct, count, overhead)
            for first, stop in _split(lengths[order], low, high, max_tokens_per_batch)
        ]
        cost = sum(int(lengths[g].max()) * len(g) for g in groups)
        if cost - int(lengths.sum()) <= max_padding * cost or not overhead:
            return groups[::-1]
        overhead //= 4


def _cuts(lengths: Array, count: Array, overhead: int) -> list[tuple[int, int]]:
    """Ranges of sequences, ascending, whose groups are cheapest: dynamic programming over distinct lengths."""
    total = np.concatenate([[0], np.cumsum(count)])
    best, last = np.zeros(len(total)), np.zeros(len(total), dtype=np.int64)
    for j in range(1, len(total)):
        cost = best[:j] + lengths[j - 1] * (total[j] - total[:j]) + overhead
        last[j] = np.argmin(cost)
        best[j] = cost[last[j]]
    ranges, j = [], len(lengths)
    while j:
        ranges.append((int(total[last[j]]), int(total[j])))
        j = int(last[j])
    return ranges[::-1]


def _split(ascending: Array, low: int, high: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a range of sequences into parts of at most `most` tokens each, in ascending order."""
    parts = []
    while high > low:
        first = max(low, high - max(1, most // int(ascending[high - 1])))
        parts.append((first, high))
        high = first
    yield from parts[::-1]


def only_nearest(elements: Elements, most: int) -> Elements:
    """Return the documents of each row that are nearest to the prediction time, see `nearest`."""
    kept = nearest(elements.row.cpu().numpy(), elements.hours_before.cpu().numpy(), most)
    which = torch.from_numpy(kept).to(elements.row.device)
    index = None if elements.index is None else elements.index[which]
    values = tuple(str(elements.values[k]) for k in kept)
    return Elements(elements.row[which], elements.hours_before[which], values, index=index)
