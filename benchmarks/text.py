"""Documents: the price of a step against the share of notes, padding, memory of fine-tuning, and use of a GPU.

Run: ``python benchmarks/text.py [--repeat 7] [--out benchmarks/results/text.json]``. On one core, in processor time,
but for memory, which is read in a fresh process for each setting. Models have BERT's architecture and weights drawn at
random, which cost as much as any.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from measuring import RESULTS, least_seconds, machine, save, watched
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as reporting

from mmnar_lightning.encoders import TextEncoder
from mmnar_lightning.encoders.documents import Tokens, Window, buckets, chunked, padded
from mmnar_lightning.records import Elements, Modality, RecordSchema, RecordStore, Task, write_store

PACKED_TARGET, PACKING_TARGET, PADDING_TARGET, NAIVE_TARGET = 0.45, 1.05, 0.15, 0.5
NOTES = Modality("notes", "text")
WIDTH = 64
# Reports and summaries. Words: a summary's median is 1,687 in MIMIC-IV (Yoon et al., LCD Benchmark, 2024), 1,500 here;
# the spread, the range of reports and tokens a word are assumed. MIMIC-IV-Note 2.2 has 7 reports for each summary
# (Johnson et al., 2023: 2,321,355 and 331,794).
MEDIAN, SPREAD, REPORT, TOKENS_A_WORD, REPORTS = 1500, 0.5, (80, 300), 1.4, 7
WINDOW, SPECIAL = Window(512, 64), 2
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
LARGE: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
WORDS, LARGE_WORDS = 2000, 28992  # ClinicalBERT's vocabulary of 28,996 with the special ones
BATCH, OBSERVED = 40, 12
MEMORY_BATCH, CARD_BATCH = 4, 64
SETTINGS: dict[str, dict[str, Any]] = {
    "frozen": {"train": "frozen"},
    "frozen, bfloat16": {"train": "frozen", "dtype": "bfloat16"},
    "last_n (2)": {"train": "last_n"},
    "lora": {"train": "lora"},
    "lora, checkpointing": {"train": "lora", "gradient_checkpointing": True},
    "lora, bfloat16": {"train": "lora", "dtype": "bfloat16"},
    "lora, bfloat16, checkpointing": {"train": "lora", "dtype": "bfloat16", "gradient_checkpointing": True},
    "full": {"train": "full"},
    "full, checkpointing": {"train": "full", "gradient_checkpointing": True},
}
# In a process of its own, see `measuring.watched`. A step of a small model first: what imports take is not the step's,
# nor is what loading takes for a moment.
STEP = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
import text
setting = json.loads(Path(sys.argv[2]).read_text())
step, _ = text.step_of(setting["small"], setting["options"])
step(1)
del step
before = mib("RssAnon:")
step, held = text.step_of(setting["large"], setting["options"])
step(1)
anonymous = 0
step(text.MEMORY_BATCH)
report(before_mib=before, **held())
"""


