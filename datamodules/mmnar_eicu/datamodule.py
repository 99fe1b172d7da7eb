"""eICU-CRD as a Lightning datamodule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmnar_eicu.cohort import CohortName
from mmnar_eicu.extractor import EICUExtractor
from mmnar_eicu.modalities import Form, NoteForm
from mmnar_lightning.extract import find_store, prepare
from mmnar_lightning.records import RecordDataModule, SplitSettings


class EICUDataModule(RecordDataModule):
    """The eICU Collaborative Research Database 2.0, from its raw tables.

    Nothing a sample holds became available after its prediction time. The data, and whatever is derived from them, are
    under the PhysioNet Credentialed Health Data License 1.5.0 (the demo: ODbL 1.0).

    Args:
        root: Folder with the raw tables as ``.csv.gz``, ``.csv`` or ``.parquet``. None takes the store that was
            prepared with these options before.
        store: Folder that record stores are kept in.
        cohort: ``landmark``: adults alive and in their first ICU episode of a hospital stay after `landmark_hours`;
            ``unit_discharge``: episodes that ended alive, at their end.
        landmark_hours: Prediction time of ``landmark``, in hours from the start of the episode.
        include_respiratory: Add the modality ``respiratory``.
        include_micro: Add the modality ``micro``, cultures taken.
        exclude_care_limits: Leave out samples with limited or comfort care before the prediction time.
        lab_delay: Minutes for which a lab value is held back after its time, for extracts whose offsets were rounded
            down (59 for one that was floored to the hour).
        measurements: Labs and vitals as ``statistics`` of the window, or as ``series`` of the values themselves.
        notes: Notes as ``codes``, what was picked in them, or as ``text``, one document a note (for `TextEncoder`).
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided; `by` may be ``patient``, ``site``, ``region`` or ``year``.
        min_patients: Least number of training patients for an item or a code to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it.

    Raises:
        ExtractError: If a table is missing or not as it should be, when the store is prepared; nothing is written then.

    Source: Pollard et al., *The eICU Collaborative Research Database*, 2018, doi 10.1038/sdata.2018.178.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        store: Path | str = "stores",
        *,
        cohort: CohortName = "landmark",
        landmark_hours: float = 24.0,
        include_respiratory: bool = False,
        include_micro: bool = False,
        exclude_care_limits: bool = False,
        lab_delay: float = 0.0,
        measurements: Form = "statistics",
        notes: NoteForm = "codes",
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
        self.root = None if root is None else Path(root)
        self.extractor = EICUExtractor(
            cohort=cohort,
            landmark_hours=landmark_hours,
            include_respiratory=include_respiratory,
            include_micro=include_micro,
            exclude_care_limits=exclude_care_limits,
            lab_delay=lab_delay,
            measurements=measurements,
            notes=notes,
        )

    def prepare_store(self) -> Path:
        """Return the store of this cohort and these options, made from `root` where it is not there yet."""
        if self.root is None:
            return find_store(
                self.store_folder, self.extractor.dataset, self.extractor.cohort, self.extractor.options()
            )
        return prepare(self.extractor, self.root, self.store_folder)
