"""Shipped MIMIC-IV configs from simulated raw files, with notes and films, to a tested model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_mimic4.simulate import simulate

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = {
    "mimic4": {"max_epochs": 2},
    "mimic4_icu": {"max_epochs": 2},
    "paper/mimic4": {"max_epochs": 4},
}


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("simulated") / "mimic4"
    simulate(folder, patients=600, seed=4, film_size=32, progress=False)
    return folder


@pytest.fixture(scope="module")
def text_model(extract: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small layer, and a tokenizer trained on the simulated reports."""
    path = tmp_path_factory.mktemp("hub") / "small"
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    reports = pl.read_csv(extract / "note" / "radiology.csv.gz", columns=["text"])["text"].head(200)
    tokenizer.train_from_iterator(reports.to_list(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=600, max_position_embeddings=512, **shape)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def image_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    return path


@pytest.mark.parametrize("name", SHORT)
def test_a_shipped_config_runs(
    name: str, mmnar: Any, extract: Path, text_model: Path, image_weights: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    encoders = config["model"]["init_args"]["encoders"]
    encoders["text"]["init_args"]["model"] = str(text_model)
    encoders["image"]["init_args"] |= {"model": "resnet10t", "weights": str(image_weights), "image_size": 32}
    if name == "paper/mimic4":
        # the schedule's three parts, an epoch or two each
        config["model"]["init_args"] |= {"pretrain_epochs": 1, "anneal_epochs": 2}
    config["trainer"] |= SHORT[name]
    config["trainer"] |= {"accelerator": "cpu", "log_every_n_steps": 1}
    config["data"]["init_args"] |= {
        "root": str(extract),
        "cxr_root": str(extract / "cxr"),
        "store": str(tmp_path / "s"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    said = ""
    for command in ("fit", "test", "predict"):
        done = mmnar(command, "--config", tmp_path / "config.yaml", "--run_dir", tmp_path / "run")
        assert done.status == 0, done.out
        said += done.out

    found = json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    assert all(0 <= found[f"{kind}auroc"] <= 1 for kind in ("", "rectified/"))
    predictions = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    tasks = config["data"]["init_args"].get("tasks") or ["mortality_30d"]
    for task in tasks:
        assert predictions[f"{task}/rectified"].is_between(0, 1).all()
    (store,) = (tmp_path / "s").glob("mimic4-*/manifest.json")
    manifest = json.loads(store.read_text())
    modalities = [modality["name"] for modality in manifest["schema"]["modalities"]]
    assert {"cxr", "radiology"} <= set(modalities)
    assert ("discharge" in modalities) == (name != "mimic4_icu")
    if name == "paper/mimic4":
        assert "labs" not in modalities
        assert "billing" in modalities
        assert manifest["notice"].startswith("Not prospective")
    # whoever wrote to the log, no note and no patient is in it
    reports = pl.read_csv(extract / "note" / "radiology.csv.gz")
    assert not any(
        sentence in said for text in reports["text"].head(50) for sentence in text.split("\n") if len(sentence) > 30
    )
    assert not any(str(subject) in said for subject in reports["subject_id"].unique())
