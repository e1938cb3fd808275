"""One Ray per module."""

from tests.support.one_ray import one_ray

__all__ = ["one_ray"]
