"""How much memory training a network takes: counted on shapes alone, without computing or holding anything.

Knows no loop and no device. What a backward pass needs is what autograd keeps of the forward pass; its peak
is there, before the gradients take its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_dit.config import DiTConfig
from ray_dit.core.dit import DiT


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of a forward pass until the backward pass."""

    fixed: int
    """Whatever the batch: weights in another precision."""
    per_sample: int

    def of(self, samples: int) -> int:
        """For so many samples at once."""
        return self.fixed + samples * self.per_sample


def kept_bytes(
    build: Callable[[], nn.Module], call: Callable[[nn.Module, int], Any], *, bfloat16: bool = False
) -> Kept:
    """What ``call(network, samples)`` keeps for its backward pass, parameters aside.

    Both run on tensors without memory. ``bfloat16``: under autocast.
    """
    one, two = (_kept(build, call, samples, bfloat16) for samples in (1, 2))
    return Kept(fixed=max(2 * one - two, 0), per_sample=two - one)


def dit_kept_bytes(shape: DiTConfig, *, bfloat16: bool = False, recompute: bool = False) -> Kept:
    """``kept_bytes`` of a DiT; ``recompute``: with activation checkpointing.

    Of each block its input is kept then, and at the end all of one block.
    """

    def call(model: nn.Module, samples: int) -> Tensor:
        x = torch.empty(samples, shape.in_channels, shape.input_size, shape.input_size)
        return model(x, torch.empty(samples), torch.zeros(samples, dtype=torch.int64))

    # all blocks keep the same
    one, two = (
        kept_bytes(
            lambda depth=depth: DiT(shape.model_copy(update={"depth": depth})), call, bfloat16=bfloat16
        )
        for depth in (1, 2)
    )
    block, kept = Kept(two.fixed - one.fixed, two.per_sample - one.per_sample), shape.depth - 1
    inputs = 4 * (shape.input_size // shape.patch_size) ** 2 * shape.hidden_size
    if recompute:
        return Kept(one.fixed, one.per_sample + kept * inputs)
    return Kept(one.fixed + kept * block.fixed, one.per_sample + kept * block.per_sample)


def _kept(
    build: Callable[[], nn.Module], call: Callable[[nn.Module, int], Any], samples: int, bfloat16: bool
) -> int:
    found: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[_number(storage)] = storage  # held, so that no other gets its number
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        network = build()
        own = {_number(parameter.untyped_storage()) for parameter in network.parameters()}
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            result = call(network, samples)
        total = sum(storage.nbytes() for number, storage in found.items() if number not in own)
    del result
    return int(total)


def _number(storage: Any) -> int:
    """What tells storages apart: without memory they have no address."""
    return storage._cdata
