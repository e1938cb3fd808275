"""A few pieces of work at the same time, each in a Ray task of its own; for what is no shard of a job."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ray_dit.errors import UserError
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import Placed, ray_session
from ray_dit.storage.proven import trust_settings

T = TypeVar("T")


def run_tasks(
    ray: Any, work: Callable[..., T], items: Sequence[Any], *shared: Any, threads: int, gpus: int = 0
) -> Iterator[T]:
    """Calls ``work(*shared, item)`` for every item in a task with that many torch threads and GPUs.

    Yields each result when it is there, in no order.

    What is ``shared`` is stored once for all of them. Raises the UserError of a task that met one.
    """
    task = ray.remote(num_cpus=threads, num_gpus=gpus)(_attempt)
    stored = [ray.put(value) for value in shared]
    waiting = [task.remote(work, threads, item, *stored) for item in items]
    while waiting:
        ready, waiting = ray.wait(waiting)
        for result, error in ray.get(ready):
            if error is not None:
                raise UserError(error)
            yield result


def in_tasks(config: Placed) -> Callable[[Callable[[Any], T], Sequence[Any]], Iterator[T]]:
    """``run_tasks`` on the Ray that is meant, which is begun for it and left at the end."""

    def over(work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        with ray_session(config) as ray:
            yield from run_tasks(ray, work, items, threads=1)

    return over


def _attempt(work: Callable[..., T], threads: int, item: Any, *shared: Any) -> tuple[T | None, str | None]:
    """The result, or the message of a user's error, which Ray would wrap if it were raised."""
    trust_settings()
    set_up_torch(threads)
    try:
        return work(*shared, item), None
    except UserError as error:
        return None, str(error)
