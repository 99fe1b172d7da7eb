"""Tables with notes and films, models made here, and a store of them: nothing is downloaded."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
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
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.__main__ import main
from mmnar_lightning.encoders import ImageEncoder, TextEncoder
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Modality, RecordStore
from mmnar_tables import TablesDataModule

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
    notes: list[dict[str, Any]] = []
    films: list[dict[str, Any]] = []
    for k, sample in enumerate(name):
        for _ in range(int(rng.integers(0, 4))):
            text = " ".join(rng.choice(WORDS[:10] if sick[k] else WORDS[10:], int(rng.integers(1, 60))))
            notes.append({"sample_id": sample, "hours_before": float(rng.integers(0, 99)), "text": text})
        for j in range(int(rng.integers(0, 3))):
            # one is larger than the others
            size = (100, 120) if len(films) == 3 else (40, 36)
            pixels = rng.integers(0, 200, size) + 50 * sick[k]
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


class Trace(Callback):
    """Losses of all steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


@dataclass(frozen=True)
class Source:
    """Tables, a store made of them, models, and a config over all.

    Args:
        root: The tables.
        stores: Folder of the store.
        bert: Folder of the text model.
        resnet: Weights of the image model.
        config: Config file.
        encoders: What it says of encoders.
    """

    root: Path
    stores: Path
    bert: Path
    resnet: Path
    config: Path
    encoders: dict[str, Any]

    @property
    def records(self) -> RecordStore:
        return RecordStore(next(p for p in self.stores.iterdir() if (p / "manifest.json").is_file()))

    def strings(self, modality: str) -> list[str]:
        found: list[str] = self.records.strings(f"modality/{modality}.arrow").to_pylist()
        return found

    def features(self, modality: str) -> list[Path]:
        return sorted(self.stores.glob(f"*.derived/features-{modality}-*"))

    def words(self, *arguments: Any) -> list[str]:
        """Command line of `mmnar embed`."""
        data = ("--data.init_args.root", self.root, "--data.init_args.store", self.stores)
        return [str(a) for a in ("--config", self.config, *data, "--shard_size", SHARD, *arguments)]

    def embed(self, *arguments: Any) -> int:
        return main(["embed", *self.words(*arguments)])

    def options(self, modality: str, **options: Any) -> dict[str, Any]:
        """The encoders of the config, with other options for one of them."""
        part = self.encoders[modality]
        return self.encoders | {modality: part | {"init_args": part["init_args"] | options}}

    def built(self, modality: str, **options: Any) -> TextEncoder | ImageEncoder:
        torch.manual_seed(0)
        given = self.encoders[modality]["init_args"] | options
        if modality == "notes":
            return TextEncoder(Modality("notes", "text"), 8, **given).eval()
        return ImageEncoder(Modality("films", "image"), 8, **given).eval()

    def data(self) -> TablesDataModule:
        return TablesDataModule(self.root, self.stores, batch_size=8, min_patients=1)

    def fit(self, folder: Path) -> tuple[list[float], dict[str, float], Trainer]:
        """Train from the same seed: losses, what validation found, and the trainer."""
        seed_everything(0, verbose=False)
        data, trace = self.data(), Trace()
        fitted = trainer(folder, trace)
        fitted.fit(MultimodalOutcomeModule(data.schema, encoders=self.encoders, width=8), datamodule=data)
        return trace.losses, {name: float(value) for name, value in fitted.callback_metrics.items()}, fitted

    def test(self, folder: Path, checkpoint: Path) -> dict[str, float]:
        """Test a checkpoint."""
        model = MultimodalOutcomeModule.load_from_checkpoint(checkpoint)
        (found,) = trainer(folder).test(model, self.data(), verbose=False)
        return dict(found)


def trainer(folder: Path, *callbacks: Callback) -> Trainer:
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
    )


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["mmnar"])


@pytest.fixture(scope="session")
def blank_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
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


@pytest.fixture
def source(blank_source: Source, tmp_path: Path) -> Source:
    """A store of one's own, of which nothing is embedded."""
    return replace(blank_source, stores=shutil.copytree(blank_source.stores, tmp_path / "stores"))


@pytest.fixture(scope="session")
def embedded(blank_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A store whose features are there; look, but don't touch."""
    stores = tmp_path_factory.mktemp("embedded") / "stores"
    done = replace(blank_source, stores=shutil.copytree(blank_source.stores, stores))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mmnar"])
        assert done.embed() == 0
    return done
