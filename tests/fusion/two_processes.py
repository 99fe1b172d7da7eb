"""Run by test_two_processes.py, once a rank: losses and gradients of two devices are those of one on the joint batch.

python two_processes.py RANK RENDEZVOUS_FILE
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmnar_lightning._heads import OutcomeHeads
from mmnar_lightning._losses import OutcomeLoss
from mmnar_lightning.encoders import VectorEncoder, encode
from mmnar_lightning.fusion import EvidenceFusion, Fusion, MMNARFusion
from mmnar_lightning.objectives import global_count
from mmnar_lightning.records import Elements, FusionShape, Modality, PatientBatch, RecordSchema, Task

D, M, K, ROWS = 16, 3, 2, 13
SHARDS = (slice(0, 4), slice(4, ROWS))
MODALITIES = tuple(Modality(f"m{m}", "vector", tuple("xyz"), (0.0,) * 3, (1.0,) * 3) for m in range(M))
WEIGHTS = 4 * torch.rand(ROWS, M, generator=torch.Generator().manual_seed(1))
SCHEMA = RecordSchema(MODALITIES, (Task("a", prevalence=0.3), Task("b", prevalence=0.2, parent="a")))


class Case(NamedTuple):
    fusion: type[Fusion]
    options: dict[str, Any]
    outcome: dict[str, Any]
    weighted: bool = False


CASES = (
    Case(MMNARFusion, {"dropout": 0.0, "reconstruction": "latent", "missingness": "pattern"}, {}),
    Case(MMNARFusion, {"dropout": 0.0, "stop_gradient": False}, {"kind": "focal", "smoothing": 0.1}),
    Case(
        MMNARFusion,
        {"dropout": 0.0, "reconstruction": "input", "missingness": "leave_one_out"},
        {"weighting": "uncertainty", "weights": {"b": 0.5}},
        weighted=True,
    ),
    Case(EvidenceFusion, {}, {"weighting": "uncertainty"}),
    Case(EvidenceFusion, {"pattern": False}, {}, weighted=True),
)


class Model(nn.Module):
    """Everything from the batch to the loss, as the module puts it together."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weighted = case.weighted
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({m.name: VectorEncoder(m, D, dropout=0.0) for m in MODALITIES})
        self.fusion = case.fusion(FusionShape(D, SCHEMA.names, (3,) * M, K), **case.options)
        self.heads = OutcomeHeads(D, SCHEMA, dropout=0.0)
        self.loss = OutcomeLoss(SCHEMA, **case.outcome)
        for name, parameter in self.named_parameters():  # what starts at zero would hide mistakes
            if "log_variance" in name:
                nn.init.normal_(parameter, std=0.1)

    def forward(self, batch: PatientBatch) -> dict[str, Tensor]:
        encoded, weight = encode(self.encoders, batch), None
        if self.weighted:
            encoded, weight = replace(encoded, weights=WEIGHTS[batch.sample]), WEIGHTS[batch.sample, 0]
        fused = self.fusion(encoded)
        losses = self.loss(self.heads(fused.patient), batch, weight)
        terms = self.fusion.auxiliary(encoded, fused, batch.targets, batch.labelled, global_count)
        # those without gradient are watched on each device
        return {"outcome": self.loss.total(losses, batch, weight)} | {n: t for n, t in terms.items() if t.requires_grad}


def batch_of(rows: slice, step: int) -> PatientBatch:
    generator = torch.Generator().manual_seed(step)
    observed = torch.rand(ROWS, M, generator=generator) < 0.7
    observed[0] = False
    observed[SHARDS[step % 2], 1] = False  # a modality that is absent from all of one rank
    values = torch.randn(M, ROWS, 3, generator=generator)
    targets = (torch.rand(ROWS, K, generator=generator) < 0.5).float()
    labelled = torch.rand(ROWS, K, generator=generator) < 0.6
    labelled[SHARDS[1], 1] = False  # a task that one rank has no label of
    labelled[0, 1] = True
    observed, targets, labelled, values = observed[rows], targets[rows], labelled[rows], values[:, rows]
    elements = {}
    for m in range(M):
        row = observed[:, m].nonzero().ravel()
        elements[f"m{m}"] = Elements(row, torch.zeros(len(row)), values[m][row])
    return PatientBatch(elements, observed, targets, labelled, torch.arange(ROWS)[rows])


def gradients(model: nn.Module, batch: PatientBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad()
    terms = model(batch)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, {n: g.clone() for n, g in found.items()}


def main(rank: int, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    # before the process group is there, everything counts for one process
    joint = [[gradients(Model(case), batch_of(slice(None), step)) for step in range(2)] for case in CASES]
    distributed.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=2)
    for case, expected in zip(CASES, joint, strict=True):
        # without find_unused_parameters: a parameter without gradient would fail the second step
        model = DistributedDataParallel(Model(case))
        for step, (one_terms, one_grads) in enumerate(expected):
            terms, grads = gradients(model, batch_of(SHARDS[rank], step))
            for name, term in terms.items():
                distributed.all_reduce(term)
                torch.testing.assert_close(term / 2, one_terms[name], rtol=1e-5, atol=1e-6, msg=f"{case} {name}")
            assert grads.keys() == one_grads.keys() == dict(model.module.named_parameters()).keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, one_grads[name], rtol=1e-5, atol=1e-5, msg=f"{case} {step} {name}")
            assert all(float(one_terms[name]) != 0 for name in terms)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
