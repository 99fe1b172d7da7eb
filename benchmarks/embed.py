"""Time of a training epoch with frozen backbones computed on the fly, and with what `mmnar embed` computed once.

Run: ``python benchmarks/embed.py [--samples 256] [--out benchmarks/results/embed.json]``. Models are of the usual
architectures with weights drawn at random, which cost as much as any: a small BERT over notes, a ResNet-18 over films.
The best of several epochs is kept, since other work on the machine only ever slows one down. An epoch is from its first
batch to its last, loading and optimiser included, validation not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measuring import RESULTS, machine, save
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.commands._embedding import embed
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Modality, RecordDataModule, RecordSchema, SplitSettings, Task, write_store

TARGET = 10
BATCH = 32
OBSERVED = 0.5
WORDS = [f"w{k}" for k in range(2000)]
BERT: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
RESNET, SIDE = "resnet18", 512


class StoreData(RecordDataModule):
    """A datamodule over a store that is there already."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path.parent, **options)
        self.path = path

    def prepare_store(self) -> Path:
        return self.path


def write_samples(folder: Path, n: int) -> Path:
    """Write a store of n samples, half of them with three notes of about 300 words, half with a film of 512 pixels."""
    rng = np.random.default_rng(0)
    (folder / "films").mkdir(parents=True)
    sample = np.arange(n)
    noted, filmed = (np.flatnonzero(rng.random(n) < OBSERVED) for _ in range(2))
    texts = [" ".join(rng.choice(WORDS, max(5, int(rng.lognormal(5.6, 0.5))))) for _ in range(3 * len(noted))]
    paths = []
    for k in filmed:
        paths.append(str(folder / "films" / f"{k}.png"))
        coarse = Image.fromarray(rng.integers(0, 255, (32, 32)).astype(np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(paths[-1])
    hours = pl.lit(1.0, pl.Float32)
    elements = {
        "vitals": pl.DataFrame({"sample": sample, "heart_rate": rng.normal(80, 9, n)}).with_columns(hours_before=hours),
        "notes": pl.DataFrame({"sample": np.repeat(noted, 3), "text": texts}).with_columns(hours_before=hours),
        "films": pl.DataFrame({"sample": filmed, "path": paths}).with_columns(hours_before=hours),
    }
    kinds = (Modality("vitals", "vector", ("heart_rate",)), Modality("notes", "text"), Modality("films", "image"))
    samples = pl.DataFrame(
        {
            "patient": [f"p{k}" for k in sample],
            "site": ["s"] * n,
            "prediction_time": np.zeros(n),
            "label/outcome": rng.random(n) < 0.5,
        }
    )
    schema = RecordSchema(kinds, (Task("outcome"),))
    return write_store(folder, "embed", "all", f"{n:016d}", schema, samples, elements, {})


def write_models(folder: Path) -> dict[str, Any]:
    """Save both models, and return the encoders that read them."""
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: k for k, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "bert")
    BertModel(BertConfig(vocab_size=len(vocabulary), **BERT)).save_pretrained(folder / "bert")
    weights = folder / "resnet.safetensors"
    save_file(timm.create_model(RESNET, num_classes=2).state_dict(), weights)
    encoders = "mmnar_lightning.encoders."
    notes = {"model": str(folder / "bert"), "max_tokens": 256}
    films = {"model": RESNET, "weights": str(weights), "channels": 1}
    return {
        "notes": {"class_path": encoders + "TextEncoder", "init_args": notes},
        "films": {"class_path": encoders + "ImageEncoder", "init_args": films},
    }


class Epochs(Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def epoch_seconds(
    path: Path, encoders: dict[str, Any], modality: str, epochs: int, accelerator: str
) -> tuple[float, float]:
    """Best seconds of an epoch over vitals and a modality, and its last loss."""
    seed_everything(0, verbose=False)
    data, timed = data_of(path, modality), Epochs()
    model = MultimodalOutcomeModule(data.schema, encoders=encoders, width=64)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=[timed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return min(timed.seconds), float(trainer.callback_metrics["train/loss"])


def data_of(path: Path, modality: str) -> StoreData:
    splits = SplitSettings(val=0.1, calibration=0.1)
    return StoreData(path, modalities=["vitals", modality], splits=splits, min_patients=1, batch_size=BATCH)


def measure(folder: Path, n: int, epochs: int, accelerator: str) -> dict[str, dict[str, float]]:
    path, both = write_samples(folder, n), write_models(folder)
    found = {}
    for modality in ("notes", "films"):
        encoders = {modality: both[modality]}
        slow, loss = epoch_seconds(path, encoders, modality, epochs, accelerator)
        data = data_of(path, modality)
        began = time.perf_counter()
        embed(data, MultimodalOutcomeModule(data.schema, encoders=encoders), {"accelerator": accelerator, "devices": 1})
        once = time.perf_counter() - began
        # short ones are disturbed more easily
        fast, _ = epoch_seconds(path, encoders, modality, 5 * epochs, accelerator)
        _, same = epoch_seconds(path, encoders, modality, epochs, accelerator)
        found[modality] = {
            "on_the_fly_seconds": round(slow, 3),
            "from_features_seconds": round(fast, 3),
            "times_faster": round(slow / fast, 1),
            "embedding_all_splits_seconds": round(once, 3),
            "difference_of_last_loss": float(f"{abs(loss - same):.1e}"),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "embed.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.samples, arguments.epochs, arguments.accelerator)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    result = {
        "what": f"seconds of a training epoch at batch {BATCH}, a frozen backbone's modality observed in half of the "
        f"samples; best of {arguments.epochs} epochs, of 5 times as many from features",
        "samples": arguments.samples,
        "notes": {"model": {"type": "bert", **BERT}, "window": 256, "documents_a_sample": 3},
        "films": {"model": RESNET, "side": SIDE, "films_a_sample": 1},
        "epochs": found,
        "target_times_faster": TARGET,
    }
    save(arguments.out, result, ("torch", "lightning", "transformers", "timm"), machine(gpu=gpu))


if __name__ == "__main__":
    main()
