"""Tools for whoever turns raw tables into a record store; knows no dataset by name."""

from mmnar_lightning.extract.aggregate import STATS, aggregate, items, pivot
from mmnar_lightning.extract.availability import available_at, known_by, window
from mmnar_lightning.extract.catalogue import ItemCatalogue
from mmnar_lightning.extract.extraction import Counts, Elements, Extraction, Extractor
from mmnar_lightning.extract.prepare import find_store, prepare
from mmnar_lightning.extract.scan import scan
from mmnar_lightning.extract.tables import Clock, Column, ExtractError, Only, TableSpec, Units

__all__ = [
    "STATS",
    "Clock",
    "Column",
    "Counts",
    "Elements",
    "ExtractError",
    "Extraction",
    "Extractor",
    "ItemCatalogue",
    "Only",
    "TableSpec",
    "Units",
    "aggregate",
    "available_at",
    "find_store",
    "items",
    "known_by",
    "pivot",
    "prepare",
    "scan",
    "window",
]
