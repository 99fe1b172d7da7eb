"""What an evaluation pass leaves: rows for callbacks, uncertainty in predictions; and which precisions are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mmnar_lightning._evaluated import EvaluatedRows
from mmnar_lightning.fusion import EvidenceFusion, MMNARFusion
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import PatientBatch, RecordDataModule, SplitSettings, pattern_id

NAMES = ("vitals", "labs", "diagnoses")
MakeModule = Callable[..., MultimodalOutcomeModule]


@pytest.fixture(scope="module")
def data(make_datamodule: Any, tmp_path_factory: pytest.TempPathFactory) -> RecordDataModule:
    splits = SplitSettings(val=0.2, calibration=0.4)
    made: RecordDataModule = make_datamodule(
        tmp_path_factory.mktemp("store"), modalities=list(NAMES), splits=splits, batch_size=32
    )
    made.setup("fit")
    return made


@pytest.fixture
def make(data: RecordDataModule) -> MakeModule:
    def made(**options: Any) -> MultimodalOutcomeModule:
        torch.manual_seed(0)
        module = MultimodalOutcomeModule(data.schema, width=16, **options)
        module.configure_model()
        return module

    return made


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, max_epochs=1, limit_train_batches=1, **quiet, **options)


class Kept(Callback):
    """Looks at what there is when a pass starts and after it ended."""

    def __init__(self) -> None:
        self.before: list[set[str]] = []
        self.after: list[dict[str, EvaluatedRows]] = []

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.before.append(set(pl_module.evaluated))  # type: ignore[arg-type]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after.append(dict(pl_module.evaluated))  # type: ignore[arg-type]


def test_rows_of_a_pass_are_kept_until_the_next(data: RecordDataModule, make: MakeModule, tmp_path: Path) -> None:
    module, kept = make(), Kept()
    trainer(tmp_path).fit(module, datamodule=data)
    assert set(module.evaluated) == {"val", "calibration"}
    assert module.evaluated["val"].sample.tolist() == data.samples_of("val").tolist()
    assert module.evaluated["calibration"].sample.tolist() == data.samples_of("calibration").tolist()
    for _ in range(2):
        trainer(tmp_path, callbacks=[kept]).test(module, datamodule=data, verbose=False)
    assert all("test" not in names for names in kept.before), "the rows of the last pass are let go first"
    rows = kept.after[-1]["test"]
    samples = data.samples_of("test").tolist()
    assert rows.sample.tolist() == samples
    assert len(rows) == len(samples)
    data.setup("test")
    dataset = data.test_dataloader().dataset
    batch: PatientBatch = dataset.__getitems__(list(range(len(dataset))))
    assert batch.sample.tolist() == samples
    with torch.no_grad():
        torch.testing.assert_close(rows.logits, module.eval()(batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(rows.targets, batch.targets)
    assert torch.equal(rows.labelled, batch.labelled)
    assert torch.equal(rows.pattern, pattern_id(batch.observed))


def test_uncertainty_is_predicted_where_the_fusion_has_one(data: RecordDataModule, make: MakeModule) -> None:
    batch = next(iter(data.train_dataloader()))
    found = make(fusion=EvidenceFusion).eval().predict_step(batch, 0)["uncertainty"]
    assert found.shape == (len(batch),)
    assert ((found > 0) & (found <= 1)).all()
    assert not found.requires_grad
    number = batch.observed.sum(1)
    assert found[number >= 2].mean() < found[number <= 1].mean()
    assert "uncertainty" not in make(fusion=MMNARFusion).eval().predict_step(batch, 0)


@pytest.mark.parametrize("precision", ["64-true", "16-true", "bf16-true"])
def test_weights_of_another_precision_are_refused(
    precision: str, data: RecordDataModule, make: MakeModule, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"precision '{precision}' .*choose one of 32-true, 16-mixed, bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(make(), datamodule=data)


def test_the_refusal_is_one_line_on_the_command_line(mmnar: Any, own_tables: Path, tmp_path: Path) -> None:
    config = Path(__file__).with_name("conf") / "evidence.yaml"
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores")
    done = mmnar("fit", "--config", config, *data, "--run_dir", tmp_path / "run", "--trainer.precision", "64-true")
    assert done.status == 1
    assert done.out.splitlines()[-1].startswith("mmnar fit: error: precision '64-true' would round"), done.out


def test_mixed_precision_trains(data: RecordDataModule, make: MakeModule, tmp_path: Path) -> None:
    module = make(fusion=EvidenceFusion, auxiliary_weights={"reconstruction": 2.0, "availability": 0.5})
    trainer(tmp_path, precision="bf16-mixed").fit(module, datamodule=data)
    assert all(p.isfinite().all() for p in module.parameters())
