"""TFRecords, against TensorBoard's reader and writer and Google's protocol buffers."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow as tensorboard_reader
from tensorboard.summary.writer.record_writer import RecordWriter

from mmnar_mimic4.tfrecords import crc32c, example, masked_crc32c, read_example, read_tfrecord, write_tfrecord


def messages() -> Any:
    """The class of ``tf.train.Example``, built from its definition in ``example.proto`` and ``feature.proto``."""
    descriptor = importlib.import_module("google.protobuf.descriptor_pb2")
    field = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, int, str | None], into: Any = None) -> Any:
        made = (file.message_type if into is None else into.nested_type).add(name=name)
        for title, number, label, kind, type_name in fields:
            made.field.add(name=title, number=number, label=label, type=kind, type_name=type_name)
        return made

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", 1, many, field.TYPE_BYTES, None))
    message("FloatList", ("value", 1, many, field.TYPE_FLOAT, None))
    message("Int64List", ("value", 1, many, field.TYPE_INT64, None))
    kinds = [
        (f"{k}_list", n, one, field.TYPE_MESSAGE, f".t.{k.capitalize()}List")
        for n, k in enumerate(("bytes", "float", "int64"), 1)
    ]
    feature = message("Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    for part in feature.field:
        part.oneof_index = 0
    features = message("Features", ("feature", 1, many, field.TYPE_MESSAGE, ".t.Features.FeatureEntry"))
    entry = message(
        "FeatureEntry",
        ("key", 1, one, field.TYPE_STRING, None),
        ("value", 2, one, field.TYPE_MESSAGE, ".t.Feature"),
        into=features,
    )
    entry.options.map_entry = True
    message("Example", ("features", 1, one, field.TYPE_MESSAGE, ".t.Features"))
    pool = importlib.import_module("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(file)
    factory = importlib.import_module("google.protobuf.message_factory")
    return factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = messages()


def contents(path: Path) -> list[bytes | None]:
    return [record.data for record in read_tfrecord(path)]


def test_crc32c_is_castagnolis() -> None:
    # the check value of the catalogue of parametrised CRC algorithms
    assert crc32c(b"123456789") == 0xE3069283
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 3, 4, 5, 8, 4095, 4096, 4097, 4098, 4099, 4100, 9001):
        data = rng.bytes(length)
        assert crc32c(data) == tensorboard_reader.crc32c(data), length
        assert masked_crc32c(data) == tensorboard_reader.masked_crc32c(data), length


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_bytes_are_those_of_tensorboard(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]) -> None:
    ours, theirs = (tmp_path_factory.mktemp("records") / name for name in ("ours", "theirs"))
    write_tfrecord(ours, records)
    with theirs.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
    assert ours.read_bytes() == theirs.read_bytes()
    assert contents(theirs) == records
    reader = tensorboard_reader.PyRecordReader_New(str(ours))
    read = []
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            break
        read.append(reader.record())
    assert read == records


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    records = [b"first", b"second", b"third"]
    write_tfrecord(tmp_path / "whole", records)
    whole = (tmp_path / "whole").read_bytes()
    starts = [0, 21, 43]
    assert [r.offset for r in read_tfrecord(tmp_path / "whole")] == starts
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0x10
        (tmp_path / "broken").write_bytes(broken)
        hit = max(k for k, start in enumerate(starts) if start <= at)
        in_head = at - starts[hit] < 12
        # nothing behind a damaged length can be found; behind damaged content everything can
        after = [] if in_head else records[hit + 1 :]
        assert contents(tmp_path / "broken") == [*records[:hit], None, *after], at
        faults = [r.offset for r in read_tfrecord(tmp_path / "broken") if r.data is None]
        assert faults == [starts[hit]]


def test_a_file_that_was_cut_off_ends_with_a_damaged_record(tmp_path: Path) -> None:
    records = [b"first", b"second"]
    write_tfrecord(tmp_path / "whole", records)
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        n = (length >= 21) + (length >= 43)
        left = length not in (0, 21)
        assert contents(tmp_path / "cut") == [*records[:n], *([None] if left else [])], length


def test_a_length_of_exabytes_reserves_no_memory(tmp_path: Path) -> None:
    head = struct.pack("<Q", 2**62)
    (tmp_path / "huge").write_bytes(head + struct.pack("<I", masked_crc32c(head)) + b"x" * 20)
    assert contents(tmp_path / "huge") == [None]


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.one_of(st.binary(max_size=200), st.lists(st.floats(width=32, allow_nan=False), max_size=50)),
        max_size=4,
    )
)
def test_examples_read_as_protocol_buffers_do(features: dict[str, bytes | list[float]]) -> None:
    ours = {k: v if isinstance(v, bytes) else np.asarray(v, np.float32) for k, v in features.items()}
    parsed = EXAMPLE.FromString(example(ours))
    assert set(parsed.features.feature) == set(features)
    theirs = EXAMPLE()
    for name, value in features.items():
        got = parsed.features.feature[name]
        if isinstance(value, bytes):
            assert list(got.bytes_list.value) == [value]
            theirs.features.feature[name].bytes_list.value.append(value)
        else:
            assert list(got.float_list.value) == value
            theirs.features.feature[name].float_list.value.extend(value)
            # an empty list would leave the kind open
            theirs.features.feature[name].float_list.SetInParent()
    theirs.features.feature["a number"].int64_list.value.extend([-1, 2**40])
    read = read_example(theirs.SerializeToString())
    for name, value in features.items():
        if isinstance(value, bytes):
            assert read[name] == [value]
        else:
            assert np.asarray(read[name]).tolist() == value


def test_floats_one_by_one_and_unknown_fields() -> None:
    def part(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    # three values, the middle one packed; fields 9 (eight bytes), 10 (four bytes) and 11 (a varint) are nobody's
    listed = b"\x0d" + struct.pack("<f", 1.5) + part(1, struct.pack("<f", 2.5)) + b"\x0d" + struct.pack("<f", 3.5)
    strange = b"\x49" + bytes(8) + b"\x55" + bytes(4) + b"\x58\x96\x01"
    data = part(1, part(1, part(1, b"embedding") + part(2, strange + part(2, listed)))) + strange
    assert list(EXAMPLE.FromString(data).features.feature["embedding"].float_list.value) == [1.5, 2.5, 3.5]
    assert np.asarray(read_example(data)["embedding"]).tolist() == [1.5, 2.5, 3.5]


@given(st.binary(max_size=60), st.integers(0, 80))
def test_any_bytes_are_read_or_refused(noise: bytes, cut: int) -> None:
    data = example({"embedding": np.arange(4, dtype=np.float32), "image/id": b"abc"})
    for broken in (noise, data[:cut] + noise):
        try:
            read_example(broken)
        except ValueError:
            continue
