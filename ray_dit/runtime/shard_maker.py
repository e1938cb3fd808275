"""What makes a shard: three phases, of which the middle one needs the accelerator.

Knows neither Ray nor storage.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from ray_dit.results import ShardFacts


@dataclass(frozen=True)
class Made:
    """A finished shard: where it goes, its bytes, and the facts for its marker."""

    key: str
    data: bytes
    facts: ShardFacts


class ShardMaker(Protocol):
    """Lives in an actor; made with its model loaded, compiled and warm.

    A shard has three phases. Each is a pure function of the job and its argument, so an actor may run those
    of different shards at the same time without changing a byte.
    """

    def prepare(self, shard: int) -> Any:
        """Reads and decodes what the shard needs; in any thread, while the shards before it are computed."""
        ...

    def compute(self, inputs: Any) -> Any:
        """Uses the accelerator on what ``prepare`` gave; one call at a time, always in the same thread."""
        ...

    def finish(self, outputs: Any) -> Made:
        """Compresses and serialises what ``compute`` gave.

        In any thread, while the next shard is computed.
        """
        ...


def make_shard(maker: ShardMaker, shard: int) -> Made:
    """The three phases, one after the other."""
    return maker.finish(maker.compute(maker.prepare(shard)))


def shard_name(shard: int) -> str:
    """Name of a shard's marker."""
    return f"{shard:05d}"
