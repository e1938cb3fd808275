"""Runs a stage inside a submitted Ray job: the command line, on the cluster that is there."""

import sys

from ray_dit import cli


def run(stage: str) -> None:
    """`ray-dit STAGE --address auto` with the options this process was given."""
    cli.main([stage, "--address", "auto", *sys.argv[1:]])
