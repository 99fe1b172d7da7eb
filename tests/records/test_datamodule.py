from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import mmnar_lightning.records.datamodule as datamodule_module
from mmnar_lightning.records import (
    UNKNOWN,
    Modality,
    PatientBatch,
    RecordDataModule,
    RecordSchema,
    SplitSettings,
    StoreError,
)

# Lightning 2.6 asks torch's pytree in a way that torch 2.13 renamed
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")

MakeDataModule = Callable[..., RecordDataModule]
MakeStore = Callable[..., Path]


class Listener(LightningModule):
    """Learns nothing to speak of and remembers which samples it saw."""

    def __init__(self, schema: RecordSchema | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": [], "calibration": [], "test": [], "predict": []}
        if schema is not None:
            self.schema = schema

    def training_step(self, batch: PatientBatch, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch.sample.tolist())
        return self.weight.sum()

    def validation_step(self, batch: PatientBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen[("val", "calibration")[dataloader_idx]].append(batch.sample.tolist())

    def test_step(self, batch: PatientBatch, batch_idx: int) -> None:
        self.seen["test"].append(batch.sample.tolist())

    def predict_step(self, batch: PatientBatch, batch_idx: int) -> Tensor:
        self.seen["predict"].append(batch.sample.tolist())
        return batch.sample

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**settings, **options})


def flat(batches: list[list[int]]) -> list[int]:
    return [s for b in batches for s in b]


@pytest.mark.parametrize(
    ("stage", "ready", "not_ready"),
    [
        ("fit", ("train", "val"), ("test", "predict")),
        ("validate", ("val",), ("train", "test", "predict")),
        ("test", ("test",), ("train", "val", "predict")),
        ("predict", ("predict",), ("train", "val", "test")),
    ],
)
def test_setup_makes_what_the_stage_needs(
    tmp_path: Path, make_datamodule: MakeDataModule, stage: str, ready: tuple[str, ...], not_ready: tuple[str, ...]
) -> None:
    data = make_datamodule(tmp_path)
    data.prepare_data()
    data.setup(stage)
    data.setup(stage)
    for name in ready:
        getattr(data, f"{name}_dataloader")()
    for name in not_ready:
        with pytest.raises(RuntimeError, match=r"call setup\('"):
            getattr(data, f"{name}_dataloader")()


def test_every_stage_under_a_trainer(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    data, model = make_datamodule(tmp_path, batch_size=32), Listener()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data)
    run.test(model, data)
    run.predict(model, data)
    epochs = len(model.seen["train"]) // 2
    assert sorted(flat(model.seen["train"][:epochs])) == data.samples_of("train").tolist()
    assert sorted(flat(model.seen["train"][epochs:])) == data.samples_of("train").tolist()
    assert model.seen["train"][:epochs] != model.seen["train"][epochs:]
    for name in ("val", "calibration"):
        assert flat(model.seen[name]) == 2 * data.samples_of(name).tolist()
    assert flat(model.seen["test"]) == data.samples_of("test").tolist()
    assert flat(model.seen["predict"]) == data.samples_of("calibration", "conformal", "test").tolist()
    parts = [data.samples_of(n).tolist() for n in ("train", "val", "calibration", "conformal", "test")]
    assert sorted(flat(parts)) == list(range(len(data.records)))
    patient = data.records.samples["patient"].to_numpy()
    assert sum(len(set(patient[p])) for p in parts) == 200


