"""The checkpoints in a run's folder, one object each, and its loss curve; knows no models or workers."""

import re
from collections.abc import Callable

import torch

from ray_dit.errors import Damaged
from ray_dit.formats.checkpoint import CheckpointFacts, parse_checkpoint
from ray_dit.ledger.manifest import generation_prefix
from ray_dit.storage.store import Store

FOLDER = "checkpoints"
_NAME = re.compile(r"(\d+)\.safetensors$")


def checkpoint_key(step: int, prefix: str = "") -> str:
    """Where the state after ``step`` optimizer steps lies; ``prefix``: that of the generation it is of."""
    return f"{checkpoint_names(prefix)}{step:08d}.safetensors"


def checkpoint_names(prefix: str = "") -> str:
    """What the keys of a generation's checkpoints begin with."""
    return f"{FOLDER}/{prefix}step-"


def loss_key(generation: int) -> str:
    """Where the loss curve of a finished generation lies, from its first step on."""
    return f"{generation_prefix(generation)}loss.jsonl"


def earlier_loss_key(generation: int) -> str:
    """Where earlier versions put it: steps and losses alone, as one JSON list."""
    return f"{generation_prefix(generation)}loss.json"


def checkpoint_steps(store: Store, prefix: str = "") -> list[int]:
    """The steps there are checkpoints of, of one generation, rising."""
    names = checkpoint_names(prefix)
    found = (_NAME.match(info.key.removeprefix(names)) for info in store.list(names))
    return sorted(int(match.group(1)) for match in found if match)


def read_checkpoint(
    store: Store, step: int, *, prefix: str = "", get: Callable[[str], bytes] | None = None
) -> tuple[dict[str, torch.Tensor], CheckpointFacts]:
    """Tensors and facts of a checkpoint; Damaged if it is.

    ``get`` reads it where something is known of its bytes: ``Job.plain.get``.
    """
    key = checkpoint_key(step, prefix)
    data = (get or store.get)(key)
    try:
        return parse_checkpoint(data)
    except Exception as error:
        raise Damaged(f"the checkpoint {store.uri}/{key} is damaged ({error})") from error
