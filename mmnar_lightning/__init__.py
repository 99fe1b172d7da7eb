"""Multimodal clinical prediction when modalities are missing not at random, on PyTorch Lightning."""

__version__ = "0.1.0"
