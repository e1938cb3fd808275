"""Which kind of storage a URI means; the one place that knows all of them."""

import os
from pathlib import Path

from ray_dit.config.base import absolute
from ray_dit.errors import UserError
from ray_dit.storage.local import LocalStore
from ray_dit.storage.store import Store


def open_store(uri: str) -> Store:
    """The store at a local path, ``file://``, ``s3://bucket/prefix`` or any URI fsspec knows.

    ``s3://anonymous@bucket/prefix`` is a public bucket, asked without credentials.
    Nothing is read. UserError for an S3 URI without a bucket, and for a misspelt URI.
    """
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower() if separator else ""
    if scheme in ("", "file", "local"):
        try:
            return LocalStore(absolute(rest if separator else uri))
        except ValueError as error:
            raise UserError(str(error)) from error
    # Both bring fsspec and a client of their own, which a run on local folders does without.
    if scheme in ("s3", "s3a"):
        from ray_dit.storage.s3 import ANONYMOUS, S3Store

        if not rest.removeprefix(ANONYMOUS).partition("/")[0]:
            raise UserError(f"{uri!r} names no bucket: give s3://BUCKET/FOLDER")
        return S3Store(f"s3://{rest.rstrip('/')}")
    from ray_dit.storage.other import FsspecStore

    return FsspecStore(f"{scheme}://{rest.rstrip('/')}")


def open_output(uri: str) -> Store:
    """As ``open_store``, for a folder that is written to: UserError at once where it can only be read."""
    store = open_store(uri)
    store.refuse_read_only()
    return store


def is_inside(uri: str, folder: str) -> bool:
    """Whether ``uri`` is ``folder`` or lies in it, with symbolic links followed."""
    inner, outer = open_store(uri), open_store(folder)
    if isinstance(inner, LocalStore) and isinstance(outer, LocalStore):
        return Path(os.path.realpath(inner.uri)).is_relative_to(os.path.realpath(outer.uri))
    return f"{_place(inner)}/".startswith(f"{_place(outer)}/")


def _place(store: Store) -> str:
    """Where a store is, whoever asks."""
    return store.uri.replace("s3://anonymous@", "s3://", 1)
