from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from mmnar_lightning.module import MultimodalOutcomeModule, _warmup_cosine

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def test_the_learning_rate_rises_and_falls_as_it_says() -> None:
    factor = _warmup_cosine(4, 24, 0.1)
    assert [factor(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == pytest.approx(1.0)
    assert factor(14) == pytest.approx(0.55)
    assert factor(24) == factor(1000) == pytest.approx(0.1)
    assert [_warmup_cosine(0, 1, 0.0)(s) for s in (0, 1)] == pytest.approx([1.0, 0.0])


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
