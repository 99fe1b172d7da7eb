"""`mmnar embed`: what frozen backbones make of a store, computed once, is what a run would compute on the fly."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmnar_lightning.encoders import ImageEncoder, TextEncoder
from mmnar_lightning.encoders.decoding import FilmReader, UnreadableError
from mmnar_lightning.encoders.features import FeatureReader, FeatureShards, FeatureTable
from mmnar_lightning.records import Elements

BOTH = ("notes", "films")
SHARD = 16


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed, though it was there")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but features be read."""
    for owner, method in ((TextEncoder, "_windows"), (ImageEncoder, "_vectors"), (FilmReader, "__call__")):
        monkeypatch.setattr(owner, method, never)


def same(one: Mapping[str, float], other: Mapping[str, float]) -> None:
    assert one.keys() == other.keys()
    assert dict(one) == pytest.approx(dict(other), abs=1e-5, nan_ok=True)


def test_a_fit_on_features_is_a_fit_on_the_fly(
    embedded: Any,
    source: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO", "mmnar_lightning")
    timed: dict[str, float] = {}
    began = time.perf_counter()
    losses, metrics, run = source.fit(tmp_path)
    timed["on the fly"] = time.perf_counter() - began
    assert caplog.text.count("computed on the fly; `mmnar embed` would do it once") == 2
    checkpoint = tmp_path / "whole.ckpt"
    run.save_checkpoint(checkpoint)
    tested = source.test(tmp_path, checkpoint)
    caplog.clear()
    with monkeypatch.context() as patch:
        forbid(patch)
        began = time.perf_counter()
        cached, found, rerun = embedded.fit(tmp_path)
        timed["from features"] = time.perf_counter() - began
    for modality in BOTH:
        assert caplog.text.count(f"frozen features of {modality}: read from {embedded.records.path}.derived") == 1
    assert len(losses) > 6
    np.testing.assert_allclose(cached, losses, atol=1e-5)
    same(found, metrics)
    # its checkpoint works without features, with features and without models, and with neither
    rerun.save_checkpoint(tmp_path / "features.ckpt")
    same(source.test(tmp_path, tmp_path / "features.ckpt"), tested)
    for path in (source.bert, source.resnet):
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        with monkeypatch.context() as patch:
            forbid(patch)
            same(embedded.test(tmp_path, tmp_path / "features.ckpt"), tested)
        same(source.test(tmp_path, tmp_path / "features.ckpt"), tested)
    finally:
        for path in (source.bert, source.resnet):
            path.with_name(f"{path.name}.away").rename(path)
    with capsys.disabled():
        print(f"\ntwo epochs on the fly {timed['on the fly']:.2f} s, from features {timed['from features']:.2f} s")


def test_no_text_or_film_is_needed_any_more(source: Any, embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = embedded.records
    for modality in BOTH:
        encoder = embedded.built(modality)
        encoder.prepare(store)
        reader = encoder.reader()
        assert isinstance(reader, FeatureReader)
        count = len(store.strings(f"modality/{modality}.arrow"))
        index = torch.arange(count)
        read = reader(Elements(index, torch.full((count,), torch.nan), (), index=index))
        assert read.part_of is not None
        values = [str(embedded.root / v) if modality == "films" else v for v in embedded.strings(modality)]
        given = Elements(index, torch.zeros(count), tuple(values))
        opened = encoder.opener()
        vectors, element = encoder.embed(given if opened is None else opened(given))
        torch.testing.assert_close(read.values, vectors, rtol=1e-4, atol=1e-5)
        assert torch.equal(read.part_of, element)
        assert (len(element) > 2 * count) == (modality == "notes")


def test_a_second_embed_does_nothing(
    embedded: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        p: p.stat().st_mtime_ns
        for p in embedded.records.path.with_name(f"{embedded.records.path.name}.derived").rglob("*")
    }
    assert any("features-notes" in str(p) for p in before)
    forbid(monkeypatch)
    capsys.readouterr()
    assert embedded.embed() == 0
    assert capsys.readouterr().out.split() == [str(embedded.features(m)[0]) for m in BOTH]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(embedded.stores.glob("*.derived/.*shards"))


def contents(folders: list[Path]) -> dict[str, bytes]:
    (folder,) = folders
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("moment", "count", "shards"), [("renamed", 1, 1), ("rename", 4, 3)])
def test_a_killed_embed_goes_on_where_it_was(
    moment: str, count: int, shards: int, source: Any, embedded: Any, mmnar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = {"moment": moment, "count": count, "how": "kill"}
    killed = mmnar("embed", *source.words(), end=end, environment={"HF_HUB_OFFLINE": "1"})
    assert killed.status == -9, killed.out
    assert len(list(source.stores.glob("*.derived/.*.shards/*.npz"))) == shards
    assert not source.features("notes")
    written: list[tuple[int, int]] = []
    write = FeatureShards.write

    def counted(self: FeatureShards, first: int, stop: int, *given: Any) -> None:
        written.append((first, stop))
        write(self, first, stop, *given)

    monkeypatch.setattr(FeatureShards, "write", counted)
    assert source.embed() == 0
    assert len(written) == sum(-(-len(source.strings(m)) // SHARD) for m in BOTH) - shards
    for modality in BOTH:
        assert contents(source.features(modality)) == contents(embedded.features(modality))
    assert not list(source.stores.glob("*.derived/.*shards"))


def test_two_processes_embed_what_one_does(source: Any, embedded: Any, mmnar: Any) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    words = source.words("--trainer.devices", 2, "--trainer.strategy", "ddp")
    ranks = [shared | {"LOCAL_RANK": str(rank), "HF_HUB_OFFLINE": "1"} for rank in range(2)]
    done = mmnar.together([{"arguments": ["embed", *words], "environment": e, "strict": False} for e in ranks])
    assert [d.status for d in done] == [0, 0], "\n".join(d.out for d in done)
    for modality in BOTH:
        assert contents(source.features(modality)) == contents(embedded.features(modality))


def test_weights_saved_anew_are_embedded_anew(source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {name: 1.1 * w if w.is_floating_point() else w for name, w in load_file(source.resnet).items()}
    save_file(weights, tmp_path / "other.safetensors")
    folders = []
    for options in ({}, {"weights": str(tmp_path / "other.safetensors")}):
        encoders = json.dumps(source.options("films", **options))
        assert source.embed("--model.init_args.encoders", encoders) == 0
        folders.append(capsys.readouterr().out.split()[-1])
    assert len(source.features("films")) == 2
    assert sorted(folders) == [str(p) for p in source.features("films")]
    assert len(source.features("notes")) == 1
    first, second = (FeatureTable(Path(p)).take(np.arange(5))[0] for p in folders)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_features_take_half_the_room_where_that_is_asked(
    dtype: str, tolerance: float, source: Any, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.embed("--dtype", dtype) == 0
    store = source.records
    for modality in BOTH:
        encoder = source.built(modality)
        (folder,) = source.features(modality)
        exact, table = FeatureTable(embedded.features(modality)[0]), FeatureTable(folder)
        index = np.random.default_rng(0).permutation(len(table))
        (wanted, count), (found, number) = exact.take(index), table.take(index)
        assert found.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(number, count)
        torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=1e-6)
        assert not torch.equal(found.float(), wanted)
        encoder.prepare(store)
        reader = encoder.reader()
        assert isinstance(reader, FeatureReader)
        assert reader.table.folder == folder
    # exact ones come first, where there are both
    assert source.embed() == 0
    for modality in BOTH:
        encoder = source.built(modality)
        encoder.prepare(store)
        reader = encoder.reader()
        assert isinstance(reader, FeatureReader)
        assert reader.table.dtype == torch.float32
        assert len(source.features(modality)) == 2


def test_films_that_could_not_be_read_are_left_out_as_on_the_fly(
    source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the store holds them, since they can be opened; here one is called too large
    limits = {"max_pixels": 5000}
    strict = json.dumps(source.options("films", **limits))
    source = replace(source, encoders=source.options("films", unreadable="count", **limits))
    assert source.embed("--model.init_args.encoders", strict) == 1
    assert "rows of modality/films.arrow: 3 (120 × 100 pixels" in capsys.readouterr().err
    assert not source.features("films")
    losses, metrics, _ = source.fit(tmp_path)
    assert source.embed("--model.init_args.encoders", json.dumps(source.encoders)) == 0
    cached, found, _ = source.fit(tmp_path)
    np.testing.assert_allclose(cached, losses, atol=1e-5)
    same(found, metrics)
    count = len(source.strings("films"))
    for unreadable in ("count", "error"):
        encoder = source.built("films", unreadable=unreadable, **limits)
        encoder.prepare(source.records)
        reader = encoder.reader()
        index = torch.arange(count)
        every = Elements(index, torch.zeros(count), (), index=index)
        if unreadable == "count":
            assert reader(every).unreadable == 1
            assert reader(every).index.tolist() == [k for k in range(count) if k != 3]
    with pytest.raises(UnreadableError, match=f"1 of {count} elements of a batch could not be read when"):
        reader(every)


def test_mmnar_fit_reads_features_with_workers_too(embedded: Any, mmnar: Any, tmp_path: Path) -> None:
    data = ("--data.init_args.store", embedded.stores, "--data.init_args.workers", 1)
    done = mmnar(
        *("fit", "--config", embedded.config, *data, "--run_dir", tmp_path / "run", "--data.init_args.min_patients", 1),
        environment={"HF_HUB_OFFLINE": "1"},
        strict=False,
    )
    assert done.status == 0, done.out
    for modality in BOTH:
        assert len(re.findall(f"frozen features of {modality}: read from", done.out)) == 1


def test_nothing_to_embed_is_an_error_that_says_why(source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = replace(source, encoders=source.options("notes", train="full")).options("films", augment=True)
    assert source.embed("--model.init_args.encoders", json.dumps(trained)) == 1
    assert "no encoder has a frozen backbone" in capsys.readouterr().err
    assert source.embed("--dtype", "int8") == 1
    assert "'float32', 'bfloat16', 'float16'" in capsys.readouterr().err
