"""The process of one command, forked from a server that has imported everything a stage imports.

Importing torch, ray and diffusers takes longer than a tiny job.
"""

import os
import sys

import ray.data
import ray.train.torch  # noqa: F401

from ray_dit import cli


def drive(words: list[str], log: str) -> None:
    """Runs `ray-dit WORDS`; what it prints goes to the file ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with (
        open(1, "w", buffering=1, closefd=False) as sys.stdout,
        open(2, "w", buffering=1, closefd=False) as sys.stderr,
    ):
        cli.main(words)
