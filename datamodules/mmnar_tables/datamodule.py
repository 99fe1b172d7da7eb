"""One's own tables as a Lightning datamodule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmnar_lightning.extract import prepare
from mmnar_lightning.records import RecordDataModule, SplitSettings
from mmnar_tables.extractor import TablesExtractor

log = logging.getLogger(__name__)


class TablesDataModule(RecordDataModule):
    """A folder of one's own parquet tables, described by its ``schema.yaml``; no code to write.

    The terms under which the tables were obtained hold for the store and for everything that is derived from it.

    Args:
        root: Folder with ``schema.yaml``, ``samples.parquet`` and one parquet file a modality.
        store: Folder that record stores are kept in.
        unreadable_images: ``count`` leaves image files that can't be decoded out and counts them, ``error`` refuses
            them.
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided; ``by: given`` takes the ``split`` column of ``samples.parquet``.
        min_patients: Least number of training patients for an item or a code to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it.

    Raises:
        ExtractError: If ``schema.yaml`` or a table can't be used, when the store is prepared; nothing is written then.
    """

    def __init__(
        self,
        root: Path | str,
        store: Path | str = "stores",
        *,
        unreadable_images: Literal["count", "error"] = "count",
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
        self.unreadable_images = unreadable_images

    def prepare_store(self) -> Path:
        """Check the tables and write their store, or find it where nothing has changed since.

        Raises:
            ExtractError: If ``schema.yaml`` or a table can't be used.
        """
        extractor = TablesExtractor(self.root, self.unreadable_images)
        path = prepare(extractor, self.root, self.store_folder)
        if extractor.brings_splits and self.splits.by != "given":
            log.warning("samples.parquet has a 'split' column, unused while splits.by is %r", self.splits.by)
        return path
