"""The base of every data source: from a record store to loaders, with everything fitted on train alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from mmnar_lightning.records.batch import Reader
from mmnar_lightning.records.dataset import RecordDataset
from mmnar_lightning.records.fitting import fit_schema
from mmnar_lightning.records.loading import EpochBatches, RecordLoader
from mmnar_lightning.records.schema import RecordSchema
from mmnar_lightning.records.splits import SPLITS, SplitSettings, assign_splits, calibration_half
from mmnar_lightning.records.store import RecordStore, StoreError

log = logging.getLogger(__name__)

Split = Literal["train", "val", "calibration", "test"]
# part of the key of derived data: raise it when fitting changes, so that older derived data are not read
FITTING = 3


class RecordDataModule(LightningDataModule):
    """Splits, vocabularies, statistics and loaders over a record store. A data source says how the store comes about.

    Subclasses implement `prepare_store` and pass the arguments below on by name.

    Args:
        store: Folder that record stores are kept in. What is derived from a credentialed source stays under its terms.
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided.
        min_patients: Least number of training patients for an item or a code to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk, unless there are images to open.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it. The store is mapped onto it by name.

    Raises:
        ValueError: If a name is not in the store; lists those that are.
    """

    def __init__(
        self,
        store: Path | str,
        *,
        modalities: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        splits: SplitSettings = SplitSettings(),  # noqa: B008 - frozen
        min_patients: int = 10,
        batch_size: int = 128,
        workers: int = 0,
        seed: int | None = None,
        predict_splits: Sequence[Split] = ("calibration", "test"),
        schema_of: str | None = None,
    ) -> None:
        super().__init__()
        self.store_folder = Path(store)
        self.modalities = None if modalities is None else list(modalities)
        self.tasks = None if tasks is None else list(tasks)
        self.splits, self.min_patients = splits, min_patients
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.predict_splits, self.schema_of = list(predict_splits), schema_of
        self._datasets: dict[str, RecordDataset] = {}
        self._train_loader: RecordLoader | None = None
        self._place: dict[str, Any] | None = None

    @abstractmethod
    def prepare_store(self) -> Path:
        """Return the folder of a complete store, making it first where it is not there yet (other processes wait)."""

    def image_folder(self, modality: str) -> Path | None:
        """Return the folder that an `image` modality's file names are relative to; None where they are absolute."""
        return None

    def prepare_data(self) -> None:
        """Prepare the store; on disk only, sets no state."""
        self.prepare_store()

    @cached_property
    def records(self) -> RecordStore:
        """The record store, prepared where needed."""
        return RecordStore(self.prepare_store())

    @cached_property
    def split(self) -> np.ndarray[Any, Any]:
        """Split of each sample of the store: int8 [n], index into ``("train", "val", "calibration", "test")``."""
        return self._fitted[0] if self.schema_of is None else assign_splits(self.records.samples, self.splits)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """What a model of these data takes, fitted on train: `RecordSchema.to_dict()`, linked to `model.schema`."""
        if self.schema_of is None:
            return self._fitted[1]
        checkpoint = torch.load(self.schema_of, map_location="cpu", weights_only=True, mmap=True)
        described: dict[str, Any] = checkpoint["hyper_parameters"]["schema"]
        return described

    @cached_property
    def _fitted(self) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        records = self.records
        settings = {
            "fitting": FITTING,
            "splits": asdict(self.splits),
            "modalities": self.modalities,
            "tasks": self.tasks,
            "min_patients": self.min_patients,
        }
        described = json.dumps([records.fingerprint, settings], sort_keys=True, default=list)
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        folder = records.path.parent / f"{records.path.name}.derived" / f"splits-{key}"
        if not (folder / "schema.json").is_file():
            split = assign_splits(records.samples, self.splits)
            part = records.schema.restrict(self.modalities, self.tasks)
            schema = fit_schema(records, part, np.flatnonzero(split == 0), self.min_patients)
            _write_derived(folder, split, schema, settings)
        split = np.load(folder / "split.npy", allow_pickle=False)
        return split, json.loads((folder / "schema.json").read_text(encoding="utf-8"))

    def samples_of(self, *splits: str) -> np.ndarray[Any, Any]:
        """Samples of the store in any of these splits, ascending: int64 [n].

        `calibration` is calibration A, for the rectifier; `conformal` is calibration B, its patient-disjoint half.
        """
        half = calibration_half(self.records.samples["patient"], self.splits.split_seed)
        chosen = np.zeros(len(self.records), dtype=bool)
        for name in splits:
            if name in ("calibration", "conformal"):
                chosen |= (self.split == SPLITS.index("calibration")) & (half == (name == "conformal"))
            else:
                chosen |= self.split == SPLITS.index(name)
        return np.flatnonzero(chosen)

    def setup(self, stage: str) -> None:
        """Build the datasets that `stage` needs, seen through the model's schema where there is a model.

        A model from a checkpoint brings its own schema, and that one wins: the store is mapped onto it by name.
        """
        needed = {
            "fit": ("train", "val", "calibration"),
            "validate": ("val", "calibration", "conformal"),
            "test": ("test",),
        }
        schema = self._model_schema()
        for name in needed.get(stage, ()):
            self._datasets[name] = self._dataset(schema, name)
        if stage == "predict":
            chosen = list(self.predict_splits)
            both = ["calibration", "conformal"] if "calibration" in chosen else []
            self._datasets["predict"] = self._dataset(schema, *chosen, *both)
        may_be_empty = ("calibration", "conformal")
        empty = [n for n in needed.get(stage, ("predict",)) if n not in may_be_empty and not len(self._datasets[n])]
        if empty:
            raise ValueError(f"no sample is in {' and '.join(empty)}; check data.init_args.splits")

    def _dataset(self, schema: RecordSchema, *splits: str) -> RecordDataset:
        there = {m.name: self.image_folder(m.name) for m in schema.modalities if m.kind == "image"}
        folders = {name: folder for name, folder in there.items() if folder is not None}
        return RecordDataset(self.records, schema, self.samples_of(*splits), folders=folders)

    def _readers(self) -> Mapping[str, Reader]:
        """How the model of the run reads files. Asked for when a loader is made: the model is built by then."""
        model = None if self.trainer is None else self.trainer.lightning_module
        readers = getattr(model, "readers", None)
        return readers() if callable(readers) else {}

    def state_dict(self) -> dict[str, Any]:
        """Return which samples were trained on, and how far this epoch got, for the checkpoint."""
        place = None if self._train_loader is None else self._train_loader.state_dict()
        manifest = self.records.manifest
        trained_on = {"store": self.records.fingerprint, "dataset": manifest["dataset"], "cohort": manifest["cohort"]}
        return {**trained_on, "splits": _described(self.splits), "place": place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the samples a checkpoint was trained on are not others, or divided otherwise, now.

        Raises:
            ValueError: If training would go on with another store, or if the source is the same and the splits are not:
                training patients could be tested on. A patient's split by keyed hash depends on the settings alone, so
                another cohort of the same source with the same settings is safe.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        other = state_dict["store"] != self.records.fingerprint
        related = state_dict.get("dataset") == self.records.manifest["dataset"]
        if other and fitting:
            raise ValueError(
                f"the run was trained on the store with fingerprint {state_dict['store']}, which is not "
                f"{self.records.path.name}; give the same data to continue it, or another --run_dir"
            )
        if (related or not other) and state_dict["splits"] != _described(self.splits):
            raise ValueError(
                "this checkpoint was trained with other split settings on the same source, so its training patients "
                f"could be tested on; use data.init_args.splits {state_dict['splits']}"
            )
        here, safe = self.records.manifest, related and self.splits.by == "patient"
        if other and not (safe and state_dict.get("cohort", here["cohort"]) == here["cohort"]):
            trained = f"{state_dict.get('dataset', 'another source')} {state_dict.get('cohort', '')}".strip()
            log.warning(
                "this checkpoint was trained on another store (%s) than that it meets here (%s %s): tasks and "
                "modalities are matched by name, whatever the prediction time%s",
                trained,
                here["dataset"],
                here["cohort"],
                "" if safe else "; its patients may be among those of this one",
            )
        # Lightning keeps a loader's state, too, but loses it where the optimiser asks how many steps there will be
        self._place = state_dict["place"] if fitting else None

    def _model_schema(self) -> RecordSchema:
        model = None if self.trainer is None else self.trainer.lightning_module
        described = getattr(model, "schema", None)
        return described if isinstance(described, RecordSchema) else RecordSchema.from_dict(self.schema)

    def train_dataloader(self) -> RecordLoader:
        """Batches of train in a new order each epoch, from where the checkpoint that is resumed left off."""
        self._train_loader = self._loader("train", shuffle=True)
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None
        return self._train_loader

    def val_dataloader(self) -> dict[str, RecordLoader]:
        """Batches of val and of calibration A, by name; outside `fit`, which has no use for it, also calibration B."""
        names = ["val", "calibration", *(["conformal"] if "conformal" in self._datasets else [])]
        return {name: self._loader(name) for name in names}

    def test_dataloader(self) -> RecordLoader:
        """Batches of test."""
        return self._loader("test")

    def predict_dataloader(self) -> RecordLoader:
        """Batches of `predict_splits`."""
        return self._loader("predict")

    def _loader(self, name: str, *, shuffle: bool = False) -> RecordLoader:
        if name not in self._datasets:
            stage = {"train": "fit", "val": "fit", "calibration": "fit"}.get(name, name)
            raise RuntimeError(f"call setup({stage!r}) before asking for the loader of {name}")
        dataset, trainer = self._datasets[name], self.trainer
        dataset.readers = dict(self._readers())
        dataset.check_folders()
        seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        batches = EpochBatches(
            len(dataset),
            self.batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )
        limit = None if trainer is None or not shuffle else trainer.limit_train_batches
        if isinstance(limit, float):
            limit = int(limit * len(batches))
        return RecordLoader(dataset, batches, self.workers, pin_memory=torch.cuda.is_available(), limit=limit)


def _described(splits: SplitSettings) -> dict[str, Any]:
    described = asdict(splits)
    return {**described, "test_values": list(described["test_values"])}


def _write_derived(folder: Path, split: np.ndarray[Any, Any], schema: RecordSchema, settings: dict[str, Any]) -> None:
    """Write splits and fitted schema beside the store, complete or not at all; whoever comes second keeps the first."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    np.save(parts / "split.npy", split.astype(np.int8), allow_pickle=False)
    (parts / "settings.json").write_text(json.dumps(settings, indent=1, default=list) + "\n", encoding="utf-8")
    (parts / "schema.json").write_text(json.dumps(schema.to_dict()) + "\n", encoding="utf-8")
    try:
        parts.rename(folder)
    except OSError as error:
        shutil.rmtree(parts)
        if not (folder / "schema.json").is_file():
            raise StoreError(f"{folder}: cannot be written; remove it if it is incomplete") from error
    log.info("fitted splits and schema: %s", folder.name)
