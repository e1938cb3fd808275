"""The options that benchmarks of a network share: which one it is, and for how long."""

import argparse

from ray_dit.config import DiTConfig, DiTSizeConfig


def add_options(parser: argparse.ArgumentParser, *, turns: int, quick: str) -> None:
    """``--size``, ``--threads``, ``--turns`` (by default so many) and ``--quick``, with what to say of it."""
    parser.add_argument("--size", default="DiT-S/2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=turns)
    parser.add_argument("--quick", action="store_true", help=f"a tiny model, {quick}: shows that it works")


def shape_of(arguments: argparse.Namespace, num_classes: int) -> DiTConfig:
    """The network they ask for, on latents of 4x32x32; a tiny one with ``--quick``."""
    size = DiTSizeConfig(preset=arguments.size)
    shape = size.resolve(input_size=32, in_channels=4, num_classes=num_classes)
    tiny = {"depth": 2, "hidden_size": 48, "num_heads": 2}
    return shape.model_copy(update=tiny) if arguments.quick else shape
