"""The collapse watch: what it computes, and that it can tell a collapse from none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from mmnar_lightning._watch import spread
from mmnar_lightning.fusion import EvidenceFusion, MMNARFusion
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Encoded, PatientBatch, RecordDataModule

NAMES = ("vitals", "labs", "diagnoses")
FLOOR = {"vitals": 0.25, "labs": 0.25, "diagnoses": 0.25, "patient": 0.1}


def test_spread_is_the_mean_over_dimensions_of_the_deviation_over_rows() -> None:
    observed = torch.rand(30, 4) < 0.6
    observed[:, 2], observed[:, 3] = False, torch.arange(30) == 7
    modality, row = observed.T.nonzero(as_tuple=True)
    tokens, patient = torch.randn(len(row), 5) * 3 + 100, torch.randn(30, 5)
    found = spread(Encoded(tokens, row, modality, observed), patient, ("a", "b", "c", "d"))
    for m, name in enumerate(("a", "b")):
        expected = tokens[modality == m].double().numpy().std(0, ddof=1).mean()
        assert float(found[f"spread/{name}"]) == pytest.approx(expected, rel=1e-4)
    assert float(found["spread/patient"]) == pytest.approx(patient.numpy().std(0, ddof=1).mean(), rel=1e-4)
    assert np.isnan(float(found["spread/c"]))
    assert np.isnan(float(found["spread/d"]))
    nobody = Encoded(tokens[:0], row[:0], modality[:0], observed[:0])
    assert all(value.isnan() for value in spread(nobody, patient[:0], ("a", "b", "c", "d")).values())


@pytest.fixture(scope="module")
def data(make_datamodule: Any, tmp_path_factory: pytest.TempPathFactory) -> RecordDataModule:
    made: RecordDataModule = make_datamodule(tmp_path_factory.mktemp("store"), modalities=list(NAMES), batch_size=64)
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def trained(data: RecordDataModule) -> Callable[..., dict[str, float]]:
    """Spread over 64 patients after 120 steps on them with the module's own optimiser settings."""
    dataset = data.train_dataloader().dataset
    everything: PatientBatch = dataset.__getitems__(list(range(64)))

    def train(**options: Any) -> dict[str, float]:
        torch.manual_seed(0)
        module = MultimodalOutcomeModule(data.schema, width=16, **options)
        module.configure_model()
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            result = module._shared_step(everything)
            result.loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: float(value) for name, value in result.terms.items() if name.startswith("spread/")}

    return train


@pytest.mark.parametrize(
    ("fusion", "weights"),
    [
        (partial(MMNARFusion, hidden_per_row=1), {"reconstruction": 1.0, "contrast": 0.3, "missingness": 0.5}),
        (EvidenceFusion, {"reconstruction": 2.0, "availability": 0.5}),
    ],
    ids=["mmnar", "evidence"],
)
def test_nothing_collapses_as_the_defaults_are(
    fusion: Any, weights: dict[str, float], trained: Callable[..., dict[str, float]]
) -> None:
    found = trained(fusion=fusion, auxiliary_weights=weights)
    assert set(found) == {*(f"spread/{name}" for name in NAMES), "spread/patient"}
    assert all(found[f"spread/{name}"] > floor for name, floor in FLOOR.items()), found


def test_latent_reconstruction_without_stop_gradient_collapses_and_is_seen(
    trained: Callable[..., dict[str, float]],
) -> None:
    options: dict[str, Any] = {"hidden_per_row": 1, "contrast": False, "missingness": "none"}
    weights = {"reconstruction": 50.0}
    literal = trained(fusion=partial(MMNARFusion, stop_gradient=False, **options), auxiliary_weights=weights)
    stopped = trained(fusion=partial(MMNARFusion, **options), auxiliary_weights=weights)
    for name in NAMES:
        assert literal[f"spread/{name}"] < FLOOR[name], literal
        assert stopped[f"spread/{name}"] > FLOOR[name], stopped


def test_it_is_logged_at_every_step(data: RecordDataModule, tmp_path: Path) -> None:
    module = MultimodalOutcomeModule(data.schema, width=16)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=2, limit_val_batches=0, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, datamodule=data)
    for name in (*NAMES, "patient"):
        assert trainer.logged_metrics[f"train/spread/{name}"] > 0
