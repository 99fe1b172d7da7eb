"""The outcome loss: what weighs the tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmnar_lightning._losses import OutcomeLoss
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, Modality, PatientBatch, RecordSchema, Task

SCHEMA = RecordSchema((Modality("labs", "vector", ("x",)),), tuple(Task(t, prevalence=0.2) for t in ("a", "b", "c")))


def batch_of(rows: int = 60, unlabelled: int | None = None) -> tuple[Tensor, PatientBatch]:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(rows, 3, generator=generator) < 0.3).float()
    labelled = torch.rand(rows, 3, generator=generator) < 0.8
    if unlabelled is not None:
        labelled[:, unlabelled] = False
    elements = {"labs": Elements(torch.zeros(0), torch.zeros(0), torch.zeros(0, 1))}
    batch = PatientBatch(elements, torch.zeros(rows, 1) > 0, targets, labelled, torch.arange(rows))
    return torch.randn(rows, 3, generator=generator), batch


def test_fixed_weights_are_a_weighted_sum() -> None:
    logits, batch = batch_of()
    loss = OutcomeLoss(SCHEMA, weights={"b": 3.0})
    each = loss(logits, batch)
    torch.testing.assert_close(loss.total(each, batch), each[0] + 3 * each[1] + each[2])
    assert list(loss.parameters()) == []


def test_learned_weights_are_their_formula() -> None:
    logits, batch = batch_of()
    loss = OutcomeLoss(SCHEMA, weights={"b": 3.0}, weighting="uncertainty")
    assert loss.log_variance is not None
    each = loss(logits, batch)
    torch.testing.assert_close(loss.total(each, batch), each[0] + 3 * each[1] + each[2], msg="equal at the start")
    s = [0.3, -0.7, 1.1]
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor(s))
    plain = [math.exp(-s[k]) * float(each[k]) + s[k] / 2 for k in range(3)]
    assert float(loss.total(each, batch).detach()) == pytest.approx(plain[0] + 3 * plain[1] + plain[2], rel=1e-5)


def test_learned_weights_end_where_their_derivative_is_zero() -> None:
    logits, batch = batch_of()
    loss = OutcomeLoss(SCHEMA, weighting="uncertainty")
    each = loss(logits * torch.tensor([0.1, 1.0, 3.0]), batch)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss.total(each, batch)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert loss.log_variance is not None
    # d/ds (e^(−s) L + s/2) = 0 at e^(−s) = 1 / (2 L): the harder task has the smaller weight
    torch.testing.assert_close((-loss.log_variance).exp().detach(), 1 / (2 * each), rtol=1e-3, atol=1e-3)


def test_a_task_without_a_label_adds_nothing_and_learns_nothing() -> None:
    logits, batch = batch_of(unlabelled=1)
    loss = OutcomeLoss(SCHEMA, weighting="uncertainty")
    assert loss.log_variance is not None
    with torch.no_grad():
        loss.log_variance.fill_(0.5)
    loss.total(loss(logits, batch), batch).backward()  # type: ignore[no-untyped-call]
    assert loss.log_variance.grad is not None
    assert loss.log_variance.grad[1] == 0
    assert (loss.log_variance.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("options", [{"smoothing": 0.2}, {"kind": "focal"}, {"kind": "focal", "gamma": 0.5}])
def test_every_option_is_used(options: dict[str, Any]) -> None:
    logits, batch = batch_of()
    assert not torch.allclose(OutcomeLoss(SCHEMA, **options)(logits, batch), OutcomeLoss(SCHEMA)(logits, batch))


def test_a_wrong_choice_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="task_weighting 'gradnorm' is not one of fixed, uncertainty"):
        OutcomeLoss(SCHEMA, weighting="gradnorm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss 'hinge' is not one of bce, focal"):
        OutcomeLoss(SCHEMA, kind="hinge")  # type: ignore[arg-type]


def test_the_module_hands_its_options_on() -> None:
    options: dict[str, Any] = {"loss": "focal", "focal_gamma": 1.5, "label_smoothing": 0.1}
    module = MultimodalOutcomeModule(SCHEMA.to_dict(), task_weights={"b": 3.0}, task_weighting="uncertainty", **options)
    found = module.outcome_loss
    assert (found.kind, found.gamma, found.smoothing) == ("focal", 1.5, 0.1)
    assert torch.equal(found.weights, torch.tensor([1.0, 3.0, 1.0]))  # type: ignore[arg-type]
    assert found.log_variance is not None


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_sample_weights_are_a_weighted_mean_over_labelled_samples(kind: Any) -> None:
    logits, batch = batch_of(40, unlabelled=1)
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 3
    weight[:10] = 0
    loss = OutcomeLoss(SCHEMA, kind=kind)
    found = loss(logits, batch, weight)
    for k in (0, 2):
        each = [float(loss(logits[i : i + 1], rows_of(batch, i))[k]) for i in range(40)]
        kept = [i for i in range(40) if batch.labelled[i, k]]
        expected = sum(float(weight[i]) * each[i] for i in kept) / sum(float(weight[i]) for i in kept)
        assert float(found[k]) == pytest.approx(expected, rel=1e-5)
        assert abs(expected - float(loss(logits, batch)[k])) > 1e-3, "weights that change nothing would show nothing"
    assert float(found[1]) == 0
    torch.testing.assert_close(loss(logits, batch, torch.full((40,), 2.5)), loss(logits, batch))


def rows_of(batch: PatientBatch, i: int) -> PatientBatch:
    at = slice(i, i + 1)
    return PatientBatch(batch.elements, batch.observed[at], batch.targets[at], batch.labelled[at], batch.sample[at])


def test_samples_of_weight_zero_alone_teach_nothing() -> None:
    logits, batch = batch_of(20)
    loss = OutcomeLoss(SCHEMA, weighting="uncertainty")
    assert loss.log_variance is not None
    with torch.no_grad():
        loss.log_variance.fill_(0.5)
    weight = torch.zeros(20)
    assert float(loss.total(loss(logits, batch, weight), batch, weight).detach()) == 0
