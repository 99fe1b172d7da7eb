"""A MEDS dataset as a Lightning datamodule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmnar_lightning.extract import prepare
from mmnar_lightning.records import RecordDataModule, SplitSettings
from mmnar_meds.extractor import MEDSExtractor
from mmnar_meds.selection import Labels, Selection

log = logging.getLogger(__name__)


class MEDSDataModule(RecordDataModule):
    """A dataset in the Medical Event Data Standard, 0.3 or 0.4, with tasks from its label files.

    A sample is a subject at a prediction time that some task has a label for. Nothing it holds happened after that
    time; an event at that very time is known, as MEDS says. The terms of the dataset hold for the store and for
    everything that is derived from it.

    Args:
        root: Folder with ``data/**/*.parquet`` and ``metadata/``.
        store: Folder that record stores are kept in.
        label_folder: Folder with a file, or a folder of shards, for each task; None is ``tasks`` in `root`.
        labels: Which tasks there are, by name, with their path in `label_folder`; None takes everything in it.
        events: The modalities by name: which codes, how far back, and what is made of them. None takes `DEFAULT`,
            without those that have no event. ``structured`` (age, sex) is made of MEDS_BIRTH and GENDER in any case.
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided; ``by: given`` takes ``metadata/subject_splits.parquet``: tuning is val,
            held_out is test, and calibration is drawn from train.
        min_patients: Least number of training patients for an item or a code to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it.

    Raises:
        ExtractError: If a file is missing or not as MEDS says, when the store is prepared; nothing is written then.

    Source: Arnrich et al., *Medical Event Data Standard (MEDS): Facilitating Machine Learning for Health*, 2024;
    https://github.com/Medical-Event-Data-Standard/meds.
    """

    def __init__(
        self,
        root: Path | str,
        store: Path | str = "stores",
        *,
        label_folder: Path | str | None = None,
        labels: dict[str, Labels] | None = None,
        events: dict[str, Selection] | None = None,
        modalities: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        splits: SplitSettings = SplitSettings(),  # noqa: B008 - frozen
        min_patients: int = 10,
        batch_size: int = 128,
        workers: int = 0,
        seed: int | None = None,
        predict_splits: Sequence[Literal["train", "val", "calibration", "test"]] = ("calibration", "test"),
        schema_of: str | None = None,
    ) -> None:
        super().__init__(
            store,
            modalities=modalities,
            tasks=tasks,
            splits=splits,
            min_patients=min_patients,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            predict_splits=predict_splits,
            schema_of=schema_of,
        )
        self.root = Path(root)
        self.extractor = MEDSExtractor(root, label_folder, labels, events)

    def prepare_store(self) -> Path:
        """Check the dataset and write its store, or find it where nothing has changed since.

        Raises:
            ExtractError: If a file can't be used.
        """
        path = prepare(self.extractor, self.root, self.store_folder)
        if self.extractor.brings_splits and self.splits.by != "given":
            log.info("metadata/subject_splits.parquet is unused while splits.by is %r", self.splits.by)
        return path
