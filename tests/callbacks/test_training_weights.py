"""Weights of training samples: from train alone, into the loss, in no checkpoint, the same after a resume."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from mmnar_lightning.callbacks import AssignmentWeights, SampleWeights
from mmnar_lightning.evaluation.covariates import training_weights
from mmnar_lightning.evaluation.overlap import OverlapError
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import PatientBatch, RecordDataModule, SplitSettings
from mmnar_tables import TablesDataModule

CONF = Path(__file__).parents[1] / "conf"
LENIENT: dict[str, Any] = {"min_ess": 5, "min_ess_share": 0.01, "max_clipped": 0.9}


class Watched(Callback):
    """Keeps the weights of the module and the samples that it was trained on."""

    def __init__(self) -> None:
        self.samples: set[int] = set()
        self.weights: torch.Tensor | None = None
        self.sample_weights: torch.Tensor | None = None
        self.state: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PatientBatch, _: int) -> None:
        module: Any = pl_module
        self.samples |= set(batch.sample.tolist())
        self.weights, self.sample_weights = module.reconstruction_weights, module.sample_weights
        self.state = set(module.state_dict())


@pytest.fixture(scope="module")
def data(make_datamodule: Any, tmp_path_factory: pytest.TempPathFactory) -> RecordDataModule:
    made: RecordDataModule = make_datamodule(
        tmp_path_factory.mktemp("store"),
        300,
        modalities=["vitals", "labs", "diagnoses"],
        splits=SplitSettings(val=0.2, calibration=0.2),
        batch_size=64,
    )
    made.setup("fit")
    return made


def module_of(data: RecordDataModule) -> MultimodalOutcomeModule:
    torch.manual_seed(0)
    return MultimodalOutcomeModule(data.schema, width=16, dropout=0.0, auxiliary_weights={"reconstruction": 1.0})


def trainer(folder: Path, *callbacks: Callback) -> Trainer:
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    logger = CSVLogger(folder, name="log")
    return Trainer(default_root_dir=folder, max_epochs=1, callbacks=list(callbacks), logger=logger, **quiet)


def weights_file(path: Path, data: RecordDataModule, **changed: Any) -> Path:
    rows = data.samples_of("train")
    weight = np.random.default_rng(0).gamma(2.0, size=len(rows))
    frame = pl.DataFrame({"sample": rows, "weight": weight / weight.mean()})
    frame.write_parquet(path, metadata={"store": changed.get("store", data.records.fingerprint)})
    return path


def test_a_fit_is_weighted_by_train_alone(data: RecordDataModule, tmp_path: Path) -> None:
    watched, module = Watched(), module_of(data)
    callback = AssignmentWeights(["vitals"], groups=["site"], clip=1.5, **LENIENT)
    trainer(tmp_path, callback, watched).fit(module, datamodule=data)
    expected = training_weights(data, always=["vitals"], groups=["site"], cap=1.5)
    assert watched.weights is not None
    assert watched.weights.dtype == torch.float32
    np.testing.assert_allclose(watched.weights.numpy(), expected.values, rtol=1e-6)
    train = set(data.samples_of("train").tolist())
    assert watched.samples == train
    assert watched.weights[sorted(watched.samples)].isfinite().all()
    assert watched.weights[sorted(set(range(len(data.records))) - train)].isnan().all()
    assert not {name for name in watched.state if name.startswith(("reconstruction_weights", "sample_weights"))}
    assert module.reconstruction_weights is None, "another fit may be on other data"
    logged = pl.read_csv(tmp_path / "log" / "version_0" / "metrics.csv")
    for m, name in enumerate(expected.names):
        for what, values in (("ess", expected.ess), ("clipped", expected.clipped)):
            column = f"assignment/{what}/{name}"
            assert (column in logged.columns) == (name != "vitals")
            if name != "vitals":
                assert logged[column].drop_nulls().to_list() == pytest.approx([values[m]])
    assert 0 < expected.clipped[1] < 0.5


def test_weights_enter_the_loss_of_a_batch_by_its_samples(data: RecordDataModule) -> None:
    module = module_of(data)
    module.configure_model()
    module.eval()
    dataset = data.train_dataloader().dataset
    batch: PatientBatch = dataset.__getitems__(list(range(5, 45)))
    plain = module._shared_step(batch)
    n, M = len(data.records), len(module.schema.names)
    generator = torch.Generator().manual_seed(0)
    module.reconstruction_weights = torch.full((n, M), torch.nan)
    module.reconstruction_weights[batch.sample] = 3 * torch.rand(len(batch), M, generator=generator)
    module.sample_weights = torch.full((n,), torch.nan)
    module.sample_weights[batch.sample] = v = 3 * torch.rand(len(batch), generator=generator)
    weighted = module._shared_step(batch)
    for k, task in enumerate(module.schema.task_names):
        y, there = batch.targets[:, k].numpy(), batch.labelled[:, k].numpy()
        p = plain.logits[:, k].sigmoid().detach().double().numpy()
        each = -(y * np.log(p) + (1 - y) * np.log(1 - p))
        expected = np.average(each[there], weights=v.numpy()[there])
        assert float(weighted.terms[f"loss_{task}"]) == pytest.approx(expected, rel=1e-4)
        assert abs(float(plain.terms[f"loss_{task}"]) - expected) > 1e-4
    assert float(weighted.terms["reconstruction"]) != pytest.approx(float(plain.terms["reconstruction"]), rel=1e-4)
    parts = sum(float(weighted.terms[f"loss_{task}"]) for task in module.schema.task_names)
    assert float(weighted.loss.detach()) == pytest.approx(parts + float(weighted.terms["reconstruction"]), rel=1e-5)
    assert torch.equal(weighted.logits, plain.logits)
    # the weight of a sample outside train is NaN, and would be seen at once
    other: PatientBatch = dataset.__getitems__([0, *range(5, 45)])
    assert module._shared_step(other).loss.isnan()


def test_without_overlap_training_is_refused_or_warned_of(
    data: RecordDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OverlapError, match=r"labs: the effective sample size \d+ is below 5000; diagnoses: "):
        trainer(tmp_path, AssignmentWeights(["vitals"], min_ess=5000)).fit(module_of(data), datamodule=data)
    watched = Watched()
    callback = AssignmentWeights(["vitals"], min_ess=5000, refuse=False)
    trainer(tmp_path / "again", callback, watched).fit(module_of(data), datamodule=data)
    assert watched.weights is not None
    assert "assignment weights without overlap: labs: the effective" in caplog.text


def test_what_is_wrong_is_said(data: RecordDataModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip must be at least 1"):
        AssignmentWeights(clip=0.5)
    with pytest.raises(ValueError, match="no modality is recorded for everyone"):
        trainer(tmp_path, AssignmentWeights()).fit(module_of(data), datamodule=data)
    callback = AssignmentWeights(["vitals"], **LENIENT)
    callback.load_state_dict(AssignmentWeights(["vitals"], clip=3.0, folds=4).state_dict())
    with pytest.raises(ValueError, match=r"resumed had other assignment weights \(cap, folds\)"):
        trainer(tmp_path, callback).fit(module_of(data), datamodule=data)
    with pytest.raises(TypeError, match="needs a RecordDataModule"):
        AssignmentWeights()._fitted(Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"))


def test_sample_weights_are_read_by_row_of_the_store(data: RecordDataModule, tmp_path: Path) -> None:
    path, watched, module = weights_file(tmp_path / "w.parquet", data), Watched(), module_of(data)
    callback = SampleWeights(str(path))
    trainer(tmp_path, callback, watched).fit(module, datamodule=data)
    frame = pl.read_parquet(path)
    assert watched.sample_weights is not None
    np.testing.assert_allclose(watched.sample_weights[frame["sample"].to_list()], frame["weight"], rtol=1e-6)
    assert int(watched.sample_weights.isfinite().sum()) == frame.height
    assert module.sample_weights is None
    resumed = SampleWeights(str(path))
    resumed.load_state_dict(callback.state_dict())
    frame.with_columns(pl.col("weight") * 2).write_parquet(path, metadata={"store": data.records.fingerprint})
    with pytest.raises(ValueError, match="the run that is resumed had other sample weights"):
        trainer(tmp_path, resumed).fit(module_of(data), datamodule=data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename({"weight": "w"}), "no column 'weight'; there are: sample, w"),
        (lambda f: f.drop("sample"), "no column 'sample'"),
        (lambda f: f.cast({"weight": pl.String}), "column 'weight' is String"),
        (lambda f: f.cast({"sample": pl.Float64}), "column 'sample' is Float64"),
        (lambda f: f[3:], "3 of [0-9]+ training samples have no weight"),
        (lambda f: pl.concat([f, f[:2]]), "2 rows of column 'sample' stand there already"),
        (lambda f: f.with_columns(pl.col("sample") + 10**6), "outside the store's"),
        (lambda f: f.with_columns(weight=-pl.col("weight")), "negative or not finite in [0-9]+ rows"),
        (lambda f: f.with_columns(weight=pl.lit(None, pl.Float64)), "not finite"),
        (lambda f: f.with_columns(weight=pl.lit(float("nan"))), "not finite"),
        (lambda f: f.with_columns(weight=pl.lit(0.0)), "have weight 0"),
    ],
)
def test_a_wrong_file_is_refused(change: Any, message: str, data: RecordDataModule, tmp_path: Path) -> None:
    path = weights_file(tmp_path / "w.parquet", data)
    change(pl.read_parquet(path)).write_parquet(path, metadata={"store": data.records.fingerprint})
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, SampleWeights(str(path))).fit(module_of(data), datamodule=data)


def test_a_file_of_another_store_is_refused(data: RecordDataModule, tmp_path: Path) -> None:
    path = weights_file(tmp_path / "w.parquet", data, store="another")
    with pytest.raises(ValueError, match="written for the store another; this one is"):
        trainer(tmp_path, SampleWeights(str(path))).fit(module_of(data), datamodule=data)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not readable as Parquet"):
        trainer(tmp_path, SampleWeights(str(path))).fit(module_of(data), datamodule=data)
    with pytest.raises(ValueError, match="no file of weights"):
        trainer(tmp_path, SampleWeights(str(tmp_path / "none"))).fit(module_of(data), datamodule=data)


@pytest.fixture(scope="module")
def words(own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is laid over a config, by its name: both callbacks, over a store of own tables."""
    folder = tmp_path_factory.mktemp("weighted")
    shared = ["--data.init_args.root", str(own_tables), "--data.init_args.store", str(folder / "stores")]
    found = {}
    for conf in ("tables.yaml", "still.yaml"):
        splits = yaml.safe_load((CONF / conf).read_text())["data"]["init_args"]["splits"]
        made = TablesDataModule(root=str(own_tables), store=folder / "stores", splits=SplitSettings(**splits))
        made.prepare_data()
        path = weights_file(folder / f"{conf}.parquet", made)
        ordering = {"always": ["vitals"], "groups": ["site"], **LENIENT}
        callbacks = [
            {"class_path": "AssignmentWeights", "init_args": ordering},
            {"class_path": "SampleWeights", "init_args": {"path": str(path)}},
        ]
        overlay = folder / f"over-{conf}"
        overlay.write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}))
        found[conf] = ["fit", "--config", str(CONF / conf), "--config", str(overlay), *shared]
    return found


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    found = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def test_stopped_and_continued_is_the_same_weighted_run(
    mmnar: Any, words: dict[str, list[str]], tmp_path: Path
) -> None:
    given = [*words["tables.yaml"], "--resume", "auto", "--trainer.max_epochs", "2"]
    whole = mmnar(*given, "--run_dir", tmp_path / "whole")
    assert whole.status == 0, whole.out
    first = mmnar(*given, "--run_dir", tmp_path / "run", end={"moment": "step", "count": 8, "how": "kill"})
    second = mmnar(*given, "--run_dir", tmp_path / "run")
    assert (first.status, second.status) == (-9, 0), second.out
    steps, parts = ([r for r in trace if "step" in r] for trace in (whole.trace, [*first.trace, *second.trace]))
    assert len({r["step"] for r in parts}) == len(steps) == 12
    assert all(r in steps for r in parts)
    for name, tensor in weights_of(tmp_path / "whole").items():
        assert torch.equal(tensor, weights_of(tmp_path / "run")[name]), name
    unweighted = mmnar(*given[:3], *given[5:], "--run_dir", tmp_path / "unweighted")
    losses = [{r["loss"] for r in trace if "step" in r} for trace in (whole.trace, unweighted.trace)]
    assert losses[0].isdisjoint(losses[1])


