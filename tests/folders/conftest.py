"""Stores of each kind, shared with the tests of storage."""

from tests.support.stores import s3_environment, store

__all__ = ["s3_environment", "store"]
