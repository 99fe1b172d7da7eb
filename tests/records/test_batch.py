from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmnar_lightning.records import Encoded, Inputs, PatientBatch, RecordDataModule


@pytest.fixture
def batch(tmp_path: Path, make_datamodule: Callable[..., RecordDataModule]) -> PatientBatch:
    data = make_datamodule(tmp_path, n_patients=60, batch_size=16)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def tensors(packed: Any) -> list[Tensor]:
    """All tensors of a batch, walked without the batch's own code."""
    if isinstance(packed, Tensor):
        return [packed]
    if isinstance(packed, dict):
        return [t for v in packed.values() for t in tensors(v)]
    if hasattr(packed, "__dataclass_fields__"):
        return [t for f in fields(packed) for t in tensors(getattr(packed, f.name))]
    if isinstance(packed, tuple):
        return [t for v in packed for t in tensors(v)]
    return []


def test_to_moves_every_tensor_and_keeps_strings(batch: PatientBatch) -> None:
    moved = batch.to("meta", non_blocking=True)
    assert len(tensors(moved)) == len(tensors(batch)) == 4 + 3 * 3 + 4 + 3
    assert all(t.device.type == "meta" for t in tensors(moved))
    assert all(t.device.type == "cpu" for t in tensors(batch))
    assert moved.elements["notes"].values == batch.elements["notes"].values
    assert list(moved.elements) == list(batch.elements)


def test_pin_memory_pins_every_tensor(batch: PatientBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch.pin_memory()
    assert sorted(pinned) == sorted(id(t) for t in tensors(batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pin_and_to_on_a_device(batch: PatientBatch) -> None:
    pinned = batch.pin_memory()
    assert all(t.is_pinned() for t in tensors(pinned))
    moved = pinned.to("cuda", non_blocking=True)
    for there, here in zip(tensors(moved), tensors(batch), strict=True):
        torch.testing.assert_close(there.cpu(), here, equal_nan=True, rtol=0, atol=0)


def test_frozen(batch: PatientBatch) -> None:
    with pytest.raises(FrozenInstanceError):
        batch.observed = torch.zeros(1)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        batch.elements["labs"].row = torch.zeros(1)  # type: ignore[misc]


def test_travels_between_processes(batch: PatientBatch) -> None:
    copy = pickle.loads(pickle.dumps(batch))
    assert len(copy) == len(batch) == 16
    for there, here in zip(tensors(copy), tensors(batch), strict=True):
        torch.testing.assert_close(there, here, equal_nan=True, rtol=0, atol=0)


def test_dense_puts_each_token_into_its_slot() -> None:
    observed = torch.tensor([[True, False], [True, True], [False, False]])
    tokens = torch.arange(1.0, 7).reshape(3, 2).requires_grad_()
    row, modality = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    encoded = Encoded(tokens, row, modality, observed, (Inputs(torch.ones(2, 1), torch.ones(2, 1).bool()), None))
    dense = encoded.dense()
    assert dense.tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]], [[0, 0], [0, 0]]]
    assert torch.autograd.grad(dense.sum(), tokens)[0].tolist() == [[1, 1]] * 3
    assert encoded.to("meta").inputs[1] is None
