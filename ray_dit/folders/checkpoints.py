"""The checkpoints in a run's folder, one object each, and its loss curve; knows no models or workers.

::

    checkpoints/step-00000100-1a2b3c4d.safetensors       after 100 steps; the hash of the worker history
    checkpoints/g01-step-...                             those of the first extension
    checkpoints/step-00000100.safetensors                of a version that noted no worker history
    _runs/passing/step-00000110-1a2b3c4d-0123456789abcdef.safetensors
                                                         saved on notice: the next regular one replaces it
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ray_dit.errors import Damaged
from ray_dit.formats.checkpoint import CheckpointFacts, parse_checkpoint
from ray_dit.formats.worker_history import History, history_hash, keyed, until
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_prefix, listing_key, manifest_key, plain_listing_key
from ray_dit.ledger.markers import unless_damaged
from ray_dit.results import OfHistory
from ray_dit.storage.store import Store

FOLDER = "checkpoints"
SAMPLES = "samples/"
"""Where a run's sample grids lie."""
RECONSTRUCTIONS = "reconstructions.npz"
"""What a training of a VAE ends with beside it, at this key with the hash of the worker history."""
PASSING = "_runs/passing/"
"""Where checkpoints lie that are outside the job: outside its manifest, and every equality."""
SUM_DIGITS = 16
"""Of the sha256 of a passing checkpoint, in its key: it has no marker."""
_NAME = re.compile(rf"(\d{{8,}})(?:-([0-9a-f]{{8}}))?(?:-([0-9a-f]{{{SUM_DIGITS}}}))?$")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint, as its key names it."""

    step: int
    """Optimizer steps done."""
    history: str = ""
    """Hash of the worker history; empty in those of earlier versions."""
    sum: str = ""
    """Of a passing one: how its sha256 begins."""

    @property
    def name(self) -> str:
        """What its key ends in, ahead of the suffix."""
        return "-".join(filter(None, (f"{self.step:08d}", self.history, self.sum)))

    def key(self, prefix: str = "") -> str:
        """Where it lies; ``prefix``: that of its generation."""
        folder = PASSING if self.sum else f"{FOLDER}/"
        return f"{folder}{prefix}step-{self.name}.safetensors"

    def belongs(self, history: History) -> bool:
        """Whether a run of this worker history made it, or would make it."""
        return self.history == history_hash(until(history, self.step))


def parse_name(name: str) -> Checkpoint | None:
    """The inverse of ``Checkpoint.name``; None for anything else."""
    match = _NAME.fullmatch(name)
    return Checkpoint(int(match[1]), match[2] or "", match[3] or "") if match else None


def checkpoint_key(step: int, prefix: str = "", history: History = ()) -> str:
    """Where the state after ``step`` optimizer steps lies.

    ``prefix``: that of the generation it is of; ``history``: of the workers that trained these steps.
    """
    return Checkpoint(step, history_hash(until(history, step))).key(prefix)


def checkpoint_names(prefix: str = "") -> str:
    """What the keys of a generation's checkpoints begin with."""
    return f"{FOLDER}/{prefix}step-"


def loss_key(generation: int, history: History = ()) -> str:
    """Where the loss curve of a finished generation lies, from its first step on."""
    return keyed(f"{generation_prefix(generation)}loss.jsonl", history)


def earlier_loss_key(generation: int) -> str:
    """Where earlier versions put it: steps and losses alone, as one JSON list."""
    return f"{generation_prefix(generation)}loss.json"


def checkpoints(store: Store, prefix: str = "") -> list[Checkpoint]:
    """The checkpoints of one generation, rising, of whatever worker history."""
    return sorted(found for found in _named(store, checkpoint_names(prefix)) if not found.sum)


def passing_checkpoints(store: Store, prefix: str = "") -> list[Checkpoint]:
    """Those saved on notice, likewise."""
    return sorted(found for found in _named(store, f"{PASSING}{prefix}step-") if found.sum)


def newest_step(store: Store, prefix: str = "") -> int:
    """The step of one generation's newest checkpoint, saved on notice or not; 0 where there is none."""
    found = (*checkpoints(store, prefix), *passing_checkpoints(store, prefix))
    return max((checkpoint.step for checkpoint in found), default=0)


def checkpoint_steps(store: Store, prefix: str = "") -> list[int]:
    """The steps there are checkpoints of, of one generation, rising."""
    return sorted({checkpoint.step for checkpoint in checkpoints(store, prefix)})


def read_checkpoint(
    store: Store,
    checkpoint: Checkpoint,
    *,
    prefix: str = "",
    get: Callable[[str], bytes] | None = None,
) -> tuple[dict[str, torch.Tensor], CheckpointFacts]:
    """Tensors and facts of a checkpoint; Damaged if it is.

    ``get`` reads it where something is known of its bytes: ``Job.plain.get``.
    """
    key = checkpoint.key(prefix)
    data = store.get(key) if checkpoint.sum else (get or store.get)(key)
    if not hashlib.sha256(data).hexdigest().startswith(checkpoint.sum):
        raise Damaged(f"the checkpoint {store.where(key)} is damaged: it is not what was written there")
    try:
        return parse_checkpoint(data)
    except Exception as error:
        raise Damaged(f"the checkpoint {store.uri}/{key} is damaged ({error})") from error


def leave_only(job: Job, history: History) -> None:
    """Removes checkpoints and sample grids of this generation that a run of another worker history has left.

    Its newest checkpoint was lost, and this run has gone on without. What stays gets a marker where it has
    none.
    """
    for names in (checkpoint_names(job.prefix), f"{SAMPLES}{job.prefix}step-"):
        for key in [info.key for info in job.store.list(names)]:
            found = parse_name(key.removeprefix(names).partition(".")[0])
            if found is not None and not found.belongs(history):
                job.plain.drop(key)
        job.plain.adopt(names)


def leave_only_result(job: Job, key: str, history: History) -> None:
    """Likewise of a result at the end: of ``loss.jsonl``, say, all but that of this worker history."""
    stem, _, suffix = key.rpartition(".")
    of_any = re.compile(rf"{re.escape(stem)}(-[0-9a-f]{{8}})?\.{suffix}")
    for other in [info.key for info in job.store.list(stem) if of_any.fullmatch(info.key)]:
        if other != keyed(key, history):
            job.plain.drop(other)


def for_history(job: Job, history: History) -> tuple[Job, OfHistory]:
    """A job that a training ends with, and the facts of its objects.

    What a run of another worker history has left of it, which ended ahead of its training's manifest, goes.
    """
    way = history_hash(history)
    markers = [unless_damaged(partial(job.marker, name, OfHistory)) for name in job.names()]
    others = [marker for marker in markers if marker is not None and marker.facts.history != way]
    if others:  # the manifest first: what is listed must be there
        for key in (manifest_key, listing_key, plain_listing_key):
            job.store.delete(key(job.generation))
    for marker in others:
        job.store.delete(marker.key)
        job.forget([marker.name or ""])
    return replace(job, way=way), OfHistory(history=way) if way else OfHistory()


def _named(store: Store, names: str) -> list[Checkpoint]:
    keys = [info.key.removeprefix(names) for info in store.list(names)]
    found = (parse_name(key.removesuffix(".safetensors")) for key in keys if key.endswith(".safetensors"))
    return [checkpoint for checkpoint in found if checkpoint is not None]
