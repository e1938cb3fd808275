"""The checkpoints in a run's folder, one object each; knows nothing of models or workers."""

import re
from collections.abc import Callable

import torch

from ray_dit.errors import Damaged
from ray_dit.formats.checkpoint import CheckpointFacts, parse_checkpoint
from ray_dit.storage.store import Store

FOLDER = "checkpoints"
_NAME = re.compile(r"checkpoints/step-(\d+)\.safetensors$")


def checkpoint_key(step: int) -> str:
    """Where the state after ``step`` optimizer steps lies."""
    return f"{FOLDER}/step-{step:08d}.safetensors"


def checkpoint_steps(store: Store) -> list[int]:
    """The steps there are checkpoints of, rising."""
    found = (_NAME.search(info.key) for info in store.list(f"{FOLDER}/"))
    return sorted(int(match.group(1)) for match in found if match)


def read_checkpoint(
    store: Store, step: int, *, get: Callable[[str], bytes] | None = None
) -> tuple[dict[str, torch.Tensor], CheckpointFacts]:
    """Tensors and facts of a checkpoint; Damaged if it is.

    ``get`` reads it where something is known of its bytes: ``Job.plain.get``.
    """
    key = checkpoint_key(step)
    data = (get or store.get)(key)
    try:
        return parse_checkpoint(data)
    except Exception as error:
        raise Damaged(f"the checkpoint {store.uri}/{key} is damaged ({error})") from error
