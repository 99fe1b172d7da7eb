"""What a sample is: modalities, tasks, batches, the store they come from, and who is trained on."""

from mmnar_lightning.records.batch import Elements, Encoded, IndexReader, Inputs, PatientBatch, Reader, read
from mmnar_lightning.records.datamodule import RecordDataModule
from mmnar_lightning.records.dataset import RecordDataset
from mmnar_lightning.records.derived import derive, derived_folder, find_derived
from mmnar_lightning.records.fitting import fit_schema
from mmnar_lightning.records.identity import patient_hashes, patient_key
from mmnar_lightning.records.loading import EpochBatches, RecordLoader
from mmnar_lightning.records.reasons import REASONS, availability_reasons
from mmnar_lightning.records.schema import (
    KINDS,
    UNKNOWN,
    FusionShape,
    Modality,
    RecordSchema,
    Task,
    pattern_id,
    pattern_names,
)
from mmnar_lightning.records.splits import SPLITS, SplitSettings, assign_splits, calibration_half, keyed_uniform
from mmnar_lightning.records.store import RecordStore, StoreError, store_name, write_store

__all__ = [
    "KINDS",
    "REASONS",
    "SPLITS",
    "UNKNOWN",
    "Elements",
    "Encoded",
    "EpochBatches",
    "FusionShape",
    "IndexReader",
    "Inputs",
    "Modality",
    "PatientBatch",
    "Reader",
    "RecordDataModule",
    "RecordDataset",
    "RecordLoader",
    "RecordSchema",
    "RecordStore",
    "SplitSettings",
    "StoreError",
    "Task",
    "assign_splits",
    "availability_reasons",
    "calibration_half",
    "derive",
    "derived_folder",
    "find_derived",
    "fit_schema",
    "keyed_uniform",
    "patient_hashes",
    "patient_key",
    "pattern_id",
    "pattern_names",
    "read",
    "store_name",
    "write_store",
]
