from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mmnar_lightning.records import (
    Elements,
    IndexReader,
    Modality,
    PatientBatch,
    RecordDataModule,
    RecordDataset,
    RecordSchema,
    RecordStore,
    SplitSettings,
    StoreError,
    Task,
    read,
    write_store,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
FILES = [(0, "a"), (0, "bb"), (2, "lost"), (3, "/elsewhere/ccc"), (3, "lost")]


@dataclass(frozen=True)
class LengthReader:
    """Stands for what opens files: the length of each name, and files named `lost` are lost."""

    strip: int = 0

    def __call__(self, elements: Elements) -> Elements:
        kept = [k for k, name in enumerate(elements.values) if not str(name).endswith("lost")]
        which = torch.tensor(kept, dtype=torch.int64)
        lengths = torch.tensor([len(str(elements.values[k])) - self.strip for k in kept], dtype=torch.uint8)
        assert elements.index is not None
        return replace(
            elements,
            row=elements.row[which],
            hours_before=elements.hours_before[which],
            values=lengths,
            index=elements.index[which],
            unreadable=torch.tensor(len(elements.row) - len(kept)),
        )


class ByIndex(IndexReader):
    """Looks up what was derived from a file, which may be gone."""

    def __call__(self, elements: Elements) -> Elements:
        assert elements.index is not None
        return replace(elements, values=elements.index.float())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    schema = RecordSchema((Modality("film", "image"), Modality("note", "text")), (Task("death"),))
    samples = pl.DataFrame(
        {
            "patient": [f"p{k}" for k in range(40)],
            "site": "s",
            "prediction_time": 0.0,
            "label/death": [True, False] * 20,
        }
    )
    types = {"sample": pl.Int64, "hours_before": pl.Float32, "path": pl.String}
    film = pl.DataFrame([(s, 1.0, n) for s, n in FILES], schema=types, orient="row")
    note = pl.DataFrame({"sample": list(range(40)), "hours_before": 1.0, "text": "fine"})
    path = write_store(
        tmp_path_factory.mktemp("stores"), "read", "all", "d" * 16, schema, samples, {"film": film, "note": note}, {}
    )
    return RecordStore(path)


def batch_of(dataset: RecordDataset) -> PatientBatch:
    return dataset.__getitems__([0, 1, 2, 3])


def test_without_a_reader_a_batch_holds_names_below_their_folder(store: RecordStore, tmp_path: Path) -> None:
    rows = np.arange(4)
    assert batch_of(RecordDataset(store, store.schema, rows)).elements["film"].values == tuple(n for _, n in FILES)
    placed = batch_of(RecordDataset(store, store.schema, rows, folders={"film": tmp_path}))
    below = str(tmp_path)
    expected = (f"{below}/a", f"{below}/bb", f"{below}/lost", "/elsewhere/ccc", f"{below}/lost")
    assert placed.elements["film"].values == expected
    assert placed.elements["note"].values == ("fine",) * 4
    assert placed.observed[:, 0].tolist() == [True, False, True, True]


def test_a_reader_is_called_where_batches_are_gathered(store: RecordStore, tmp_path: Path) -> None:
    strip = len(str(tmp_path)) + 1
    dataset = RecordDataset(store, store.schema, np.arange(4), {"film": LengthReader(strip)}, {"film": tmp_path})
    for seen in (dataset, pickle.loads(pickle.dumps(dataset))):
        batch = batch_of(seen)
        film = batch.elements["film"]
        assert isinstance(film.values, Tensor)
        assert film.values.tolist() == [1, 2, (len("/elsewhere/ccc") - strip) % 256]
        assert film.row.tolist() == [0, 0, 3]
        assert film.index is not None
        assert film.index.tolist() == [0, 1, 3]
        assert film.unreadable is not None
        assert int(film.unreadable) == 2
        # the third lost its only one
        assert batch.observed[:, 0].tolist() == [True, False, False, True]
        assert batch.observed[:, 1].all()
    nothing = dataset.__getitems__([1])
    assert len(nothing.elements["film"].values) == 0
    assert nothing.observed.tolist() == [[False, True]]


def test_what_was_read_is_not_read_again_and_nothing_is_changed(store: RecordStore) -> None:
    batch = batch_of(RecordDataset(store, store.schema, np.arange(4)))
    opened = read(batch, {"film": LengthReader()})
    assert batch.observed[:, 0].tolist() == [True, False, True, True]
    assert isinstance(batch.elements["film"].values, tuple)

    def never(_: Elements) -> Elements:
        raise AssertionError("read again")

    again = read(opened, {"film": never})
    assert again.elements["film"] is opened.elements["film"]
    assert torch.equal(again.observed, opened.observed)
    moved = opened.to("cpu")
    assert moved.elements["film"].unreadable is not None


def test_a_folder_that_is_gone_stops_the_work(store: RecordStore, tmp_path: Path) -> None:
    gone = {"film": tmp_path / "gone"}
    with pytest.raises(StoreError, match="modality 'film': the folder of its files is not there"):
        RecordDataset(store, store.schema, np.arange(4), {"film": LengthReader()}, gone).check_folders()
    # who opens nothing needs none
    for readers in ({}, {"film": ByIndex()}):
        RecordDataset(store, store.schema, np.arange(4), readers, gone).check_folders()


class Watcher(LightningModule):
    """A model that brings a reader, and remembers what its batches hold."""

    def __init__(self, reads: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.reads, self.seen = reads, set[str]()

    def readers(self) -> dict[str, Any]:
        return {"film": LengthReader()} if self.reads else {}

    def _see(self, batch: PatientBatch) -> None:
        self.seen.add(type(batch.elements["film"].values).__name__)

    def training_step(self, batch: PatientBatch, batch_idx: int) -> Tensor:
        self._see(batch)
        return self.weight.sum()

    def validation_step(self, batch: PatientBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._see(batch)

    def test_step(self, batch: PatientBatch, batch_idx: int) -> None:
        self._see(batch)

    def predict_step(self, batch: PatientBatch, batch_idx: int) -> Tensor:
        self._see(batch)
        return batch.sample

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_loader_of_a_run_has_the_readers_of_its_model(
    store: RecordStore, store_datamodule: Any, tmp_path: Path, reads: bool, workers: int
) -> None:
    asked: list[str] = []

    class Placed(store_datamodule):  # type: ignore[misc]
        def image_folder(self, modality: str) -> Path | None:
            asked.append(modality)
            return tmp_path

    splits = SplitSettings(val=0.2, calibration=0.2)
    data: RecordDataModule = Placed(store.path, splits=splits, batch_size=8, min_patients=1, workers=workers)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        model = Watcher(reads)
        run(model, datamodule=data)
        assert model.seen == {"Tensor" if reads else "tuple"}
    # a text modality has no files
    assert set(asked) == {"film"}


def test_a_data_source_has_absolute_names_unless_it_says_otherwise(store: RecordStore, store_datamodule: Any) -> None:
    data = store_datamodule(store.path, batch_size=8, min_patients=1)
    assert data.image_folder("film") is None
    data.setup("fit")
    values = next(iter(data.train_dataloader())).elements["film"].values
    assert isinstance(values, tuple)
