"""What the stages share that make shards on a pool of actors."""

from typing import Annotated

from pydantic import Field

from ray_dit.config.base import Placement, PositiveInt
from ray_dit.config.stage import StageConfig


class ShardsConfig(StageConfig):
    """What the stages have in common that make shards on a pool of actors."""

    actors: Placement[PositiveInt] = 2
    """Actors that make shards; more than the cluster has room for start when it grows."""
    shard_deadline: Placement[Annotated[float, Field(gt=0)] | None] = None
    """Seconds a shard may take once the model is loaded, before its process is killed and the shard tried
    again (three tries in all); by default 15 minutes, or 20 times the median of this run's finished shards if
    that is more."""

    @property
    def own_threads(self) -> int:
        """Threads that keep a CPU of an actor busy, beside those of torch."""
        return 0
