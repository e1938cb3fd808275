"""The state of a training run in one safetensors object a checkpoint; knows nothing of models or workers.

One object, one conditional write: a checkpoint is there whole or not at all. The bytes are a function of the tensors
and the facts: safetensors sorts tensors itself, and all facts go into one metadata entry, whose order is ours.
"""

import json
import re
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ray_dit.errors import UserError
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


def checkpoint_bytes(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> bytes:
    """safetensors bytes of the state."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save_tensors(plain, metadata={"facts": json.dumps(facts, sort_keys=True)})


def read_checkpoint(store: Store, step: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and facts of a checkpoint; UserError if the object is damaged."""
    key = checkpoint_key(step)
    data = store.get(key)
    try:
        return load_tensors(data), _facts(data)
    except Exception as error:
        raise UserError(
            f"the checkpoint {store.uri}/{key} is damaged ({error}): delete it, and the run goes on from the one before"
        ) from error


def prune_checkpoints(store: Store, keep: int) -> None:
    """Deletes all but the newest ``keep`` checkpoints."""
    for step in checkpoint_steps(store)[:-keep]:
        store.delete(checkpoint_key(step))


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries under ``prefix.``, the prefix taken off."""
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            yield name.removeprefix(prefix + "."), tensor


def _facts(data: bytes) -> dict[str, object]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return json.loads(header["__metadata__"]["facts"])
