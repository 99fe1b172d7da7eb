"""`mmnar embed`: what frozen backbones make of a store, computed once, is what a run would compute on the fly."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import polars as pl
import pytest
import timm
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.__main__ import main
from mmnar_lightning.encoders import ImageEncoder, TextEncoder
from mmnar_lightning.encoders.decoding import FilmReader, UnreadableError
from mmnar_lightning.encoders.features import FeatureReader, FeatureShards, FeatureTable, described
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, Modality, RecordStore, StoreError
from mmnar_tables import TablesDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")
WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge") for b in ("ra", "ne", "si", "to")]
SAMPLES = 48
SHARD = 16


def text_model(path: Path) -> Path:
    """A two-layer model and its tokenizer, as `save_pretrained` leaves them."""
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=len(vocabulary),
            num_hidden_layers=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            **sizes,
        )
        BertModel(config).save_pretrained(path)
    return path


def image_weights(path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return path


def write_tables(root: Path) -> None:
    """Patients with a vital each, most with notes of several windows, half of them with films."""
    rng = np.random.default_rng(0)
    root.mkdir()
    (root / "films").mkdir()
    sick = rng.random(SAMPLES) < 0.5
    name = [f"s{k:03d}" for k in range(SAMPLES)]
    pl.DataFrame(
        {"sample_id": name, "patient_id": [f"p{k:03d}" for k in range(SAMPLES)], "site": "a", "death": sick}
    ).write_parquet(root / "samples.parquet")
    vital = pl.DataFrame({"sample_id": name, "hours_before": 1.0, "heart_rate": rng.normal(80, 9, SAMPLES)})
    vital.write_parquet(root / "vitals.parquet")
    notes, films = [], []
    for k, sample in enumerate(name):
        for _ in range(int(rng.integers(0, 4))):
            text = " ".join(rng.choice(WORDS[:10] if sick[k] else WORDS[10:], int(rng.integers(1, 60))))
            notes.append({"sample_id": sample, "hours_before": float(rng.integers(0, 99)), "text": text})
        for j in range(int(rng.integers(0, 3))):
            pixels = rng.integers(0, 200, (40, 36)) + 50 * sick[k]
            Image.fromarray(pixels.astype(np.uint8)).save(root / "films" / f"{k}-{j}.png")
            films.append({"sample_id": sample, "hours_before": float(j), "path": f"films/{k}-{j}.png"})
    pl.DataFrame(notes).write_parquet(root / "notes.parquet")
    pl.DataFrame(films).write_parquet(root / "films.parquet")
    kinds = {"vitals": "vector", "notes": "text", "films": "image"}
    described = {
        "dataset": "raw",
        "tasks": {"death": None},
        "modalities": {modality: {"kind": kind} for modality, kind in kinds.items()},
    }
    (root / "schema.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class Source:
    """Tables, a store made of them, models, and a config over all."""

    root: Path
    stores: Path
    bert: Path
    resnet: Path
    config: Path
    encoders: dict[str, Any]

    @property
    def store(self) -> Path:
        return next(p for p in self.stores.iterdir() if (p / "manifest.json").is_file())

    def features(self, modality: str, stores: Path | None = None) -> list[Path]:
        return sorted((stores or self.stores).glob(f"*.derived/features-{modality}-*"))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["mmnar"])


@pytest.fixture
def source(blank: Source, tmp_path: Path) -> Source:
    """A store of one's own, of which nothing is embedded."""
    stores = shutil.copytree(blank.stores, tmp_path / "stores")
    return Source(blank.root, stores, blank.bert, blank.resnet, blank.config, blank.encoders)


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("embed")
    write_tables(folder / "tables")
    bert, resnet = text_model(folder / "bert"), image_weights(folder / "resnet.safetensors")
    notes = {"model": str(bert), "max_tokens": 16, "stride": 4, "max_documents": 2}
    films = {"model": "test_resnet", "weights": str(resnet), "image_size": 32, "channels": 1}
    encoders = {
        "notes": {"class_path": "mmnar_lightning.encoders.TextEncoder", "init_args": notes},
        "films": {"class_path": "mmnar_lightning.encoders.ImageEncoder", "init_args": films},
    }
    data: dict[str, Any] = {"root": str(folder / "tables"), "store": str(folder / "stores"), "batch_size": 8}
    config = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False},
        "model": {"class_path": "MultimodalOutcomeModule", "init_args": {"width": 8, "encoders": encoders}},
        "data": {"class_path": "TablesDataModule", "init_args": data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    TablesDataModule(folder / "tables", folder / "stores").prepare_store()
    return Source(folder / "tables", folder / "stores", bert, resnet, folder / "config.yaml", encoders)


def embed(source: Source, *arguments: Any) -> int:
    given = ["--config", source.config, "--data.init_args.store", source.stores, "--shard_size", SHARD, *arguments]
    return main(["embed", *map(str, given), "--verbose"])


class Trace(Callback):
    """Losses of all steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def data_of(source: Source, **options: Any) -> TablesDataModule:
    return TablesDataModule(source.root, source.stores, batch_size=8, min_patients=1, **options)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(source: Source, folder: Path, encoders: dict[str, Any] | None = None, **options: Any) -> Any:
    """Train from the same seed: losses, what validation found, and the trainer."""
    seed_everything(0, verbose=False)
    data, trace = data_of(source), Trace()
    model = MultimodalOutcomeModule(data.schema, encoders=encoders or source.encoders, width=8)
    fitted = trainer(folder, trace, **options)
    fitted.fit(model, datamodule=data)
    metrics = {name: float(value) for name, value in fitted.callback_metrics.items()}
    return trace.losses, metrics, fitted


def assess(source: Source, folder: Path, checkpoint: Path) -> dict[str, float]:
    model = MultimodalOutcomeModule.load_from_checkpoint(checkpoint)
    (found,) = trainer(folder).test(model, data_of(source), verbose=False)
    return dict(found)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed, though it was there")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but features be read."""
    for owner, method in ((TextEncoder, "_windows"), (ImageEncoder, "_vectors"), (FilmReader, "__call__")):
        monkeypatch.setattr(owner, method, never)


def same(one: Mapping[str, float], other: Mapping[str, float]) -> None:
    assert one.keys() == other.keys()
    assert dict(one) == pytest.approx(dict(other), abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def embedded(blank: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A store whose features are there; look, but don't touch."""
    stores = shutil.copytree(blank.stores, tmp_path_factory.mktemp("embedded") / "stores")
    done = Source(blank.root, stores, blank.bert, blank.resnet, blank.config, blank.encoders)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mmnar"])
        assert embed(done) == 0
    return done


def test_a_fit_on_features_is_a_fit_on_the_fly(
    embedded: Source,
    source: Source,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO", "mmnar_lightning")
    timed: dict[str, float] = {}
    began = time.perf_counter()
    losses, metrics, run = fit(source, tmp_path)
    timed["on the fly"] = time.perf_counter() - began
    assert caplog.text.count("computed on the fly; `mmnar embed` would do it once") == 2
    checkpoint = tmp_path / "whole.ckpt"
    run.save_checkpoint(checkpoint)
    tested = assess(source, tmp_path, checkpoint)
    caplog.clear()
    with monkeypatch.context() as patch:
        forbid(patch)
        began = time.perf_counter()
        cached, found, rerun = fit(embedded, tmp_path)
        timed["from features"] = time.perf_counter() - began
    for modality in ("notes", "films"):
        assert caplog.text.count(f"frozen features of {modality}: read from {embedded.store}.derived") == 1
    assert len(losses) > 6
    np.testing.assert_allclose(cached, losses, atol=1e-5)
    same(found, metrics)
    # its checkpoint works without features, with features and without models, and with neither
    rerun.save_checkpoint(tmp_path / "features.ckpt")
    same(assess(source, tmp_path, tmp_path / "features.ckpt"), tested)
    for path in (source.bert, source.resnet):
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        with monkeypatch.context() as patch:
            forbid(patch)
            same(assess(embedded, tmp_path, tmp_path / "features.ckpt"), tested)
        same(assess(source, tmp_path, tmp_path / "features.ckpt"), tested)
    finally:
        for path in (source.bert, source.resnet):
            path.with_name(f"{path.name}.away").rename(path)
    with capsys.disabled():
        print(f"\ntwo epochs on the fly {timed['on the fly']:.2f} s, from features {timed['from features']:.2f} s")


def test_no_text_or_film_is_needed_any_more(source: Source, embedded: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(embedded.store)
    for modality, encoder in encoders_of(embedded).items():
        encoder.prepare(store)
        reader = encoder.reader()
        assert isinstance(reader, FeatureReader)
        count = len(store.strings(f"modality/{modality}.arrow"))
        index = torch.arange(count)
        read = reader(Elements(index, torch.full((count,), torch.nan), (), index=index))
        assert read.part_of is not None
        values = [str(embedded.root / v) if modality == "films" else v for v in strings(store, modality)]
        given = Elements(index, torch.zeros(count), tuple(values))
        opened = encoder.opener()
        vectors, element = encoder.embed(given if opened is None else opened(given))
        torch.testing.assert_close(read.values, vectors, rtol=1e-4, atol=1e-5)
        assert torch.equal(read.part_of, element)
        assert (len(element) > 2 * count) == (modality == "notes")


def strings(store: RecordStore, modality: str) -> list[str]:
    found: list[str] = store.strings(f"modality/{modality}.arrow").to_pylist()
    return found


def encoders_of(source: Source, **options: Any) -> dict[str, TextEncoder | ImageEncoder]:
    notes, films = (source.encoders[name]["init_args"] for name in ("notes", "films"))
    torch.manual_seed(0)
    return {
        "notes": TextEncoder(Modality("notes", "text"), 8, **notes | options.get("notes", {})).eval(),
        "films": ImageEncoder(Modality("films", "image"), 8, **films | options.get("films", {})).eval(),
    }


def test_a_second_embed_does_nothing(
    embedded: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in embedded.store.with_name(f"{embedded.store.name}.derived").rglob("*")}
    assert any("features-notes" in str(p) for p in before)
    forbid(monkeypatch)
    capsys.readouterr()
    assert embed(embedded) == 0
    assert capsys.readouterr().out.split() == [str(embedded.features(m)[0]) for m in ("notes", "films")]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(embedded.stores.glob("*.derived/.*shards"))


def contents(folders: list[Path]) -> dict[str, bytes]:
    (folder,) = folders
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("moment", "count", "shards"), [("renamed", 1, 1), ("rename", 4, 3)])
def test_a_killed_embed_goes_on_where_it_was(
    moment: str, count: int, shards: int, source: Source, embedded: Source, mmnar: Any
) -> None:
    data = ("--config", source.config, "--data.init_args.store", source.stores, "--shard_size", SHARD)
    end = {"moment": moment, "count": count, "how": "kill"}
    environment = {"HF_HUB_OFFLINE": "1"}
    killed = mmnar("embed", *data, end=end, environment=environment)
    assert killed.status == -9, killed.out
    kept = {p: p.stat().st_mtime_ns for p in source.stores.glob("*.derived/.*.shards/*.npz")}
    assert len(kept) == shards
    assert not source.features("notes")
    written: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        write = FeatureShards.write
        patch.setattr(FeatureShards, "write", lambda *given: (written.append(given[1:3]), write(*given)))
        assert embed(source) == 0
    store = RecordStore(source.store)
    whole = sum(-(-len(strings(store, m)) // SHARD) for m in ("notes", "films"))
    assert len(written) == whole - shards
    for modality in ("notes", "films"):
        assert contents(source.features(modality)) == contents(embedded.features(modality))
    assert not list(source.stores.glob("*.derived/.*shards"))


def test_two_processes_embed_what_one_does(source: Source, embedded: Source, mmnar: Any) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    data = ("--config", source.config, "--data.init_args.store", source.stores, "--shard_size", SHARD)
    words = [*map(str, data), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ranks = [shared | {"LOCAL_RANK": str(rank), "HF_HUB_OFFLINE": "1"} for rank in range(2)]
    done = mmnar.together([{"arguments": ["embed", *words], "environment": e, "strict": False} for e in ranks])
    assert [d.status for d in done] == [0, 0], "\n".join(d.out for d in done)
    for modality in ("notes", "films"):
        assert contents(source.features(modality)) == contents(embedded.features(modality))


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
def test_what_changes_the_features_changes_their_key(change: str, embedded: Source) -> None:
    modality, options = CHANGES[change]
    store = RecordStore(embedded.store)
    usual, other = encoders_of(embedded)[modality], encoders_of(embedded, **{modality: options})[modality]
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
def test_what_does_not_change_the_features_finds_them(change: str, embedded: Source) -> None:
    modality, options = UNCHANGED[change]
    encoder = encoders_of(embedded, **{modality: options})[modality]
    encoder.prepare(RecordStore(embedded.store))
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
def test_what_is_trained_or_drawn_has_no_features(modality: str, options: dict[str, Any], embedded: Source) -> None:
    encoder = encoders_of(embedded, **{modality: options})[modality]
    assert encoder.frozen() is None
    encoder.prepare(RecordStore(embedded.store))
    assert not isinstance(encoder.reader(), FeatureReader)


def test_other_weights_and_another_precision_are_not_mixed_up(
    embedded: Source, caplog: pytest.LogCaptureFixture
) -> None:
    store = RecordStore(embedded.store)
    for modality, encoder in encoders_of(embedded).items():
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


def test_weights_saved_anew_are_embedded_anew(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(source.resnet)
    weights["conv1.weight" if "conv1.weight" in weights else next(iter(weights))] += 1
    save_file(weights, tmp_path / "other.safetensors")
    films = source.encoders["films"]["init_args"] | {"weights": str(tmp_path / "other.safetensors")}
    folders = []
    for chosen in (source.encoders["films"]["init_args"], films):
        part = {"class_path": source.encoders["films"]["class_path"], "init_args": chosen}
        assert embed(source, "--model.init_args.encoders", json.dumps({"films": part})) == 0
        folders.append(capsys.readouterr().out.split()[-1])
    assert len(source.features("films")) == 2
    assert sorted(folders) == [str(p) for p in source.features("films")]
    assert not source.features("notes"), "a modality without an encoder in the config has none"
    first, second = (FeatureTable(Path(p)).take(np.arange(5))[0] for p in folders)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_features_take_half_the_room_where_that_is_asked(
    dtype: str, tolerance: float, source: Source, embedded: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embed(source, "--dtype", dtype) == 0
    store = RecordStore(source.store)
    for modality, encoder in encoders_of(source).items():
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
    assert embed(source) == 0
    for modality, encoder in encoders_of(source).items():
        encoder.prepare(store)
        reader = encoder.reader()
        assert isinstance(reader, FeatureReader)
        assert reader.table.dtype == torch.float32
        assert len(source.features(modality)) == 2


def test_films_that_could_not_be_read_are_left_out_as_on_the_fly(blank: Source, tmp_path: Path) -> None:
    root = shutil.copytree(blank.root, tmp_path / "tables")
    stores = tmp_path / "stores"
    TablesDataModule(root, stores).prepare_store()
    broken = sorted((root / "films").iterdir())[3]
    broken.write_bytes(b"")
    count = {"init_args": blank.encoders["films"]["init_args"] | {"unreadable": "count"}}
    encoders = {"films": blank.encoders["films"] | count}
    source = Source(root, stores, blank.bert, blank.resnet, blank.config, encoders)
    options = ("--data.init_args.root", root, "--model.init_args.encoders")
    assert embed(source, *options, json.dumps({"films": blank.encoders["films"]})) == 1, "an error is asked for"
    assert not source.features("films")
    losses, metrics, _ = fit(source, tmp_path)
    assert metrics["val/unreadable_films"] + metrics["train/unreadable_films"] >= 1
    assert embed(source, *options, json.dumps(encoders)) == 0
    cached, found, _ = fit(source, tmp_path)
    np.testing.assert_allclose(cached, losses, atol=1e-5)
    same(found, metrics)
    store = RecordStore(source.store)
    strict = encoders_of(source, films={"unreadable": "error"})["films"]
    strict.prepare(store)
    reader = strict.reader()
    assert reader is not None
    index = torch.arange(len(strings(store, "films")))
    with pytest.raises(UnreadableError, match="1 of .* elements of a batch could not be read when"):
        reader(Elements(index, torch.zeros(len(index)), (), index=index))


def test_mmnar_fit_reads_features_with_workers_too(embedded: Source, mmnar: Any, tmp_path: Path) -> None:
    data = ("--data.init_args.store", embedded.stores, "--data.init_args.workers", 1)
    done = mmnar(
        *("fit", "--config", embedded.config, *data, "--run_dir", tmp_path / "run", "--data.init_args.min_patients", 1),
        environment={"HF_HUB_OFFLINE": "1"},
        strict=False,
    )
    assert done.status == 0, done.out
    for modality in ("notes", "films"):
        assert len(re.findall(f"frozen features of {modality}: read from", done.out)) == 1


def test_nothing_to_embed_is_an_error_that_says_why(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    trained = {"notes": {**source.encoders["notes"]}}
    trained["notes"]["init_args"] = trained["notes"]["init_args"] | {"train": "full"}
    assert main(["embed", "--config", str(source.config), "--model.init_args.encoders", json.dumps(trained)]) == 1
    assert "no encoder has a frozen backbone" in capsys.readouterr().err
    assert main(["embed", "--config", str(source.config), "--dtype", "int8"]) == 1
    assert "'float32', 'bfloat16', 'float16'" in capsys.readouterr().err


def test_shards_are_checked(embedded: Source, source: Source) -> None:
    store = RecordStore(source.store)
    shards = FeatureShards(store, "notes", described("notes", {}, "32-true", "float16"), 40)
    count = torch.ones(40, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 of 40 vectors of a shard are not finite in float16"):
        shards.write(0, 40, torch.tensor([1e6] + [0.0] * 39)[:, None], count)
    with pytest.raises(ValueError, match="40 of 40 vectors of a shard are not finite$"):
        shards.write(0, 40, torch.full((40, 2), torch.nan), count)
    shards.write(0, 40, torch.zeros(40, 2), count)
    assert shards.missing() == [(40, len(strings(store, "notes")))]
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


def test_frozen_features_of_some_films_alone(embedded: Source) -> None:
    """The film nearest to the prediction time is chosen as on the fly, in every row of a batch."""
    store = RecordStore(embedded.store)
    encoder = encoders_of(embedded, films={"max_films": 1})["films"]
    row, hours = torch.tensor([0, 0, 1, 3]), torch.tensor([5.0, 2.0, torch.nan, 0.0])
    index = torch.tensor([7, 3, 0, 3])
    paths = tuple(str(embedded.root / strings(store, "films")[k]) for k in index.tolist())
    elements, rows = Elements(row, hours, paths, index=index), torch.tensor([0, 1, 3])
    expected = encoder(elements, rows)[0]
    encoder.prepare(store)
    reader = encoder.reader()
    assert reader is not None
    read = reader(elements)
    assert (read.row.tolist(), read.index.tolist()) == ([0, 1, 3], [3, 0, 3])  # type: ignore[union-attr]
    torch.testing.assert_close(encoder(read, rows)[0], expected, rtol=1e-4, atol=1e-5)
    # of no store: opened as ever
    loose = reader(Elements(row, hours, paths))
    assert loose.part_of is None
    torch.testing.assert_close(encoder(loose, rows)[0], expected, rtol=1e-4, atol=1e-5)
