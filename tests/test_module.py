from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mmnar_lightning._evaluated import EvaluatedRows
from mmnar_lightning.fusion import ConcatFusion, DeltaOnlyFusion, EvidenceFusion, MMNARFusion
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, PatientBatch, RecordDataModule, SplitSettings

USED = ["vitals", "labs", "diagnoses"]
WEIGHTS = {"reconstruction": 1.0, "contrast": 0.3, "missingness": 0.5}
TERMS = {MMNARFusion: WEIGHTS, EvidenceFusion: {"reconstruction": 2.0, "availability": 0.5}}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
MakeModule = Callable[..., MultimodalOutcomeModule]


@pytest.fixture(scope="module")
def data(make_datamodule: Any, tmp_path_factory: pytest.TempPathFactory) -> RecordDataModule:
    splits = SplitSettings(val=0.2, calibration=0.4)
    made: RecordDataModule = make_datamodule(
        tmp_path_factory.mktemp("store"), modalities=USED, splits=splits, batch_size=32
    )
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def batch(data: RecordDataModule) -> PatientBatch:
    return next(iter(data.train_dataloader()))


@pytest.fixture
def make(data: RecordDataModule) -> MakeModule:
    """A module for the data, the same weights each time."""

    def made(**options: Any) -> MultimodalOutcomeModule:
        torch.manual_seed(0)
        module = MultimodalOutcomeModule(data.schema, width=16, **options)
        module.configure_model()
        return module

    return made


def at_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    monkeypatch.setattr(MultimodalOutcomeModule, "current_epoch", epoch)


def gradients(module: MultimodalOutcomeModule, batch: PatientBatch) -> dict[str, Tensor]:
    """Of every parameter; each must have one, or DDP would wait for it."""
    module.zero_grad()
    module._shared_step(batch).loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None for g in found.values()), [n for n, g in found.items() if g is None]
    return {name: g for name, g in found.items() if g is not None}


# ---- hyper-parameters and checkpoints


def test_parts_given_as_class_partial_and_dict_end_as_the_same_plain_types(make: MakeModule) -> None:
    path = "mmnar_lightning.fusion.mmnar.MMNARFusion"
    codes = {"class_path": "mmnar_lightning.encoders.codes.CodesEncoder"}
    made = [
        make(fusion=partial(MMNARFusion, blocks=2), encoders={"diagnoses": codes}),
        make(
            fusion={"class_path": path, "init_args": {"blocks": 2}}, encoders={"diagnoses": {**codes, "init_args": {}}}
        ),
    ]
    first, second = (json.dumps(dict(m.hparams), sort_keys=True) for m in made)
    assert first == second
    assert make(fusion=MMNARFusion).hparams["fusion"] == {"class_path": path, "init_args": {}}
    assert make().hparams["fusion"]["class_path"] == path


@pytest.fixture(scope="module")
def saved(data: RecordDataModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MultimodalOutcomeModule]:
    """A module trained from Python, and its checkpoint."""
    torch.manual_seed(0)
    fusion = partial(MMNARFusion, pooling="attention", hidden_per_row=1)
    module = MultimodalOutcomeModule(data.schema, fusion, width=16, auxiliary_weights=WEIGHTS, anneal_epochs=2)
    trainer = Trainer(max_epochs=2, default_root_dir=tmp_path_factory.mktemp("run"), **QUIET)
    trainer.fit(module, datamodule=data)
    path = tmp_path_factory.mktemp("checkpoints") / "module.ckpt"
    trainer.save_checkpoint(path)
    return path, module


def test_a_module_from_a_checkpoint_gives_the_same_logits_and_corrections(
    saved: tuple[Path, MultimodalOutcomeModule], batch: PatientBatch
) -> None:
    path, module = saved
    loaded = MultimodalOutcomeModule.load_from_checkpoint(path, weights_only=True, map_location="cpu").eval()
    module.eval()
    assert torch.equal(module(batch), loaded(batch))
    assert module.rectifier.fitted
    assert loaded.rectifier.to_state() == module.rectifier.to_state()
    expected, found = (m.predict_step(batch, 0) for m in (module, loaded))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not torch.equal(found["raw"], found["rectified"])


