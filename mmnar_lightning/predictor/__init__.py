"""A trained model as a function from a table to probabilities, without store, datamodule or trainer."""

from mmnar_lightning.predictor.columns import Columns
from mmnar_lightning.predictor.predictor import Predictor, load_predictor

__all__ = ["Columns", "Predictor", "load_predictor"]
