"""One actor of a job, with a clock inside: what a shard takes, and how much of that is the beginning.

Knows no stage.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_dit.config import ShardsConfig
from ray_dit.ledger.job import Job
from ray_dit.results import ShardFacts
from ray_dit.runtime.shard_maker import Made, ShardMaker, make_shard, shard_name
from ray_dit.runtime.shards import Work, make_shards
from ray_dit.storage.open import open_store


@dataclass(frozen=True)
class Speed:
    """Seconds per shard."""

    steady: float
    """From the end of the first shard to that of the last."""
    whole: float
    """From the first shard's beginning, which has nothing to overlap with; nor has the last one's end."""


@dataclass(frozen=True)
class Clocked:
    """Makes a shard maker with a clock around it."""

    build: Callable[[], ShardMaker]
    begun: str
    """The file that says when the first shard was begun."""

    def __call__(self) -> ShardMaker:
        maker = self.build()
        make_shard(maker, 0)  # warm
        return _ClockedMaker(maker, Path(self.begun))


class _ClockedMaker:
    """Does what the maker does, and says when the first shard is begun and when each one is done."""

    def __init__(self, maker: ShardMaker, begun: Path) -> None:
        self._maker, self._begun = maker, begun

    def prepare(self, shard: int) -> Any:
        """The maker's; the first one says when."""
        if not self._begun.exists():
            self._begun.write_text(str(time.time()))
        return self._maker.prepare(shard)

    def compute(self, inputs: Any) -> Any:
        """The maker's."""
        return self._maker.compute(inputs)

    def finish(self, outputs: Any) -> Made:
        """The maker's; says when."""
        made = self._maker.finish(outputs)
        facts = ShardFacts.model_validate({"shard": made.facts.shard, "end": time.time()})
        return Made(f"data/{shard_name(made.facts.shard)}", made.data, facts)


def through(
    ray: Any, config: ShardsConfig, build: Callable[[], ShardMaker], shards: int, *, lanes: int = 3
) -> Speed:
    """Makes ``shards`` shards with the one actor of ``config``, which has ``lanes`` of them under way."""
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"output": f"{folder}/out"})
        job = Job.open(open_store(config.output), "generate", {"made": "by a benchmark"})
        begun = Path(folder, "begun")
        work = Work("benchmark", "shards", [1] * shards, lanes=lanes)
        make_shards(ray, config, job, Clocked(build, str(begun)), work)
        ends = [marker.facts.to_json()["end"] for marker in job.markers(ShardFacts)]
        first, last = min(ends), max(ends)
        return Speed((last - first) / (shards - 1), (last - float(begun.read_text())) / shards)
