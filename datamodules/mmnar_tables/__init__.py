"""Your own tables: a folder of parquet files and a `schema.yaml`, no code to write."""

from mmnar_tables.datamodule import TablesDataModule
from mmnar_tables.description import Description, ModalityEntry, TaskEntry, read_description
from mmnar_tables.extractor import TablesExtractor

__all__ = ["Description", "ModalityEntry", "TablesDataModule", "TablesExtractor", "TaskEntry", "read_description"]