def test_a_checkpoint_of_another_class_cannot_be_slipped_in(
    saved: tuple[Path, MultimodalOutcomeModule], tmp_path: Path
) -> None:
    checkpoint = torch.load(saved[0], weights_only=True)
    checkpoint["hyper_parameters"]["fusion"] = {"class_path": "os.system", "init_args": {"command": "false"}}
    torch.save(checkpoint, tmp_path / "forged.ckpt")
    with pytest.raises(ValueError, match=r"os.system is no Fusion"):
        MultimodalOutcomeModule.load_from_checkpoint(tmp_path / "forged.ckpt", weights_only=True)


def test_validating_changes_no_rectifier(saved: tuple[Path, MultimodalOutcomeModule], data: RecordDataModule) -> None:
    module = MultimodalOutcomeModule.load_from_checkpoint(saved[0], weights_only=True)
    module.rectifier._fitted = replace(module.rectifier._fitted, bias=module.rectifier._fitted.bias + 1)  # type: ignore[union-attr, type-var]
    before = module.rectifier.to_state()
    Trainer(**QUIET).validate(module, datamodule=data, verbose=False)
    assert module.rectifier.to_state() == before


def test_the_sanity_check_fits_no_rectifier(data: RecordDataModule, make: MakeModule, tmp_path: Path) -> None:
    fitted: list[bool] = []
    module = make()
    module.on_train_start = lambda: fitted.append(module.rectifier.fitted)  # type: ignore[method-assign]
    quiet = QUIET | {"num_sanity_val_steps": 1, "default_root_dir": tmp_path}
    Trainer(max_epochs=1, limit_train_batches=1, **quiet).fit(module, datamodule=data)
    assert fitted == [False]
    assert module.rectifier.fitted


def test_the_rectifier_knows_calibration_a_only(
    data: RecordDataModule, make: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    original = MultimodalOutcomeModule._fit_rectifier

    def spied(self: MultimodalOutcomeModule, rows: EvaluatedRows) -> None:
        given.append(len(rows))
        original(self, rows)

    monkeypatch.setattr(MultimodalOutcomeModule, "_fit_rectifier", spied)
    Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, **QUIET).fit(make(), datamodule=data)
    assert given == [len(data.samples_of("calibration"))]
    assert len(data.samples_of("conformal")) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss 'hinge' is not one of bce, focal"),
        ({"task_weights": {"flu": 1.0}}, "task_weights: 'flu' unknown; there are: death, death_early, readmission"),
        ({"encoders": {"films": DeltaOnlyFusion}}, "encoders: 'films' unknown; there are: vitals, labs, diagnoses"),
        ({"encoders": {"labs": DeltaOnlyFusion}}, "DeltaOnlyFusion is no Encoder"),
        ({"fusion": {"class_path": "torch.nn.Linear"}}, "torch.nn.Linear is no Fusion"),
        (
            {"fusion": {"class_path": "mmnar_lightning.fusion.MMNARFusion", "init_args": {"colour": "red"}}},
            "cannot build .*'colour'",
        ),
    ],
)
def test_a_wrong_choice_is_an_error_that_says_so(options: dict[str, Any], message: str, make: MakeModule) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("fusion", [MMNARFusion, DeltaOnlyFusion])
def test_a_weight_for_a_term_that_does_not_exist_is_an_error(
    fusion: Any, make: MakeModule, batch: PatientBatch
) -> None:
    with pytest.raises(ValueError, match="auxiliary_weights: 'magic' unknown; there are:"):
        make(fusion=fusion, auxiliary_weights={"magic": 1.0}).train()._shared_step(batch)


def test_building_twice_builds_once(make: MakeModule) -> None:
    module = make()
    before = {name: id(p) for name, p in module.named_parameters()}
    module.configure_model()
    assert {name: id(p) for name, p in module.named_parameters()} == before


# ---- losses


