"""The state of a training run in one safetensors object per checkpoint; knows nothing of models or workers.

One object, one conditional write: a checkpoint is there whole or not at all. The bytes are a function of the
tensors and the facts: safetensors sorts tensors itself, and all facts go into one metadata entry, whose order
is ours.
"""

import json
from collections.abc import Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ray_dit.formats.worker_history import History


class CheckpointFacts(BaseModel):
    """What of a training state is no tensor."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Optimizer steps that are done."""
    history: History = ()
    """Of the workers that did them; none in checkpoints of earlier versions."""


def checkpoint_bytes(tensors: Mapping[str, torch.Tensor], facts: CheckpointFacts) -> bytes:
    """safetensors bytes of the state."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = facts.model_dump(exclude_defaults=True)  # so that of one of an earlier version the same bytes come
    return save_tensors(plain, metadata={"facts": json.dumps(told, sort_keys=True)})


def parse_checkpoint(data: bytes) -> tuple[dict[str, torch.Tensor], CheckpointFacts]:
    """Tensors and facts: the inverse of ``checkpoint_bytes``; damaged bytes raise any exception."""
    return load_tensors(data), _facts(data)


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries under ``prefix.``, the prefix taken off."""
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            yield name.removeprefix(prefix + "."), tensor


def _facts(data: bytes) -> CheckpointFacts:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return CheckpointFacts.model_validate_json(header["__metadata__"]["facts"])
