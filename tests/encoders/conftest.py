"""A text model made here: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.encoders.pooling import AttentionPool
from mmnar_lightning.encoders.text import TextEncoder
from mmnar_lightning.records import Elements, Modality

WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge", "lo") for b in ("ra", "ne", "si", "to", "mu", "x")]
CARD = "---\nlicense: mit\ndatasets:\n- some/corpus\nbase_model: a/b\n---\n# Tiny\n"


class Words(Protocol):
    def __call__(self, n: int, seed: int = 0) -> str: ...


class BuildText(Protocol):
    def __call__(self, model: Path | str | None = None, **options: Any) -> TextEncoder: ...


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def some_words(n: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


@pytest.fixture(scope="session")
def words() -> Words:
    """Draw n words."""
    return some_words


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with a tokenizer trained here, as `save_pretrained` leaves them."""
    path = tmp_path_factory.mktemp("hub") / "tiny"
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([some_words(200, seed) for seed in range(20)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        BertModel(config).save_pretrained(path)
    (path / "README.md").write_text(CARD, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def build_text(text_model: Path) -> BuildText:
    """Build an encoder with windows of 16 tokens; what is not pretrained is the same every time."""

    def build(model: Path | str | None = None, **options: Any) -> TextEncoder:
        settings: dict[str, Any] = {"max_tokens": 16, "stride": 4}
        encoder = TextEncoder(Modality("notes", "text"), 8, model=str(model or text_model), **settings | options)
        # whatever was drawn for adapters before; attention begins as a plain mean, which would hide mistakes
        torch.manual_seed(2)
        for name, part in encoder.named_children():
            for module in part.modules() if name != "backbone" else ():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
                if isinstance(module, AttentionPool):
                    nn.init.normal_(module.score.weight)
        return encoder

    return build


@pytest.fixture(scope="session")
def some_documents() -> tuple[Elements, Tensor]:
    """Rows 0, 2, 3 of a batch: several documents, short and long ones, one whose hours are unknown."""
    lengths = [3, 50, 7, 120, 1, 30, 12]
    row = torch.tensor([0, 0, 0, 2, 3, 3, 3])
    hours = torch.tensor([0.0, 5.0, 100.0, float("nan"), 2.0, 2.0, 700.0])
    documents = tuple(some_words(n, seed) for seed, n in enumerate(lengths))
    return Elements(row, hours, documents), torch.tensor([0, 2, 3])