def test_two_processes_are_weighted_as_one(mmnar: Any, words: dict[str, list[str]], tmp_path: Path) -> None:
    given = words["still.yaml"]
    alone = mmnar(*given, "--run_dir", tmp_path / "alone", "--data.init_args.batch_size", "16")
    assert alone.status == 0, alone.out
    spread = ["--data.init_args.batch_size", "8", "--trainer.devices", "2", "--trainer.strategy", "ddp"]

    def together(*two: str) -> list[Any]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
        ranks = [{"environment": shared | {"LOCAL_RANK": str(rank)}, "strict": False} for rank in range(2)]
        done: list[Any] = mmnar.together([{"arguments": [*two, *spread], **rank} for rank in ranks])
        return done

    fitted = together(*given, "--run_dir", str(tmp_path / "two"))
    assert [d.status for d in fitted] == [0, 0], os.linesep.join(d.out for d in fitted)
    losses = [[float.fromhex(r["loss"]) for r in d.trace if "step" in r] for d in (*fitted, alone)]
    np.testing.assert_allclose(np.mean(losses[:2], axis=0), losses[2], rtol=1e-5)
    # a process that waited for a refused one's weights would wait for ever
    overlay = tmp_path / "strict.yaml"
    callback = {"class_path": "AssignmentWeights", "init_args": {"always": ["vitals"], "min_ess": 5000}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    given = [str(overlay) if word.endswith("over-still.yaml") else word for word in given]
    refused = together(*given, "--run_dir", str(tmp_path / "refused"))
    assert [d.status for d in refused] == [1, 1]
    assert all("labs: the effective sample size" in d.out for d in refused), refused[1].out
