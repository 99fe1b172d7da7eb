from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from mmnar_lightning.encoders import encode
from mmnar_lightning.encoders.pooling import AttentionPool
from mmnar_lightning.encoders.text import TextEncoder
from mmnar_lightning.records import Elements, PatientBatch

NAN = float("nan")
MODES: list[dict[str, Any]] = [
    {"train": "frozen"},
    {"train": "last_n", "last_layers": 1},
    {"train": "full"},
    {"train": "lora", "lora_rank": 2},
]


def texts(row: list[int], documents: list[str], hours: list[float] | None = None) -> Elements:
    return Elements(
        torch.tensor(row, dtype=torch.long),
        torch.tensor(hours or [1.0] * len(row), dtype=torch.float32),
        tuple(documents),
    )


def attend(pool: AttentionPool, values: Tensor) -> Tensor:
    score = pool.score(torch.tanh(pool.hidden(values)))
    return (torch.softmax(score, 0) * values).sum(0)


def reference(encoder: TextEncoder, text_model: Path, elements: Elements, rows: Tensor) -> Tensor:
    """The encoder's formula with transformers alone: a document at a time, a window at a time, nothing padded."""
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    assert encoder.backbone is not None
    tokens = []
    for row in rows.tolist():
        members = []
        for mine, hours, document in zip(elements.row, elements.hours_before, elements.values, strict=True):
            if int(mine) != row:
                continue
            windows = tokenizer(
                document,
                max_length=encoder.window.tokens,
                stride=encoder.window.overlap,
                truncation=True,
                return_overflowing_tokens=True,
            )["input_ids"][: encoder.window.most]
            vectors = []
            for window in windows:
                hidden = encoder.backbone(input_ids=torch.tensor([window])).last_hidden_state[0]
                vectors.append(hidden.mean(0) if encoder.pool == "mean" else hidden[0])
            d = attend(encoder.chunks, encoder.enter(encoder.norm(torch.stack(vectors))))
            known = not bool(hours.isnan())
            when = torch.log1p(hours / 24) if known else torch.tensor(0.0)
            members.append(encoder.document(torch.cat([d, when[None], torch.tensor([float(known)])])))
        tokens.append(encoder.head(attend(encoder.documents, torch.stack(members))))
    return torch.stack(tokens)


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "max_chunks": 3}, {"attention": "eager", "stride": 0}])
def test_packed_is_the_same_as_one_window_at_a_time(
    text_model: Path, options: dict[str, Any], build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    encoder = build_text(max_batch_tokens=100, **options).eval()
    elements, rows = some_documents
    tokens, inputs = encoder(elements, rows)
    assert inputs is None
    assert tokens.shape == (3, 8)
    torch.testing.assert_close(tokens, reference(encoder, text_model, elements, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_packing_does_not_change_the_gradient(
    text_model: Path, pool: str, build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    elements, rows = some_documents
    gradients = []
    for way in ("packed", "plain"):
        encoder = build_text(train="full", pool=pool).eval()
        tokens = encoder(elements, rows)[0] if way == "packed" else reference(encoder, text_model, elements, rows)
        (tokens * torch.arange(24.0).reshape(3, 8)).sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters()})
    for name, gradient in gradients[1].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_max_documents_reads_the_nearest_only(build_text: Any, some_documents: tuple[Elements, Tensor]) -> None:
    elements, rows = some_documents
    kept = [0, 1, 3, 4, 5]
    fewer = texts(
        elements.row[kept].tolist(), [str(elements.values[k]) for k in kept], elements.hours_before[kept].tolist()
    )
    limited, free = build_text(max_documents=2).eval(), build_text().eval()
    torch.testing.assert_close(limited(elements, rows)[0], free(fewer, rows)[0])


def test_documents_matter_and_so_do_their_hours(build_text: Any, words: Any) -> None:
    encoder = build_text().eval()
    rows = torch.tensor([1])
    base = encoder(texts([1, 1], [words(9, 0), words(9, 1)], [3.0, 400.0]), rows)[0]
    for row_values, hours in (
        ([words(9, 0), words(9, 2)], [3.0, 400.0]),
        ([words(9, 0), words(9, 1)], [30.0, 400.0]),
        ([words(9, 0), words(9, 1)], [3.0, NAN]),
    ):
        assert not torch.allclose(base, encoder(texts([1, 1], row_values, hours), rows)[0], atol=1e-4)
    swapped = encoder(texts([1, 1], [words(9, 1), words(9, 0)], [400.0, 3.0]), rows)[0]
    torch.testing.assert_close(swapped, base)


def test_attention_begins_as_the_mean() -> None:
    values, place = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1])
    expected = torch.stack([values[:2].mean(0), values[2:].mean(0)])
    torch.testing.assert_close(AttentionPool(4)(values, place, 2), expected)


