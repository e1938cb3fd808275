"""A few pieces of work at the same time, each in a Ray task of its own; for what is no shard of a job."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray_dit.core.determinism import make_deterministic
from ray_dit.errors import UserError


def run_tasks(
    ray: Any, work: Callable[..., None], items: Sequence[Any], *shared: Any, threads: int
) -> Iterator[int]:
    """Calls ``work(*shared, item)`` for every item in a task with that many torch threads.

    Yields how many are done.

    What is ``shared`` is stored once for all of them. Raises the UserError of a task that met one.
    """
    task = ray.remote(num_cpus=threads)(_attempt)
    stored = [ray.put(value) for value in shared]
    waiting = [task.remote(work, threads, item, *stored) for item in items]
    while waiting:
        ready, waiting = ray.wait(waiting)
        for error in ray.get(ready):
            if error is not None:
                raise UserError(error)
        yield len(items) - len(waiting)


def _attempt(work: Callable[..., None], threads: int, item: Any, *shared: Any) -> str | None:
    """The message of a user's error, which Ray would wrap if it were raised."""
    make_deterministic(threads)
    try:
        work(*shared, item)
    except UserError as error:
        return str(error)
    return None
