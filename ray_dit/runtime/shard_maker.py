"""What makes a shard: three phases, of which the middle one needs the accelerator.

Knows neither Ray nor storage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ray_dit.results import ShardFacts


@dataclass(frozen=True)
class Made:
    """A finished shard: where it goes, its bytes, and the facts for its marker."""

    key: str
    data: bytes
    facts: ShardFacts
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Objects that ``data`` lists, by key; see ``Job.put``."""
    varies: bool = False
    """Whether other bytes may come out another time, as something it is made of is gone or changed."""


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


@runtime_checkable
class Careful(Protocol):
    """A maker that can prepare a shard so that what is read can't end this process."""

    def prepare_carefully(self, shard: int) -> Any:
        """As ``prepare``, of a shard by whose fault, perhaps, a process has ended."""
        ...


@runtime_checkable
class Remaker(Protocol):
    """A maker whose shards follow not from their numbers alone, but also from what was there to make them."""

    def make_again(self, key: str, facts: Mapping[str, Any]) -> Made:
        """The shard of any generation that lies at ``key``, as its marker's facts say it was."""
        ...


def make_shard(maker: ShardMaker, shard: int) -> Made:
    """The three phases, one after the other."""
    return maker.finish(maker.compute(maker.prepare(shard)))


def shard_name(shard: int) -> str:
    """Name of a shard's marker."""
    return f"{shard:05d}"
