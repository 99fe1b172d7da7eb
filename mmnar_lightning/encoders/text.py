"""Documents through a pretrained transformer: nothing is computed for a sample without documents."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmnar_lightning.encoders.documents import (
    Array,
    DocumentTokenizer,
    Tokens,
    TokenTable,
    Window,
    buckets,
    chunked,
    only_nearest,
    padded,
    tokenised,
)
from mmnar_lightning.encoders.features import FeatureEncoder, FeatureReader, FeatureTable
from mmnar_lightning.encoders.finetuning import Trained, choose_trained, recompute_activations, set_training
from mmnar_lightning.encoders.pooling import AttentionPool
from mmnar_lightning.encoders.pretrained import (
    NotDownloadedError,
    Pretrained,
    PretrainedError,
    in_words,
    locate,
    provenance,
)
from mmnar_lightning.records import Elements, Inputs, Modality, RecordStore

log = logging.getLogger(__name__)
Attention = Literal["sdpa", "eager", "flash_attention_2"]


class TextEncoder(FeatureEncoder):
    """Windows of each document through a transformer, pooled by attention into documents and then into the sample.

    v_c = pool over tokens of the transformer's last layer, x_c = W LN(v_c);
    d_j = Attend_c∈j(x_c); u_j = Drop(GELU(LN(W₁ [d_j; log(1 + h_j/24); k_j]))), h_j the hours before the prediction
    time (0 where unknown) and k_j whether they are known; e = LN(W₂ Attend_j(u_j)).

    Windows of all documents of the batch are run together, sorted into groups of similar length. The checkpoint holds
    weights, architecture and tokenizer (the text of tokenizer.json: about 0.5 MB for BERT's 30,000 words, 2 MB for
    RoBERTa's 50,000, 10 MB for multilingual ones), so that it needs neither hub nor folder; the pretrained model is
    looked for when the encoder is built, and if it is not on this machine the error waits until it is needed.

    Args:
        modality: Of kind ``text``.
        width: D.
        model: Folder or hub name of a transformers encoder (`AutoModel`) with a fast tokenizer; safetensors only, and
            never code from the hub.
        revision: Branch, tag or commit on the hub.
        download: Fetch it from the hub if it is not in the local cache; HF_HUB_OFFLINE wins.
        max_tokens: Longest window, special tokens included.
        stride: Tokens that a window shares with the one before.
        max_chunks: Windows read of a document, the first ones; None reads all.
        max_documents: Documents read of a sample, those nearest to the prediction time; None reads all.
        train: ``frozen`` (evaluation mode, no gradient), ``last_n`` layers, ``full``, or ``lora`` (needs peft).
        last_layers: n of ``last_n``.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale is alpha / rank; None takes 2 · rank.
        lora_dropout: Dropout before them.
        lora_targets: Names of the layers that get one; None takes peft's choice for the architecture.
        gradient_checkpointing: Compute activations anew in the backward pass: less memory, more time.
        dtype: Type the transformer's weights are held in. ``bfloat16`` halves them, for ``frozen`` and ``lora`` only:
            small updates would be rounded away.
        attention: Implementation of attention in transformers; None takes SDPA where the architecture has it.
        pool: ``mean`` over the tokens of a window, or its first token, ``cls``.
        dropout: Probability in Drop.
        max_batch_tokens: Most tokens in one call of the transformer, padding included; bounds memory where no gradient
            is kept.

    Attributes:
        provenance: Where the weights come from, see `pretrained.provenance`.

    Raises:
        PretrainedError: If the model can't be used; says why. If it isn't on this machine, when it is first needed.
        ValueError: If an option is out of range.

    Source: Windows with overlap and pooling as is usual; attention as in Ilse, Tomczak, Welling, *Attention-based Deep
    Multiple Instance Learning*, 2018; adapters: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        modality: Modality,
        width: int,
        *,
        model: str,
        revision: str | None = None,
        download: bool = False,
        max_tokens: int = 512,
        stride: int = 64,
        max_chunks: int | None = None,
        max_documents: int | None = None,
        train: Trained = "frozen",
        last_layers: int = 2,
        lora_rank: int = 8,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: Attention | None = None,
        pool: Literal["mean", "cls"] = "mean",
        dropout: float = 0.1,
        max_batch_tokens: int = 32768,
    ) -> None:
        super().__init__(modality, width)
        self.name, self.pool, self.dropout, self.attention = modality.name, pool, dropout, attention
        self.window, self.max_documents = Window(max_tokens, stride, max_chunks), max_documents
        self.max_batch_tokens, self.dtype = max_batch_tokens, dtype
        self.trained, self.last_layers, self.gradient_checkpointing = train, last_layers, gradient_checkpointing
        self.lora: dict[str, Any] = {
            "r": lora_rank,
            "lora_alpha": 2 * lora_rank if lora_alpha is None else lora_alpha,
            "lora_dropout": lora_dropout,
            "target_modules": lora_targets,
        }
        self._check_options()
        self.backbone: nn.Module | None = None
        self.tokenizer: DocumentTokenizer | None = None
        self.provenance: dict[str, Any] = {}
        self._config: dict[str, Any] = {}
        self._table: TokenTable | None = None
        self._missing: NotDownloadedError | None = None
        try:
            found = locate(model, revision, download=download)
        except NotDownloadedError as error:
            # no error yet: a checkpoint may be about to bring weights, architecture and tokenizer
            self._missing = error
        else:
            self._take(found)

    def _check_options(self) -> None:
        for option, chosen, known in (
            ("train", self.trained, ("frozen", "last_n", "full", "lora")),
            ("pool", self.pool, ("mean", "cls")),
            ("dtype", self.dtype, ("float32", "bfloat16")),
            ("attention", self.attention or "sdpa", ("sdpa", "eager", "flash_attention_2")),
        ):
            if chosen not in known:
                raise ValueError(f"modality {self.name!r}: {option} {chosen!r} is not one of {', '.join(known)}")
        positive: dict[str, int | None] = {
            "max_chunks": self.window.most,
            "max_documents": self.max_documents,
            "last_layers": self.last_layers,
            "lora_rank": self.lora["r"],
            "max_batch_tokens": self.max_batch_tokens,
        }
        for option, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"modality {self.name!r}: {option} must be at least 1, is {value}")
        if self.dtype == "bfloat16" and self.trained in ("last_n", "full"):
            raise ValueError(
                f"modality {self.name!r}: weights that are trained must be float32; for speed use the trainer's "
                "precision bf16-mixed"
            )

    def _take(self, found: Pretrained) -> None:
        """Build from a pretrained model on this machine."""
        from transformers import AutoModel
        from transformers.utils import logging as reporting

        tokenizer = DocumentTokenizer.from_folder(found.folder)
        shown = reporting.is_progress_bar_enabled()
        reporting.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            backbone, report = AutoModel.from_pretrained(
                str(found.folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=self.attention,
                output_loading_info=True,
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise PretrainedError(f"model {found.name!r} can't be loaded ({first})") from error
        finally:
            if shown:
                reporting.enable_progress_bar()  # type: ignore[no-untyped-call]
        # weights that are not in the file would be random, and nobody would notice; a pooler is not used
        lacking = [name for name in report["missing_keys"] if "pooler" not in name]
        if lacking:
            raise PretrainedError(
                f"model {found.name!r}: {len(lacking)} weights of its architecture are not in its file, the first "
                f"{sorted(lacking)[0]!r}"
            )
        self.provenance = provenance(found)
        self._build(backbone, tokenizer)
        log.info("modality %r is read by %s", self.name, in_words(self.provenance))

    def _build(self, backbone: Any, tokenizer: DocumentTokenizer) -> None:
        config = backbone.config
        if config.is_encoder_decoder:
            raise PretrainedError(f"model of type {config.model_type!r} is no encoder: it has a decoder, too")
        self._check_window(backbone, tokenizer)
        self._config = json.loads(config.to_json_string(use_diff=False))
        # a folder of the machine it was trained on
        self._config.pop("_name_or_path", None)
        backbone.config.use_cache = False
        if getattr(backbone, "pooler", None) is not None:
            # never used; its parameters without gradient would hang DDP
            backbone.pooler = None
        backbone.to(getattr(torch, self.dtype))
        try:
            choose_trained(backbone, self.trained, self.last_layers, self.lora)
            if self.gradient_checkpointing and self.trained != "frozen":
                recompute_activations(backbone)
        except ValueError as error:
            raise PretrainedError(f"modality {self.name!r}: {error}") from error
        hidden, width = int(config.hidden_size), self.width
        self.tokenizer, self.backbone = tokenizer, backbone
        self.norm, self.enter = nn.LayerNorm(hidden), nn.Linear(hidden, width)
        self.chunks = AttentionPool(width)
        self.document = nn.Sequential(
            nn.Linear(width + 2, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(self.dropout)
        )
        self.documents = AttentionPool(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.train(self.training)

    def _check_window(self, backbone: nn.Module, tokenizer: DocumentTokenizer) -> None:
        limit = getattr(backbone.config, "max_position_embeddings", None)
        for name, module in backbone.named_modules():
            # RoBERTa and its kin count positions from behind the padding's
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limit = module.num_embeddings - module.padding_idx - 1
        if limit and self.window.tokens > limit:
            raise ValueError(
                f"modality {self.name!r}: max_tokens {self.window.tokens} is more than the model's {limit}"
            )
        body = self.window.tokens - len(tokenizer.prefix) - len(tokenizer.suffix)
        if not 0 <= self.window.overlap < body:
            raise ValueError(
                f"modality {self.name!r}: stride must be at least 0 and less than the {body} tokens that max_tokens "
                f"leaves beside special ones, is {self.window.overlap}"
            )

    def train(self, mode: bool = True) -> TextEncoder:
        """Switch to training mode; what is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.backbone is not None:
            set_training(self.backbone, mode, self.trained, self.last_layers)
        return self

    def frozen(self) -> dict[str, Any] | None:
        """Return what the vectors of windows depend on, None where the transformer is trained."""
        if self.trained != "frozen":
            return None
        backbone, tokenizer = self._ready()
        config = {k: v for k, v in self._config.items() if k != "transformers_version"}
        how = {"tokenizer": tokenizer.digest, "window": asdict(self.window), "pool": self.pool}
        return {"architecture": config, "weights": self.weights(backbone), **how}

    def embed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """Return the vectors of all windows of documents, see `FeatureEncoder.embed`."""
        with torch.no_grad():
            return self._windows(self._tokens(elements))

    def feature_reader(self, table: FeatureTable) -> FeatureReader:
        """Return how vectors are read in the place of documents."""
        return FeatureReader(table, self.name, self.max_documents)

    def prepare_backbone(self, store: RecordStore) -> None:
        """Map the token ids of a store's documents, tokenising them first if no one has: no batch does it again."""
        _, tokenizer = self._ready()
        there = self.name in store.schema.names and store.schema.modality(self.name).kind == "text"
        self._table = tokenised(store, self.name, tokenizer) if there else None

    def _ready(self) -> tuple[nn.Module, DocumentTokenizer]:
        if self._missing is not None:
            raise self._missing
        assert self.backbone is not None
        assert self.tokenizer is not None
        return self.backbone, self.tokenizer

    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode, see `Encoder.forward`.

        Raises:
            ValueError: If the values are neither strings nor features.
        """
        self._ready()
        vectors, document = elements.values, elements.part_of
        if isinstance(vectors, Tensor) and document is None:
            raise ValueError("a text modality needs documents as strings")
        if not len(rows):
            return self._joined_only(), None
        if not isinstance(vectors, Tensor) or document is None:
            if self.max_documents is not None:
                elements = only_nearest(elements, self.max_documents)
            vectors, document = self._windows(self._tokens(elements))
        place = torch.searchsorted(rows, elements.row)
        return self._pooled(vectors, document, elements.hours_before, place, len(rows)), None

    def _joined_only(self) -> Tensor:
        """No token [0, D], but one empty document's way through every trained part, so that no device waits for it."""
        backbone, tokenizer = self._ready()
        device = self.enter.weight.device
        if torch.is_grad_enabled() and self.trained != "frozen":
            vectors, _ = self._windows(tokenizer(("",)))
        else:
            vectors = torch.zeros(1, int(backbone.config.hidden_size), device=device)  # type: ignore[union-attr, arg-type]
        first = torch.zeros(1, dtype=torch.int64, device=device)
        return self._pooled(vectors, first, torch.zeros(1, device=device), first, 1)[:0]

    def _tokens(self, elements: Elements) -> Tokens:
        _, tokenizer = self._ready()
        assert isinstance(elements.values, tuple)
        if self._table is None or elements.index is None:
            return tokenizer(elements.values)
        return self._table.take(elements.index.cpu().numpy(), elements.values)

    def _windows(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Run all windows of E documents: vectors [C, H] in their order, and int64 [C] the document of each."""
        _, tokenizer = self._ready()
        special = len(tokenizer.prefix) + len(tokenizer.suffix)
        chunks = chunked(tokens, self.window, special)
        groups = buckets(chunks.length + special, self.max_batch_tokens)
        device = self.enter.weight.device
        # all of it before the first call, for a copy would wait for the work of the call before it
        laid = [self._laid_out(*padded(tokens, chunks, group, tokenizer), device) for group in groups]
        back = torch.from_numpy(np.argsort(np.concatenate(groups))).to(device)
        document = torch.from_numpy(chunks.document).to(device)
        return torch.cat([self._vectors(*group) for group in laid])[back], document

    @staticmethod
    def _laid_out(ids: Array, there: Array, device: torch.device) -> tuple[Tensor, Tensor | None]:
        # without a mask attention takes its fastest way
        mask = None if bool(there.all()) else torch.from_numpy(there).to(device)
        return torch.from_numpy(ids).to(device), mask

    def _vectors(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Run windows [N, L] of similar length: float32 [N, H]."""
        backbone, _ = self._ready()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained != "frozen"):
            hidden: Tensor = backbone(
                input_ids=ids, attention_mask=None if mask is None else mask.long()
            ).last_hidden_state
            if self.pool == "cls":
                return hidden[:, 0].float()
            if mask is None:
                return hidden.mean(1, dtype=torch.float32)
            kept = torch.where(mask[:, :, None], hidden, 0)
            return kept.sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)

    def _pooled(self, vectors: Tensor, document: Tensor, hours: Tensor, place: Tensor, rows: int) -> Tensor:
        timed = ~hours.isnan()
        since = torch.log1p(torch.where(timed, hours, 0.0).clamp(min=0) / 24)
        x = self.enter(self.norm(vectors.to(self.enter.weight.dtype)))
        d = self.chunks(x, document, len(hours))
        u = self.document(torch.cat([d, since[:, None].to(d.dtype), timed[:, None].to(d.dtype)], 1))
        return self.head(self.documents(u, place, rows))  # type: ignore[no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """Return architecture, tokenizer and provenance as plain types."""
        _, tokenizer = self._ready()
        return {
            "config": self._config,
            "tokenizer": tokenizer.description,
            "pad": tokenizer.pad,
            "provenance": self.provenance,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take architecture, tokenizer and provenance from a checkpoint.

        torch calls it before it loads the weights of the parts, so they can be built here where the pretrained model is
        not on this machine, or has become another.
        """
        tokenizer = DocumentTokenizer(state["tokenizer"], state["pad"])
        if self.tokenizer is None or self.tokenizer.digest != tokenizer.digest:
            self._table = None
        if self.backbone is None or self._config != state["config"]:
            from transformers import AutoConfig, AutoModel

            device = next((p.device for p in self.parameters()), None)
            settings = {k: v for k, v in state["config"].items() if k != "model_type"}
            config = AutoConfig.for_model(state["config"]["model_type"], **settings)
            # the weights drawn here are replaced: later random numbers must not depend on them
            with torch.random.fork_rng(devices=[]):
                backbone = AutoModel.from_config(config, attn_implementation=self.attention)  # type: ignore[no-untyped-call]
                self._build(backbone, tokenizer)
            self._config = dict(state["config"])
            self.to(device)
        self.tokenizer, self.provenance, self._missing = tokenizer, dict(state["provenance"]), None