def write_model(folder: Path, words: int, sizes: dict[str, Any]) -> Path:
    """Save a BERT and a tokenizer of whole words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: k for k, word in enumerate([*special, *(f"w{k}" for k in range(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return folder


def report_lengths(rng: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
    """Tokens of radiology reports."""
    return (TOKENS_A_WORD * rng.uniform(*REPORT, n)).astype(np.int64)


def summary_lengths(rng: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
    """Tokens of discharge summaries."""
    return (TOKENS_A_WORD * MEDIAN * rng.lognormal(0, SPREAD, n)).astype(np.int64)


def document(rng: np.random.Generator, tokens: int, words: int) -> str:
    """Any document of so many tokens."""
    return " ".join(f"w{k}" for k in rng.integers(0, words, tokens))


def packing(folder: Path, repeat: int) -> dict[str, Any]:
    """Seconds of a training step over reports: all rows, 30 % of them, none, and the bare transformer on all."""
    rng = np.random.default_rng(0)
    length = np.sort(report_lengths(rng, BATCH))
    documents = [document(rng, n, WORDS) for n in length]
    store = write_notes(folder, documents)
    encoder = TextEncoder(
        NOTES, WIDTH, model=str(write_model(folder / "small", WORDS, SMALL)), train="full", max_tokens=WINDOW.tokens
    ).train()
    encoder.prepare(store)
    optimiser = torch.optim.AdamW(encoder.parameters())
    hours = torch.linspace(0, 100, BATCH)

    def step(rows: Tensor) -> None:
        optimiser.zero_grad()
        elements = Elements(rows, hours[rows], tuple(documents[k] for k in rows.tolist()), index=rows)
        tokens, _ = encoder(elements, rows)
        tokens.square().sum().backward()
        optimiser.step()

    laid = laid_out(encoder, documents)
    backbone = encoder.backbone
    assert isinstance(backbone, nn.Module)
    alone = torch.optim.AdamW(backbone.parameters())

    def bare() -> None:
        alone.zero_grad()
        hidden = [backbone(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1) for ids, mask in laid]
        torch.cat(hidden).square().sum().backward()  # type: ignore[no-untyped-call]
        alone.step()

    # lengths of those observed are spread as all are
    some = torch.from_numpy(np.linspace(0, BATCH - 1, OBSERVED).round().astype(np.int64))
    ways: dict[str, Callable[[], object]] = {
        "bare_transformer": bare,
        "all_observed": lambda: step(torch.arange(BATCH)),
        "70_percent_unobserved": lambda: step(some),
        "none_observed": lambda: step(torch.arange(0)),
    }
    for way in ways.values():
        way()
    seconds = least_seconds(ways, repeat, time.process_time)
    whole = seconds["all_observed"]
    return {
        "seconds_a_step": {name: round(value, 4) for name, value in seconds.items()},
        "share_of_tokens_observed": round(float(length[some.numpy()].sum() / length.sum()), 3),
        "70_percent_unobserved_over_all": round(seconds["70_percent_unobserved"] / whole, 3),
        "70_percent_target": PACKED_TARGET,
        "packing_over_bare_transformer": round(whole / seconds["bare_transformer"], 3),
        "packing_target": PACKING_TARGET,
    }


def write_notes(folder: Path, documents: list[str]) -> RecordStore:
    """A store in which each sample has one document."""
    n = len(documents)
    samples = pl.DataFrame(
        {"patient": [f"p{k}" for k in range(n)], "site": ["s"] * n, "prediction_time": np.zeros(n)}
    ).with_columns(pl.lit(False).alias("label/outcome"))
    elements = pl.DataFrame({"sample": np.arange(n), "text": documents})
    elements = elements.select("sample", pl.lit(1.0, pl.Float32).alias("hours_before"), "text")
    schema = RecordSchema((NOTES,), (Task("outcome"),))
    return RecordStore(write_store(folder, "text", "all", f"{n:016d}", schema, samples, {"notes": elements}, {}))


def laid_out(encoder: TextEncoder, documents: list[str]) -> list[tuple[Tensor, Tensor | None]]:
    """The same padded windows that the encoder runs."""
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    tokens = tokenizer(documents)
    chunks = chunked(tokens, WINDOW, SPECIAL)
    laid: list[tuple[Tensor, Tensor | None]] = []
    for group in buckets(chunks.length + SPECIAL, encoder.max_batch_tokens):
        ids, there = padded(tokens, chunks, group, tokenizer)
        laid.append((torch.from_numpy(ids), None if there.all() else torch.from_numpy(there).long()))
    return laid


def padding(batch: int = 32, batches: int = 20) -> dict[str, dict[str, float]]:
    """Share of padding among all tokens, of a batch of samples, each with a summary and seven reports.

    `buckets`: windows in the encoder's groups; `windows_together`: windows in one matrix; `documents_together`: whole
    documents in one matrix, each filled up to the longest.
    """
    rng = np.random.default_rng(0)
    found = {}
    draws: dict[str, Callable[[], np.ndarray[Any, Any]]] = {
        "reports": lambda: report_lengths(rng, REPORTS * batch),
        "summaries": lambda: summary_lengths(rng, batch),
        "both": lambda: np.concatenate([report_lengths(rng, REPORTS * batch), summary_lengths(rng, batch)]),
    }
    for what, draw in draws.items():
        used, laid, calls = np.zeros(3), np.zeros(3), 0
        for _ in range(batches):
            lengths = draw()
            stop = np.cumsum(lengths)
            windows = chunked(Tokens(np.empty(0, np.int32), stop - lengths, stop), WINDOW, SPECIAL).length + SPECIAL
            groups = buckets(windows, 32768)
            calls += len(groups)
            whole = lengths + SPECIAL
            used += windows.sum(), windows.sum(), whole.sum()
            laid += (
                sum(int(windows[g].max()) * len(g) for g in groups),
                len(windows) * windows.max(),
                len(whole) * whole.max(),
            )
        share = 1 - used / laid
        names = ("buckets", "windows_together", "documents_together")
        found[what] = {name: round(float(s), 3) for name, s in zip(names, share, strict=True)}
        found[what]["calls_a_batch"] = round(calls / batches, 1)
    return found


def step_of(model: str, options: dict[str, Any]) -> tuple[Callable[[int], None], Callable[[], dict[str, float]]]:
    """Build an encoder: its training step over so many documents of one full window, and MiB of what it then holds."""
    torch.set_num_threads(1)
    reporting.disable_progress_bar()  # type: ignore[no-untyped-call]
    encoder = TextEncoder(NOTES, WIDTH, model=model, **options).train()
    for parameter in encoder.parameters():
        # until now mapped from the file, which is no anonymous memory, and a GPU holds them anyway
        parameter.data = parameter.data.clone()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    rng = np.random.default_rng(0)

    def step(batch: int) -> None:
        optimiser.zero_grad()
        texts = tuple(document(rng, WINDOW.tokens - SPECIAL, LARGE_WORDS) for _ in range(batch))
        rows = torch.arange(batch)
        tokens, _ = encoder(Elements(rows, torch.ones(batch), texts), rows)
        tokens.square().sum().backward()
        optimiser.step()

    def held() -> dict[str, float]:
        kept: dict[Any, Any] = optimiser.state
        state = [t for p in trained for t in kept[p].values() if isinstance(t, Tensor)]
        parts: dict[str, Sequence[Tensor]] = {
            "weights": list(encoder.parameters()),
            "gradients": trained,
            "optimiser": state,
        }
        return {f"{name}_mib": sum(t.nbytes for t in tensors) / 2**20 for name, tensors in parts.items()}

    return step, held


def memory(folder: Path) -> dict[str, dict[str, int]]:
    """MiB that a training step of a ClinicalBERT-sized encoder holds above the start, by setting."""
    small = str(write_model(folder / "warm", WORDS, SMALL))
    large = str(write_model(folder / "large", LARGE_WORDS, LARGE))
    found = {}
    for name, options in SETTINGS.items():
        path = folder / "settings.json"
        path.write_text(json.dumps({"small": small, "large": large, "options": options}))
        taken = watched(STEP, path)
        held = {part: round(taken[f"{part}_mib"]) for part in ("weights", "gradients", "optimiser")}
        peak = round(taken["peak_anon_mib"] - taken["before_mib"])
        found[name] = {"peak": peak, **held, "activations_and_rest": peak - sum(held.values())}
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def card(device: torch.device, sizes: dict[str, Any] = LARGE, batch: int = CARD_BATCH, side: int = 8192) -> Any:
    """Step time, memory and share of the matrix rate of a GPU, with and without gradient checkpointing, in bfloat16."""
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    rate = 2 * side**3 / timed(lambda: matrix @ matrix, device, 20)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device), "matrix_tflops": round(rate / 1e12, 1)}
    layers, hidden, tokens = sizes["num_hidden_layers"], sizes["hidden_size"], batch * WINDOW.tokens
    # a layer's matrices hold 12 H² numbers; two products of queries, keys and values; twice as much backward
    work = 3 * layers * (2 * 12 * hidden**2 + 4 * WINDOW.tokens * hidden) * tokens
    rng = np.random.default_rng(0)
    texts = tuple(document(rng, WINDOW.tokens - SPECIAL, LARGE_WORDS) for _ in range(batch))
    rows = torch.arange(batch, device=device)
    given = Elements(rows, torch.ones(batch, device=device), texts, index=rows)
    with tempfile.TemporaryDirectory() as folder:
        store = write_notes(Path(folder), list(texts))
        model = str(write_model(Path(folder) / "large", LARGE_WORDS, sizes))
        for name in ("full", "full, checkpointing"):
            encoder = TextEncoder(NOTES, WIDTH, model=model, **SETTINGS[name]).to(device).train()
            encoder.prepare(store)
            optimiser = torch.optim.AdamW(encoder.parameters(), fused=True)

            def step(encoder: TextEncoder = encoder, optimiser: torch.optim.Optimizer = optimiser) -> None:
                optimiser.zero_grad()
                with torch.autocast(device.type, torch.bfloat16):
                    out, _ = encoder(given, rows)
                out.float().square().sum().backward()
                optimiser.step()

            timed(step, device, 2)
            torch.cuda.reset_peak_memory_stats(device)
            seconds = timed(step, device, 10)
            found[name] = {
                "seconds_a_step": round(seconds, 4),
                "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
                "share_of_matrix_rate": round(work / seconds / rate, 3),
            }
    return found


def timed(way: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Least seconds of a call, from an idle device to an idle device."""
    best = float("inf")
    for _ in range(repeat):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        way()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "text.json")
    arguments = parser.parse_args()
    reporting.disable_progress_bar()  # type: ignore[no-untyped-call]
    has_card = torch.cuda.is_available()
    on_card = card(torch.device("cuda")) if has_card else "not measured: no CUDA device"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        steps, held = packing(Path(folder), arguments.repeat), memory(Path(folder))
    save(
        arguments.out,
        {
            "what": "training steps with AdamW, one core, processor time, the least of "
            f"{arguments.repeat} rounds; windows of {WINDOW.tokens} tokens that share {WINDOW.overlap}",
            "packing": {"model": SMALL, "batch": BATCH, "words_a_report": REPORT, **steps},
            "padding": {"summary_median_words": MEDIAN, "summary_log_sd": SPREAD, "words_a_report": REPORT,
                        "reports_a_summary": REPORTS, "tokens_a_word": TOKENS_A_WORD, "share": padding(),
                        "target": PADDING_TARGET, "target_without": NAIVE_TARGET},
            "memory_mib": {"model": LARGE, "windows": MEMORY_BATCH, "tokens": WINDOW.tokens, "settings": held},
            "card": on_card,
        },
        ("torch", "transformers", "peft", "numpy"),
        machine(gpu=torch.cuda.get_device_name() if has_card else None),
    )  # fmt: skip


if __name__ == "__main__":
    main()
