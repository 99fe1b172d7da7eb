"""TFRecord files without TensorFlow: the framing with its checksums, and the ``tf.train.Example`` inside.

A record is its length n (uint64), the masked CRC-32C of these 8 bytes, n bytes, and their masked CRC-32C, all little
endian; the mask of a checksum c is (c ≫ 15 | c ≪ 17) + a282ead8₁₆ modulo 2³². An Example is a protocol buffer: a map
from names to lists of bytes, float32 or int64.

Sources: "TFRecord and tf.train.Example", TensorFlow documentation, section "TFRecords format details";
``tensorflow/core/example/{example,feature}.proto``; "Encoding", Protocol Buffers documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feature = list[bytes] | NDArray[np.float32]

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_BLOCK = 4096  # bytes taken at once
_MASK = 0xA282EAD8
_ALL = 0xFFFFFFFF
_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Record:
    """A record of a file.

    Args:
        offset: Where it begins, in bytes.
        data: What it holds; None where its checksum does not fit or the file ends inside it.
    """

    offset: int
    data: bytes | None


def read_tfrecord(path: Path) -> Iterator[Record]:
    """Read the records of a file, one after another.

    A record whose content is damaged is passed over; behind a damaged length nothing can be found, so that the file
    ends there.
    """
    left = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while head := file.read(_HEAD.size):
            whole = len(head) == _HEAD.size
            length, check = _HEAD.unpack(head) if whole else (0, 0)
            if not whole or check != masked_crc32c(head[:8]) or offset + _HEAD.size + length + _TAIL.size > left:
                yield Record(offset, None)
                return
            data, tail = file.read(length), file.read(_TAIL.size)
            yield Record(offset, data if tail == _TAIL.pack(masked_crc32c(data)) else None)
            offset += _HEAD.size + length + _TAIL.size


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    """Write records to a file, in order."""
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + _TAIL.pack(masked_crc32c(length)) + data + _TAIL.pack(masked_crc32c(data)))


def masked_crc32c(data: bytes) -> int:
    """The checksum of a record."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & _ALL


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of bytes.

    The remainder of a block is the exclusive or of what each byte contributes from its distance to the block's end, the
    first four after they took up the remainder before it; the contributions come from a table.
    """
    state = _ALL
    table = _contributions()
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start).copy()
        n = len(block)
        taken = np.frombuffer(state.to_bytes(4, "little"), np.uint8)[:n]
        block[: len(taken)] ^= taken
        state = (state >> 8 * n if n < 4 else 0) ^ int(np.bitwise_xor.reduce(table[np.arange(n)[::-1], block]))
    return state ^ _ALL


@cache
def _contributions() -> NDArray[np.uint32]:
    """What a byte value contributes at a distance from the end, [_BLOCK, 256]."""
    rows: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        rows = ((rows >> 1) ^ (rows & 1) * np.uint32(_POLYNOMIAL)).astype(np.uint32)
    table = np.empty((_BLOCK, 256), dtype=np.uint32)
    table[0] = rows
    for distance in range(1, _BLOCK):
        table[distance] = rows[table[distance - 1] & 0xFF] ^ (table[distance - 1] >> 8)
    return table


def example(features: Mapping[str, bytes | NDArray[np.float32]]) -> bytes:
    """Serialise a ``tf.train.Example``: each feature one string of bytes, or floats."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            listed = _field(1, _field(1, value))
        else:
            listed = _field(2, _field(1, np.asarray(value, dtype="<f4").tobytes()))
        entries += _field(1, _field(1, name.encode()) + _field(2, listed))
    return _field(1, entries)


def read_example(data: bytes) -> dict[str, Feature]:
    """Read the features of a serialised ``tf.train.Example``: bytes and floats; whole numbers are left out.

    Raises:
        ValueError: If the bytes are no Example.
    """
    features: dict[str, Feature] = {}
    for listing in _parts(data, 1):
        for entry in _parts(listing, 1):
            name = b"".join(list(_parts(entry, 1))[-1:]).decode()
            for feature in _parts(entry, 2):
                for number, _, value in _fields(feature):
                    if number == 1 and not isinstance(value, int):
                        features[name] = list(_parts(value, 1))
                    elif number == 2 and not isinstance(value, int):
                        features[name] = _floats(value)
    return features


def _floats(data: bytes) -> NDArray[np.float32]:
    """Values of a FloatList: packed, one by one, or both."""
    packed = b"".join(value for number, wire, value in _fields(data) if number == 1 and wire in (_BYTES, _FOUR))
    if len(packed) % 4:
        raise ValueError("a list of floats ends inside one")
    return np.frombuffer(packed, "<f4").astype(np.float32)


def _parts(data: bytes, field: int) -> Iterator[bytes]:
    return (
        value
        for number, wire, value in _fields(data)
        if number == field and wire == _BYTES and not isinstance(value, int)
    )


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field: bytes, or an integer for a varint."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_EIGHT, _FOUR):
            length = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"wire type {wire} is none")
        if at + length > len(data):
            raise ValueError("a field runs past the end")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for k in range(10):
        if at + k >= len(data):
            break
        value |= (data[at + k] & 0x7F) << 7 * k
        if data[at + k] < 0x80:
            return value, at + k + 1
    raise ValueError("a number does not end")


def _field(number: int, value: bytes) -> bytes:
    length, n = bytearray(), len(value)
    while n > 0x7F:
        length.append(n & 0x7F | 0x80)
        n >>= 7
    length.append(n)
    return bytes([number << 3 | _BYTES]) + bytes(length) + value
