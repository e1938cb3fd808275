"""What every stage that makes something has: where its result goes, and the Ray it runs on."""

from ray_dit.config.base import Config, Content, Placement, PositiveInt, Uri


class StageConfig(Config):
    """What every stage has: where its result goes, the Ray it runs on, threads per actor."""

    output: Placement[Uri]
    """Folder the result goes to: a path or any fsspec URI."""
    address: Placement[str] = "local"
    """local: a private Ray on this machine; auto or host:port: the cluster that is there."""
    num_cpus: Placement[PositiveInt | None] = None
    """Logical CPUs of a private Ray; by default this machine's, at least 4."""
    accept_fingerprint: Placement[bool] = False
    """Go on with a job that was begun with other library versions; each shard records which made it."""
    threads: Content[PositiveInt] = 1
    """torch threads per actor; part of what determines bytes."""
