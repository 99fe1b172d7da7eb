"""MIMIC-IV as a Lightning datamodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mmnar_lightning.extract import ExtractError, find_store, prepare
from mmnar_lightning.records import RecordDataModule, SplitSettings
from mmnar_mimic4.cohort import CohortName, Episodes
from mmnar_mimic4.extractor import Films, MIMIC4Extractor
from mmnar_mimic4.films import Absent, Check, Views
from mmnar_mimic4.measurements import Form
from mmnar_mimic4.notes import Blanks
from mmnar_mimic4.versions import Version, detect


class MIMIC4DataModule(RecordDataModule):
    """MIMIC-IV 2.2 or 3.1, with MIMIC-IV-Note and MIMIC-CXR-JPG where they are at hand, from their raw files.

    Nothing a sample holds became available after its prediction time, but with ``prospective: false`` or
    ``include_billing``, which say so in the store's manifest. The data, and whatever is derived from them, are under
    the PhysioNet Credentialed Health Data License 1.5.0 (the demo: ODbL 1.0).

    Args:
        root: Folder with ``hosp/`` and ``icu/``, tables as ``.csv.gz``, ``.csv`` or ``.parquet``. None takes the store
            that was prepared with these options before.
        store: Folder that record stores are kept in.
        note_root: Folder above ``note/`` of MIMIC-IV-Note; None looks under `root`. Without
            notes there are no such modalities.
        cxr_root: Folder of MIMIC-CXR-JPG, or of its embeddings; None takes no films.
        cohort: ``post_discharge``: adults who left the hospital alive, a day after they did; ``icu_landmark``: adults
            alive and in their first ICU stay after `landmark_hours`.
        episodes: Which hospital episodes of a patient ``post_discharge`` takes: ``first``, a ``random`` one, ``all``.
        note_grace_hours: Hours from the end of the episode to the prediction time of ``post_discharge``.
        landmark_hours: Hours from the start of the ICU stay to the prediction time of ``icu_landmark``.
        prospective: False predicts at the end of the episode and takes notes by the time they are about, as the paper.
        max_patients: Keep that many patients, drawn by `draw_seed`; None keeps all.
        draw_seed: Key of the draws.
        release: ``auto`` tells 2.2 and 3.1 apart by what is in the files.
        cxr: What is under `cxr_root`: ``images``, or ``embeddings`` (TFRecords).
        views: ``frontal`` films, or ``all``.
        check_films: ``decode`` reads each film once when the store is prepared; ``open`` only its header.
        absent_films: Whether a film that is listed but not there, or a damaged embedding, is counted (``count``) or an
            ``error``.
        blanks: Whether the de-identification blanks ``___`` stay in the notes (``keep``) or not (``drop``).
        embeddings: Parquet files with vectors made elsewhere in place of notes or films, by modality
            (``radiology``, ``discharge``: by note_id; ``cxr``: by dicom_id).
        measurements: Labs and vitals as ``statistics`` of the window, or as ``series`` of the values themselves.
        merge_structured: One modality ``structured`` in place of structured, labs, vitals and treatments.
        include_micro: Add the modality ``micro``.
        include_billing: Add the modality ``billing``: codes assigned after discharge, for the paper's preset alone.
        exclude_care_limits: Leave out samples with limited or comfort care before the prediction time.
        modalities: Names of the modalities to use, or None for all.
        tasks: Names of the tasks to learn, or None for all.
        splits: How patients are divided; `by` may be ``patient`` or ``year`` (the anchor_year_group).
        min_patients: Least number of training patients for an item or a code to be used.
        batch_size: Samples a batch on each device.
        workers: Loader processes; 0 is fastest for stores on a local disk.
        seed: Seed of the order of training batches; None takes the run's `seed_everything`.
        predict_splits: Which samples `predict` goes over.
        schema_of: Checkpoint whose schema is used in place of one fitted here; `mmnar validate`, `test` and `predict`
            set it.

    Raises:
        ExtractError: If the release is one that can't be read, or a table is missing or not as it should be, when the
            store is prepared; nothing is written then.

    Source: Johnson et al., *MIMIC-IV, a freely accessible electronic health record dataset*, 2023, doi
    10.1038/s41597-022-01899-x.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        store: Path | str = "stores",
        *,
        note_root: Path | str | None = None,
        cxr_root: Path | str | None = None,
        cohort: CohortName = "post_discharge",
        episodes: Episodes = "first",
        note_grace_hours: float = 24.0,
        landmark_hours: float = 24.0,
        prospective: bool = True,
        max_patients: int | None = None,
        draw_seed: int = 0,
        release: Version = "auto",
        cxr: Films = "images",
        views: Views = "frontal",
        check_films: Check = "decode",
        absent_films: Absent = "count",
        blanks: Blanks = "keep",
        embeddings: Mapping[str, Path] | None = None,
        measurements: Form = "statistics",
        merge_structured: bool = False,
        include_micro: bool = False,
        include_billing: bool = False,
        exclude_care_limits: bool = False,
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
        self.root = None if root is None else Path(root).expanduser()
        self.extractor = MIMIC4Extractor(
            cohort=cohort,
            episodes=episodes,
            note_grace_hours=note_grace_hours,
            landmark_hours=landmark_hours,
            prospective=prospective,
            max_patients=max_patients,
            draw_seed=draw_seed,
            release=release,
            note_root=None if note_root is None else Path(note_root).expanduser(),
            cxr_root=None if cxr_root is None else Path(cxr_root).expanduser(),
            cxr=cxr,
            views=views,
            check_films=check_films,
            absent_films=absent_films,
            blanks=blanks,
            embeddings=embeddings,
            measurements=measurements,
            merge_structured=merge_structured,
            include_micro=include_micro,
            include_billing=include_billing,
            exclude_care_limits=exclude_care_limits,
        )

    def prepare_store(self) -> Path:
        """Return the store of this cohort and these options, made from `root` where it is not there yet."""
        if self.root is None:
            return find_store(
                self.store_folder, self.extractor.dataset, self.extractor.cohort, self.extractor.options()
            )
        detect(self.root, self.extractor.release)
        notes = self.extractor.note_root
        if notes is not None and not (notes / "note").is_dir():
            # notes are optional, so that a mistyped folder would pass for their absence
            raise ExtractError(f"{notes}: has no folder note; note_root is the folder above it")
        return prepare(self.extractor, self.root, self.store_folder)

    def image_folder(self, modality: str) -> Path | None:
        """Where the films lie that the store names by their place below it."""
        return self.extractor.cxr_root if modality == "cxr" else None
