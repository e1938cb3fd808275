"""A generated dataset opened from a store: its shards as rows, whatever format they are in."""

from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.registry import written_in
from ray_dit.storage.store import Store


def read_shard(store: Store, key: str) -> ImageShard:
    """The shard at ``key`` of the dataset in ``store``; NotFound."""
    return written_in(key).read(store, [key])