def test_seed_of_the_run_orders_training(
    tmp_path: Path, make_datamodule: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order(**options: Any) -> list[list[int]]:
        data = make_datamodule(tmp_path, **options)
        data.setup("fit")
        return [b.sample.tolist() for b in data.train_dataloader()]

    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert order() == order(seed=5) != order(seed=6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("limit", [1.0, 2, 0.75])
def test_resume_gives_the_batches_of_an_uninterrupted_run(
    tmp_path: Path, make_datamodule: MakeDataModule, limit: int | float
) -> None:
    # 165 samples in batches of 48: four batches an epoch, or fewer where the trainer cuts it short
    def fit(model: Listener, checkpoint: Path | None = None, **options: Any) -> None:
        options |= {"max_epochs": 2, "limit_val_batches": 1, "limit_train_batches": limit}
        data = make_datamodule(tmp_path, batch_size=48)
        trainer(tmp_path, **options).fit(model, data, ckpt_path=checkpoint, weights_only=True)

    class Both(Listener):
        """Knows at each checkpoint how many batches it had."""

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["had"] = len(self.seen["train"])

    at_steps = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, save_top_k=-1)
    # written when Lightning counts the epoch as done, and so does not load the loader's state
    at_epochs = ModelCheckpoint(tmp_path / "epochs", save_top_k=-1, save_on_train_epoch_end=True)
    whole = Both()
    fit(whole, enable_checkpointing=True, callbacks=[at_steps, at_epochs])
    batches = whole.seen["train"]
    each = {1.0: 4, 2: 2, 0.75: 3}[limit]
    assert len(batches) == 2 * each
    kept = [*(tmp_path / "steps").iterdir(), *(tmp_path / "epochs").iterdir()]
    assert len(kept) == 2 * each + 2
    for checkpoint in kept:
        had = torch.load(checkpoint, weights_only=True)["had"]
        resumed = Listener()
        fit(resumed, checkpoint)
        assert resumed.seen["train"] == batches[had:], (checkpoint.name, had)


def test_resume_by_steps(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    whole, first, second = Listener(), Listener(), Listener()
    trainer(tmp_path, max_steps=10, limit_val_batches=0).fit(whole, make_datamodule(tmp_path, batch_size=48))
    run = trainer(tmp_path, max_steps=3, limit_val_batches=0)
    run.fit(first, make_datamodule(tmp_path, batch_size=48))
    run.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    trainer(tmp_path, max_steps=10, limit_val_batches=0).fit(
        second, make_datamodule(tmp_path, batch_size=48), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert first.seen["train"] + second.seen["train"] == whole.seen["train"]


def test_the_checkpoints_schema_wins(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    data = make_datamodule(tmp_path, batch_size=300)
    own = RecordSchema.from_dict(data.schema)
    codes = (UNKNOWN, "code_03", "not_here")
    schema = RecordSchema(
        (
            Modality("films", "image"),
            Modality("labs", "vector", ("lipase", "sodium"), (0.0, 0.0), (1.0, 1.0)),
            Modality("diagnoses", "codes", codes, (0.0,) * 3, (1.0,) * 3),
        ),
        own.tasks[2:],
    )

    class Keeper(Listener):
        def test_step(self, batch: PatientBatch, batch_idx: int) -> None:
            self.batch = batch

    model = Keeper(schema)
    trainer(tmp_path).test(model, data)
    batch = model.batch
    assert list(batch.elements) == ["films", "labs", "diagnoses"]
    assert not batch.observed[:, 0].any()
    assert batch.elements["films"].values == ()
    labs, names = batch.elements["labs"].values, batch.elements["diagnoses"].values
    assert isinstance(labs, Tensor)
    assert isinstance(names, Tensor)
    assert labs[:, 0].isnan().all()
    assert not labs[:, 1].isnan().all()
    assert set(names.tolist()) == {0, 1}
    assert batch.targets.shape[1] == 1
    wrong = RecordSchema((Modality("labs", "text"),), own.tasks)
    with pytest.raises(StoreError, match="'labs' is of kind 'vector'"):
        trainer(tmp_path).test(Listener(wrong), data)


def test_schema_of_a_checkpoint_file(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    few = make_datamodule(tmp_path, modalities=["labs"], tasks=["death"])
    assert RecordSchema.from_dict(few.schema).names == ("labs",)
    torch.save({"hyper_parameters": {"schema": few.schema}}, tmp_path / "a.ckpt")
    data = make_datamodule(tmp_path, schema_of=str(tmp_path / "a.ckpt"))
    assert data.schema == few.schema
    data.setup("test")
    assert list(next(iter(data.test_dataloader())).elements) == ["labs"]


def test_a_checkpoint_keeps_who_was_trained_on(
    tmp_path: Path, make_datamodule: MakeDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_datamodule(tmp_path).state_dict()
    make_datamodule(tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="trained with other split settings on the same source"):
        make_datamodule(tmp_path, splits=SplitSettings(test_fold=1)).load_state_dict(state)
    other = {**state, "store": "another"}
    # another cohort of the same source: the same people, so other settings are refused there too, the same are safe
    with pytest.raises(ValueError, match="trained with other split settings on the same source"):
        make_datamodule(tmp_path, splits=SplitSettings(test_fold=1)).load_state_dict(other)
    with caplog.at_level(logging.WARNING):
        make_datamodule(tmp_path, seed=1).load_state_dict(other)
        assert "trained on another store" not in caplog.text
        make_datamodule(tmp_path, seed=1).load_state_dict({**other, "dataset": "elsewhere"})
        assert "may be among those of this one" in caplog.text
        caplog.clear()
        make_datamodule(tmp_path, seed=1).load_state_dict({**other, "cohort": "discharged"})
    assert "trained on another store" in caplog.text
    assert "discharged" in caplog.text
    assert "may be among" not in caplog.text


def test_what_is_fitted_is_kept_and_read_again(
    tmp_path: Path, make_datamodule: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_datamodule(tmp_path)
    schema, split = first.schema, first.split
    (folder,) = (tmp_path / f"{first.records.path.name}.derived").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert json.loads((folder / "schema.json").read_text()) == schema
    with monkeypatch.context() as patched:
        patched.setattr(datamodule_module, "fit_schema", lambda *_: pytest.fail("fitted twice"))
        again = make_datamodule(tmp_path)
        assert again.schema == schema
        assert (again.split == split).all()
    # each of these changes what is fitted, and may not read what the others left
    for options in (
        {"splits": SplitSettings(test_fold=1)},
        {"splits": SplitSettings(split_seed=1)},
        {"min_patients": 40},
        {"modalities": ["labs"]},
        {"tasks": ["death"]},
    ):
        assert make_datamodule(tmp_path, **options).schema != schema
    assert len(list(folder.parent.iterdir())) == 6
    # the store itself holds nothing fitted
    first.records.verify()
    assert all(not m.mean for m in first.records.schema.modalities)


def test_fitted_together_is_fitted_once(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    made = [make_datamodule(tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        schemas = list(threads.map(lambda data: data.schema, made))
    assert all(schema == schemas[0] for schema in schemas)
    (folder,) = (tmp_path / f"{made[0].records.path.name}.derived").iterdir()
    assert not folder.name.startswith(".")


def test_a_fit_that_died_is_not_read(
    tmp_path: Path, make_datamodule: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", die)
        with pytest.raises(KeyboardInterrupt):
            _ = make_datamodule(tmp_path).schema
    assert RecordSchema.from_dict(make_datamodule(tmp_path).schema).modality("labs").items


def test_statistics_do_not_move_with_rows_outside_train(
    tmp_path: Path,
    make_records: Callable[..., Any],
    make_store: MakeStore,
    make_datamodule: MakeDataModule,
    store_datamodule: Callable[..., RecordDataModule],
) -> None:
    data = make_datamodule(tmp_path / "a")
    outside = pl.col("sample").is_in(data.samples_of("val", "calibration", "conformal", "test"))
    records = make_records()
    values = records.elements["vitals"].columns[2:]
    changed = {name: frame.filter(~outside) for name, frame in records.elements.items()}
    changed["vitals"] = records.elements["vitals"].with_columns(
        pl.when(outside).then(pl.col(values) * 50 + 1).otherwise(pl.col(values))
    )
    other = store_datamodule(make_store(tmp_path / "b", records=replace(records, elements=changed)))
    assert (other.split == data.split).all()
    assert other.schema == data.schema
    # a change within train does reach it
    changed["vitals"] = records.elements["vitals"].with_columns(pl.col(values) * 50 + 1)
    moved = store_datamodule(make_store(tmp_path / "c", records=replace(records, elements=changed)))
    assert moved.schema != data.schema


def test_rare_codes_are_not_in_the_vocabulary(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    data = make_datamodule(tmp_path, min_patients=25)
    records = data.records
    train, patient = set(data.samples_of("train").tolist()), records.samples["patient"].to_list()
    people: dict[str, set[str]] = {code: set() for code in records.codes("diagnoses")}
    codes = records.codes("diagnoses")
    file = "modality/diagnoses.arrow"
    for sample, code in zip(records.column(file, "sample"), records.column(file, "values"), strict=True):
        if sample in train:
            people[codes[code]].add(patient[sample])
    vocabulary = RecordSchema.from_dict(data.schema).modality("diagnoses").items
    assert vocabulary == (UNKNOWN, *(c for c in codes if len(people[c]) >= 25))
    assert 1 < len(vocabulary) < len(codes) + 1


def test_a_split_without_samples_says_so(tmp_path: Path, make_datamodule: MakeDataModule) -> None:
    data = make_datamodule(tmp_path, n_patients=30, splits=SplitSettings(val=0.0))
    with pytest.raises(ValueError, match=r"no sample is in val; check data.init_args.splits"):
        data.setup("fit")
    data.setup("test")


@pytest.mark.parametrize(
    ("options", "known"), [({"modalities": ["lab"]}, "vitals, labs"), ({"tasks": ["dead"]}, "death, ")]
)
def test_a_wrong_name_lists_the_right_ones(
    tmp_path: Path, make_datamodule: MakeDataModule, options: dict[str, Any], known: str
) -> None:
    with pytest.raises(ValueError, match=f"there are: {known}"):
        _ = make_datamodule(tmp_path, **options).schema
