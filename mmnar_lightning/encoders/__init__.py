"""From packed elements to one token a sample and modality: nothing is computed for what was not observed."""

from mmnar_lightning.encoders.base import Encoder, default_encoder, encode, encoders
from mmnar_lightning.encoders.codes import CodesEncoder
from mmnar_lightning.encoders.image import ImageEncoder
from mmnar_lightning.encoders.series import SeriesEncoder
from mmnar_lightning.encoders.text import TextEncoder
from mmnar_lightning.encoders.vector import VectorEncoder

__all__ = [
    "CodesEncoder",
    "Encoder",
    "ImageEncoder",
    "SeriesEncoder",
    "TextEncoder",
    "VectorEncoder",
    "default_encoder",
    "encode",
    "encoders",
]
