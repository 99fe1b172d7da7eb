"""Run by test_text.py, once a rank: gradients of two devices, one of them without documents, are those of one.

python text_two_processes.py RANK RENDEZVOUS_FILE MODEL_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmnar_lightning.encoders.text import TextEncoder
from mmnar_lightning.records import Elements, Modality

CASES: tuple[dict[str, Any], ...] = (
    {"train": "full", "gradient_checkpointing": True},
    {"train": "last_n", "last_layers": 1},
    {"train": "frozen"},
    {"train": "lora", "lora_rank": 2},
)
# the documents of each rank in each step: one rank without any, then the other, then both
STEPS: tuple[tuple[list[str], list[str]], ...] = (
    (["bara cone " * 20, "disi"], []),
    ([], ["fuge lomu " * 3]),
    ([], []),
    (["bara"], ["cone " * 9, "disi mu", "lo"]),
)


def gradients(model: nn.Module, documents: list[str]) -> dict[str, Tensor]:
    model.zero_grad()
    rows = torch.arange(len(documents))
    tokens, _ = model(Elements(rows, torch.ones(len(documents)), tuple(documents)), rows)
    (tokens * torch.arange(8.0)).sum().backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.clone() for name, grad in found.items()}


def build(folder: str, options: dict[str, Any]) -> TextEncoder:
    torch.manual_seed(0)
    # checkpointing and dropout work in training mode only
    encoder = TextEncoder(Modality("notes", "text"), 8, model=folder, max_tokens=16, stride=4, **options, dropout=0.0)
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return encoder.train()


def main(rank: int, rendezvous: Path, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=2)
    for case in CASES:
        alone = build(folder, case)
        # without find_unused_parameters: a parameter without gradient would fail the second step
        model = DistributedDataParallel(build(folder, case))
        for step, shards in enumerate(STEPS):
            expected = gradients(alone, shards[0] + shards[1])
            found = gradients(model, shards[rank])
            assert found.keys() == expected.keys() == {n for n, p in alone.named_parameters() if p.requires_grad}
            for name, grad in found.items():
                where = f"{case} {step} {name}"
                torch.testing.assert_close(2 * grad, expected[name], rtol=1e-4, atol=1e-5, msg=where)
            assert any(bool(grad.any()) for grad in found.values()) == any(shards)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
