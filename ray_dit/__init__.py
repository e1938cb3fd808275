"""Train class-conditional diffusion transformers and mass-produce labelled images with them on Ray."""

__version__ = "0.1.0"
