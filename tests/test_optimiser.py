from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import nn

from mmnar_lightning._parameters import parameter_groups, warmup_cosine
from mmnar_lightning.module import MultimodalOutcomeModule

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def test_the_learning_rate_rises_and_falls_as_it_says() -> None:
    factor = warmup_cosine(4, 24, 0.1)
    assert [factor(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == pytest.approx(1.0)
    assert factor(14) == pytest.approx(0.55)
    assert factor(24) == factor(1000) == pytest.approx(0.1)
    assert [warmup_cosine(0, 1, 0.0)(s) for s in (0, 1)] == pytest.approx([1.0, 0.0])


def test_only_matrices_are_decayed(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, modalities=["vitals", "labs", "diagnoses"])
    module = MultimodalOutcomeModule(data.schema, width=16, lr=0.01, weight_decay=0.3, warmup=0.0)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, datamodule=data)
    decayed, others = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in others["params"])
    grouped = [*decayed["params"], *others["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters()}
    assert len(grouped) == len(list(module.parameters()))


def test_parts_learn_at_their_own_rates(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, modalities=["vitals", "labs", "diagnoses"])
    rates = {"encoders": {"lr": 0.001, "weight_decay": 0.1}, "fusion": {"lr": 0.002}, "heads": {"weight_decay": 0.0}}
    module = MultimodalOutcomeModule(data.schema, width=16, lr=0.01, weight_decay=0.3, warmup=0.0, part_rates=rates)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, datamodule=data)
    found = {
        id(p): (g["initial_lr"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups for p in g["params"]
    }
    expected = {"encoders": (0.001, 0.1), "fusion": (0.002, 0.3), "heads": (0.01, 0.0)}
    for name, parameter in module.named_parameters():
        lr, decay = expected[name.split(".")[0]]
        assert found[id(parameter)] == (lr, decay if parameter.ndim > 1 else 0.0), name
    assert sum(len(g["params"]) for g in trainer.optimizers[0].param_groups) == len(list(module.parameters()))


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ({"decoder": {"lr": 1.0}}, "no part 'decoder'"),
        ({"heads": {"rate": 1.0}}, "no rate"),
        ({"heads": {"lr": -1}}, "neg"),
    ],
)
def test_rates_of_no_part_are_refused(make_datamodule: Any, tmp_path: Path, rates: Any, word: str) -> None:
    data = make_datamodule(tmp_path, modalities=["vitals"])
    with pytest.raises(ValueError, match=word):
        MultimodalOutcomeModule(data.schema, width=16, part_rates=rates)


def test_layers_of_a_backbone_decay_as_the_encoder_says() -> None:
    encoder = nn.Module()
    encoder.backbone, encoder.project = nn.Linear(3, 3), nn.Linear(3, 2)
    encoder.parameter_groups = lambda lr, wd: [  # type: ignore[assignment]
        {"params": [encoder.backbone.weight], "lr": lr * 0.5, "weight_decay": wd},
        {"params": [encoder.backbone.bias], "lr": lr * 0.5, "weight_decay": 0.0},
        {"params": [encoder.project.weight], "lr": lr, "weight_decay": 0.0},
        {"params": [encoder.project.bias], "lr": lr, "weight_decay": 0.0},
    ]
    model = nn.Module()
    model.encoders = nn.ModuleDict({"film": encoder})
    groups = parameter_groups(model, 1e-2, 0.1, {"backbones": {"lr": 1e-3}})
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates[id(encoder.backbone.weight)] == (5e-4, 0.1)
    assert rates[id(encoder.backbone.bias)] == (5e-4, 0.0)
    assert rates[id(encoder.project.weight)] == (1e-2, 0.0)
