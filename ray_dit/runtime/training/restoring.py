"""A finished training whose results are damaged, made anew from its checkpoints; knows no Ray."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import plain_objects
from ray_dit.ledger.markers import unless_damaged
from ray_dit.ledger.results import Manifest
from ray_dit.results import Trained


@dataclass(frozen=True)
class Finished:
    """What a finished training is bound to."""

    history: History
    """Which workers trained which steps; what is made again must have the same."""
    keys: frozenset[str] | None
    """Its objects without facts, checkpoints among them; None where that is not known."""


_log = logging.getLogger(__name__)


def finished_training(job: Job) -> Finished | None:
    """What a training is bound to; None while it is unfinished, or where its manifest is damaged."""
    manifest = unless_damaged(lambda: job.manifest(Trained))
    if manifest is None:
        return None
    listed = unless_damaged(lambda: plain_objects(job.store, manifest))
    return Finished(manifest.facts.history, frozenset(plain.key for plain in listed) if listed else None)


def damaged_results(job: Job, manifest: Manifest[Any] | None, skip: tuple[str, ...] = ()) -> list[str]:
    """URIs of what is missing or damaged of a finished job, but for keys that start with ``skip``.

    ``manifest`` is what ``Job.whole`` said of it. None while the job is unfinished. Markers are put back.
    """
    if manifest is None:
        return [job.store.uri] if job.is_finished() else []
    job.restore_markers(manifest)
    return [job.store.where(key) for key in job.damage(manifest, skip)]


def to_restore(job: Job, damage: Sequence[str]) -> Job:
    """A finished training's job to run once more, which puts back what is damaged, after saying so.

    UserError where there is no checkpoint left: it would be trained anew.
    """
    if not checkpoint_steps(job.store, job.prefix):
        raise UserError(
            f"{damage[0]} is missing or damaged, though {job.store.uri} is finished, and no checkpoint is "
            f"left to make it from: restore it from a copy, or delete {job.store.uri} and run the stage again"
        )
    for uri in damage:
        _log.warning("%s is missing or damaged; it is made again from the last checkpoint", uri)
    return replace(job, repairing=True)
