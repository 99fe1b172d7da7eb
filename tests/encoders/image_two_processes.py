"""Run by test_image.py, once a rank: gradients of two devices are those of one, also where one has no film.

python image_two_processes.py RANK RENDEZVOUS_FILE WEIGHTS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmnar_lightning.encoders import encode
from mmnar_lightning.encoders.image import ImageEncoder
from mmnar_lightning.objectives import global_count, masked_mean
from mmnar_lightning.records import Elements, Modality, PatientBatch

ROWS, SIDE = 6, 32
SHARDS = (slice(0, 2), slice(2, ROWS))
CASES: tuple[dict[str, Any], ...] = (
    {"train": "frozen"},
    {"train": "last_n", "last_layers": 1},
    {"train": "full"},
)
# which rows have films: the first rank has none at first, then all do, then the second rank has none, then nobody
STEPS: tuple[list[int], ...] = ([2, 3, 5], [0, 1, 2, 3, 4, 5], [1], [])


class Model(nn.Module):
    """From the films to a loss, its mean taken over both devices."""

    def __init__(self, weights: str, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = ImageEncoder(
            Modality("cxr", "image"), 8, model="test_resnet", weights=weights, image_size=SIDE, dropout=0.0, **options
        )
        self.head = nn.Linear(8, 1)

    def forward(self, batch: PatientBatch) -> Tensor:
        encoded = encode({"cxr": self.encoder}, batch)
        logit = self.head(encoded.dense()[:, 0])
        loss: Tensor = masked_mean((logit - batch.targets).square(), batch.labelled, global_count, dim=0).sum()
        return loss


def batch_of(rows: slice, step: int) -> PatientBatch:
    generator = torch.Generator().manual_seed(step)
    observed = torch.zeros(ROWS, 1, dtype=torch.bool)
    observed[STEPS[step]] = True
    films = torch.randint(0, 256, (ROWS, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    targets = torch.randn(ROWS, 1, generator=generator)
    observed, films, targets = observed[rows], films[rows], targets[rows]
    row = observed[:, 0].nonzero().ravel().repeat_interleave(2)
    hours = torch.arange(len(row)) * 10.0
    values = torch.where((torch.arange(len(row)) % 2 == 0)[:, None, None, None], films[row], films[row].flip(2))
    # hours are counted within a shard: the same for a row wherever it is
    hours = hours % 20
    elements = {"cxr": Elements(row, hours, values)}
    return PatientBatch(
        elements, observed, targets, torch.ones(len(targets), 1, dtype=torch.bool), torch.arange(len(targets))
    )


def gradients(model: nn.Module, batch: PatientBatch) -> dict[str, Tensor]:
    model.zero_grad()
    model(batch).backward()
    return {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def main(rank: int, rendezvous: Path, weights: str) -> None:
    torch.set_num_threads(1)
    # before the process group is there, everything counts for one process
    joint = []
    for case in CASES:
        model = Model(weights, case).train()
        joint.append([gradients(model, batch_of(slice(None), step)) for step in range(len(STEPS))])
    distributed.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=2)
    for case, expected in zip(CASES, joint, strict=True):
        # without find_unused_parameters: a parameter without gradient would fail the next step
        shared = DistributedDataParallel(Model(weights, case).train())
        trained = {n.removeprefix("module.") for n, p in shared.named_parameters() if p.requires_grad}
        for step, one in enumerate(expected):
            found = gradients(shared, batch_of(SHARDS[rank], step))
            assert found.keys() == one.keys() == trained, f"{case} {step}"
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, one[name], rtol=1e-3, atol=1e-5, msg=f"{case} {step} {name}")
            assert any(g.any() for g in one.values()), f"{case} {step}"
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
