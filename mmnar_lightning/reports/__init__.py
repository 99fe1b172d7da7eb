"""The report of a run: one HTML page, and a model card, from the files in the run's folder."""

from mmnar_lightning.reports.given_tables import read_table
from mmnar_lightning.reports.model_card import render_model_card
from mmnar_lightning.reports.page import render_page
from mmnar_lightning.reports.reading import Run, read_run

__all__ = ["Run", "read_run", "read_table", "render_model_card", "render_page"]
