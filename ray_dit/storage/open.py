"""Which kind of storage a URI means; the one place that knows all of them."""

from pathlib import Path

from ray_dit.storage.local import LocalStore
from ray_dit.storage.store import Store


def open_store(uri: str) -> Store:
    """The store at a local path, ``file://``, ``s3://bucket/prefix`` or any URI fsspec knows.

    Nothing is read.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in ("file", "local"):
        path = rest if separator else uri
        return LocalStore(str(Path(path).expanduser().absolute()))
    # Both bring fsspec and a client of their own, which a run on local folders does without.
    if scheme in ("s3", "s3a"):
        from ray_dit.storage.s3 import S3Store

        return S3Store(f"s3://{rest.rstrip('/')}")
    from ray_dit.storage.other import FsspecStore

    return FsspecStore(uri.rstrip("/"))