@pytest.mark.parametrize(
    ("pretrain", "anneal", "shares"),
    [
        (2, 4, [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        (0, None, [1, 1, 1]),
        (1, None, [1, 1, 1]),
        (2, 0, [1, 1, 0, 0]),
        (0, 1, [1, 0, 0]),
    ],
)
def test_the_auxiliary_share_falls_as_it_says(
    pretrain: int, anneal: int | None, shares: list[float], make: MakeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(pretrain_epochs=pretrain, anneal_epochs=anneal)
    for epoch, share in enumerate(shares):
        at_epoch(monkeypatch, epoch)
        assert module.auxiliary_share == pytest.approx(share)
        assert module.pretraining == (epoch < pretrain)


@pytest.mark.parametrize("epoch", range(4))
def test_the_loss_is_the_weighted_sum_of_its_terms(
    epoch: int, make: MakeModule, batch: PatientBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"death": 2.0, "readmission": 0.25}
    module = make(auxiliary_weights=WEIGHTS, task_weights=weights, pretrain_epochs=1, anneal_epochs=2).train()
    at_epoch(monkeypatch, epoch)
    result = module._shared_step(batch)
    terms = {name: float(value) for name, value in result.terms.items()}
    outcome = sum(weights.get(t, 1.0) * terms[f"loss_{t}"] for t in module.schema.task_names)
    share = [1.0, 1.0, 0.5, 0.0][epoch]
    auxiliary = sum(weight * terms[name] for name, weight in WEIGHTS.items()) if share else 0.0
    expected = (0.0 if epoch == 0 else outcome) + share * auxiliary
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_pretraining_moves_no_head_and_reaches_everything_else(make: MakeModule, batch: PatientBatch) -> None:
    found = gradients(make(auxiliary_weights=WEIGHTS, pretrain_epochs=1).train(), batch)
    heads = {name: g for name, g in found.items() if name.startswith("heads.")}
    assert heads
    assert all(not g.any() for g in heads.values())
    for part in ("encoders.vitals.", "encoders.labs.", "encoders.diagnoses.", "fusion."):
        assert any(g.any() for name, g in found.items() if name.startswith(part)), part


@pytest.mark.parametrize("fusion", [MMNARFusion, EvidenceFusion, ConcatFusion, DeltaOnlyFusion])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_parameter_has_a_gradient_in_every_phase(
    fusion: Any, epoch: int, make: MakeModule, batch: PatientBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(
        fusion=fusion,
        auxiliary_weights=TERMS.get(fusion),
        pretrain_epochs=1,
        anneal_epochs=2,
        task_weighting="uncertainty",
    ).train()
    at_epoch(monkeypatch, epoch)
    found = gradients(module, batch)
    assert all(g.isfinite().all() for g in found.values())
    if epoch:
        assert all(g.any() for name, g in found.items() if name.startswith("heads.direct"))


def test_without_auxiliary_weights_pretraining_has_nothing_to_learn_but_is_finite(
    make: MakeModule, batch: PatientBatch
) -> None:
    assert not any(g.any() for g in gradients(make(pretrain_epochs=1).train(), batch).values())


def plain_loss(logits: Tensor, batch: PatientBatch, task: int) -> float:
    """Mean of −y log p − (1 − y) log(1 − p) over the labelled, in plain Python."""
    terms = []
    for x, y, known in zip(
        logits[:, task].tolist(), batch.targets[:, task].tolist(), batch.labelled[:, task].tolist(), strict=True
    ):
        if known:
            p = 1 / (1 + math.exp(-x))
            terms.append(-math.log(p if y else 1 - p))
    return sum(terms) / len(terms)


def test_bce_is_the_mean_over_the_labelled(make: MakeModule, batch: PatientBatch) -> None:
    module = make().eval()
    logits = module(batch).detach()
    losses = module.outcome_loss(logits, batch)
    assert not batch.labelled.all()
    for k in range(3):
        assert float(losses[k]) == pytest.approx(plain_loss(logits, batch, k), rel=1e-4)


def test_focal_weighs_by_training_prevalence(make: MakeModule, batch: PatientBatch) -> None:
    module = make(loss="focal", focal_gamma=1.5).eval()
    logits = module(batch).detach()
    losses = module.outcome_loss(logits, batch)
    for k, task in enumerate(module.schema.tasks):
        known = batch.labelled[:, k].numpy()
        p, y = logits[:, k].double().sigmoid().numpy()[known], batch.targets[:, k].numpy()[known]
        assert task.prevalence is not None
        alpha = np.where(y == 1, 1 - task.prevalence, task.prevalence)
        right = np.where(y == 1, p, 1 - p)
        assert float(losses[k]) == pytest.approx(np.mean(-alpha * (1 - right) ** 1.5 * np.log(right)), rel=1e-4)


def test_a_missing_label_teaches_nothing(make: MakeModule, batch: PatientBatch) -> None:
    module = make(auxiliary_weights=WEIGHTS).eval()
    logits = module(batch).detach().requires_grad_()
    module.outcome_loss(logits, batch).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[~batch.labelled].any()
    assert (logits.grad[batch.labelled] != 0).all()
    turned = replace(batch, targets=torch.where(batch.labelled, batch.targets, 1 - batch.targets))
    assert torch.equal(module.outcome_loss(logits, turned), module.outcome_loss(logits, batch))


def test_a_batch_without_any_label_has_loss_zero(make: MakeModule, batch: PatientBatch) -> None:
    nobody = replace(batch, labelled=torch.zeros_like(batch.labelled))
    module = make().train()
    assert float(module._shared_step(nobody).loss.detach()) == 0
    assert not any(g.any() for g in gradients(module, nobody).values())


# ---- batches with little in them


def only(batch: PatientBatch, rows: list[int], modalities: set[str] | None = None) -> PatientBatch:
    """Some rows of a batch, and of these some modalities."""
    index = torch.tensor(rows, dtype=torch.int64)
    place = torch.full((len(batch),), -1).index_put((index,), torch.arange(len(rows)))
    elements = {}
    observed = batch.observed[index].clone()
    for m, (name, e) in enumerate(batch.elements.items()):
        there = (place[e.row] >= 0) & (modalities is None or name in modalities)
        assert isinstance(e.values, Tensor)
        elements[name] = Elements(place[e.row][there], e.hours_before[there], e.values[there])
        if modalities is not None and name not in modalities:
            observed[:, m] = False
    return PatientBatch(elements, observed, batch.targets[index], batch.labelled[index], batch.sample[index])


@pytest.mark.parametrize("fusion", [MMNARFusion, EvidenceFusion, ConcatFusion, DeltaOnlyFusion])
@pytest.mark.parametrize(
    ("rows", "modalities"),
    [
        ([0], None),
        ([0], set()),
        (list(range(8)), set()),
        (list(range(8)), {"labs"}),
        (list(range(8)), {"diagnoses"}),
        ([], None),
    ],
    ids=["one row", "one row with nothing", "nothing", "labs only", "codes only", "no row"],
)
def test_a_batch_with_little_in_it_is_finite_and_trains(
    fusion: Any, rows: list[int], modalities: set[str] | None, make: MakeModule, batch: PatientBatch
) -> None:
    module = make(fusion=fusion, auxiliary_weights=TERMS.get(fusion), task_weighting="uncertainty").train()
    little = only(batch, rows, modalities)
    assert module(little).shape == (len(rows), 3)
    assert module(little).isfinite().all()
    assert all(g.isfinite().all() for g in gradients(module, little).values())


def test_a_row_alone_gets_what_it_gets_among_others(make: MakeModule, batch: PatientBatch) -> None:
    module = make().eval()
    with torch.no_grad():
        together = module(batch)
        for row in range(4):
            torch.testing.assert_close(module(only(batch, [row]))[0], together[row], rtol=1e-4, atol=1e-5)


# ---- training


def test_64_patients_can_be_learned_by_heart(make: MakeModule, data: RecordDataModule) -> None:
    dataset = data.train_dataloader().dataset
    everything = dataset.__getitems__(list(range(len(dataset))))
    # rows without vitals may be alike; those with are all different
    rows = everything.observed[:, 0].nonzero().ravel()[:64].tolist()
    assert len(rows) == 64
    batch = only(everything, rows)
    fusion = partial(MMNARFusion, dropout=0.0, hidden_per_row=1)
    module = make(fusion=fusion, dropout=0.0, auxiliary_weights={"reconstruction": 0.1}).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        module._shared_step(batch).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module.eval()
    with torch.no_grad():
        probabilities = module(batch).sigmoid()
    wrong = (probabilities - batch.targets).abs()[batch.labelled]
    assert float(wrong.max()) < 0.1


def test_recalibration_is_the_global_step_of_the_rectifier(saved: tuple[Path, MultimodalOutcomeModule]) -> None:
    rectifier = saved[1].rectifier
    logits = torch.randn(7, 3)
    shifts = rectifier.shifts()
    assert "" in rectifier.reasons
    for k, task in enumerate(rectifier.tasks):
        if rectifier.reasons[k]:
            continue
        expected = logits[:, k] / shifts[f"{task}/temperature"] + shifts[f"{task}/bias"]
        torch.testing.assert_close(rectifier.recalibrate(logits)[:, k], expected, rtol=1e-5, atol=1e-5)
