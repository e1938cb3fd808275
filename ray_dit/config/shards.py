"""What the stages share that make shards on a pool of actors."""

from typing import Annotated

from pydantic import Field

from ray_dit.config.base import NumberOrRange, Placement, range_of
from ray_dit.config.stage import StageConfig


class ShardsConfig(StageConfig):
    """What the stages have in common that make shards on a pool of actors."""

    actors: Placement[NumberOrRange] = 2
    """Actors that make shards, or a range: 2..64 takes as many as there is room for, and a private Ray must
    have room for the first number. Those without room start when the cluster grows."""
    price_per_hour: Placement[Annotated[float, Field(ge=0)] | None] = None
    """Price of one actor for an hour: for the cost that --plan says, and at the end the cost of 1,000
    images."""
    shard_deadline: Placement[Annotated[float, Field(gt=0)] | None] = None
    """Seconds a shard may take once the model is loaded, before its process is killed and the shard tried
    again (three tries in all); by default 15 minutes, or 20 times the median of this run's finished shards if
    that is more."""

    @property
    def fewest_actors(self) -> int:
        """How many must have room where the cluster can't grow: one, unless a range says more."""
        return range_of(self.actors)[0] if isinstance(self.actors, str) else 1

    @property
    def most_actors(self) -> int:
        """How many there are where all have room."""
        return range_of(self.actors)[1]

    @property
    def own_threads(self) -> int:
        """Threads that keep a CPU of an actor busy, beside those of torch."""
        return 0