@pytest.mark.parametrize("options", MODES)
def test_gradients_are_where_they_should_be(
    options: dict[str, Any], build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    encoder = build_text(**options).train()
    backbone = encoder.backbone
    assert backbone is not None
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    elements, rows = some_documents
    optimizer = torch.optim.SGD((p for p in encoder.parameters() if p.requires_grad), lr=0.1)
    encoder(elements, rows)[0].square().sum().backward()
    # two steps: the second matrix of an adapter begins at 0, so that the first has no gradient yet
    optimizer.step()
    encoder(elements, rows)[0].square().sum().backward()
    optimizer.step()
    wanted: dict[str, Callable[[str], bool]] = {
        "frozen": lambda n: False,
        "last_n": lambda n: n.startswith("encoder.layer.1."),
        "full": lambda n: True,
        "lora": lambda n: "lora_" in n,
    }
    for name, parameter in encoder.named_parameters():
        inner = name.removeprefix("backbone.")
        trained = inner == name or wanted[options["train"]](inner)
        assert (parameter.grad is not None) == trained, name
        # a key's bias adds the same to all scores
        if not inner.endswith(("key.bias", "hidden.bias")):
            assert torch.equal(parameter, before[name]) != trained, name
    assert any(p.requires_grad for p in backbone.parameters()) == (options["train"] != "frozen")
    modes = {n: m.training for n, m in backbone.named_modules() if isinstance(m, nn.Dropout)}
    assert {n for n, on in modes.items() if on} == {
        n for n in modes if options["train"] in ("full", "lora") or wanted[options["train"]](n)
    }


@pytest.mark.parametrize("options", [*MODES, {"train": "full", "gradient_checkpointing": True}])
def test_no_documents_join_the_graph(options: dict[str, Any], build_text: Any) -> None:
    encoder = build_text(**options).train()
    tokens, _ = encoder(texts([], []), torch.zeros(0, dtype=torch.long))
    assert tokens.shape == (0, 8)
    tokens.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or not parameter.grad.any(), name
    with torch.no_grad():
        assert encoder.eval()(texts([], []), torch.zeros(0, dtype=torch.long))[0].shape == (0, 8)


def test_nothing_is_computed_for_samples_without_documents(
    monkeypatch: pytest.MonkeyPatch, build_text: Any, words: Any
) -> None:
    encoder = build_text().eval()
    seen: list[int] = []
    assert encoder.backbone is not None
    encoder.backbone.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    observed = torch.zeros(6, 1, dtype=torch.bool)
    observed[4] = True
    rest = (torch.zeros(6, 1), torch.ones(6, 1, dtype=torch.bool), torch.arange(6))
    encoded = encode({"notes": encoder}, PatientBatch({"notes": texts([4], [words(2)])}, observed, *rest))
    assert encoded.tokens.shape == (1, 8)
    assert sum(seen) <= 16
    seen.clear()
    nobody = PatientBatch({"notes": texts([], [])}, torch.zeros_like(observed), *rest)
    assert encode({"notes": encoder}, nobody).tokens.shape == (0, 8)
    assert seen == []


@pytest.mark.parametrize("options", [*MODES, {"train": "lora", "dtype": "bfloat16"}, {"dtype": "bfloat16"}])
def test_bf16_is_finite_and_near(
    options: dict[str, Any], build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    elements, rows = some_documents
    exact = build_text().eval()(elements, rows)[0]
    encoder = build_text(**options).eval()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(elements, rows)[0]
    tokens.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    torch.testing.assert_close(tokens.float(), exact, rtol=0.1, atol=0.15)
    assert all(p.dtype == torch.float32 for p in encoder.parameters() if p.requires_grad)


def test_checkpointing_activations_changes_nothing_but_memory(
    build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    elements, rows = some_documents
    gradients, kept = [], []
    for recompute in (False, True):
        encoder = build_text(train="full", gradient_checkpointing=recompute, dropout=0.0).train()
        assert encoder.backbone is not None
        for module in encoder.backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = encoder(elements, rows)[0].square().sum()
        loss.backward()
        kept.append(saved)
        gradients.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
    assert kept[1] < kept[0] / 2


def test_lora_begins_as_the_pretrained_model(build_text: Any, some_documents: tuple[Elements, Tensor]) -> None:
    elements, rows = some_documents
    plain = build_text().eval()
    adapted = build_text(train="lora", lora_targets=["query", "dense"]).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(adapted(elements, rows)[0], plain(elements, rows)[0])
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad and n.startswith("backbone.")]
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained} == {"query", "dense"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "some"}, "frozen, last_n, full, lora"),
        ({"pool": "max"}, "mean, cls"),
        ({"max_tokens": 65}, "more than the model's 64"),
        ({"stride": 14}, "less than the 14 tokens"),
        ({"stride": -1}, "at least 0"),
        ({"max_chunks": 0}, "max_chunks must be at least 1"),
        ({"train": "last_n", "last_layers": 3}, "more than the model's 2"),
        ({"train": "full", "dtype": "bfloat16"}, "must be float32"),
        ({"train": "lora", "lora_targets": ["nothing"]}, "its linear layers are dense, key, query, value"),
        ({"revision": "main"}, "is a folder, which has no revision"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, build_text: Any) -> None:
    with pytest.raises(ValueError, match=message):
        build_text(**options)


def test_peft_is_asked_for(monkeypatch: pytest.MonkeyPatch, build_text: Any) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else real(name))
    with pytest.raises(ValueError, match=r"needs peft; pip install 'mmnar-lightning\[lora\]'"):
        build_text(train="lora")


def test_two_devices_of_which_one_has_no_documents_train_as_one(
    run_two_ranks: Callable[..., None], text_model: Path, tmp_path: Path
) -> None:
    worker = Path(__file__).with_name("text_two_processes.py")
    run_two_ranks(worker, tmp_path / "rendezvous", text_model)
