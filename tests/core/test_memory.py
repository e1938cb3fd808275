"""What a backward pass keeps: counted on shapes against what autograd keeps of real numbers."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ray_dit.config import DiTConfig
from ray_dit.core.dit import DiT
from ray_dit.core.memory import dit_kept_bytes, kept_bytes

SHAPE = DiTConfig(
    input_size=8, patch_size=2, in_channels=4, hidden_size=48, depth=3, num_heads=3, num_classes=5
)


def measured(samples: int, *, bfloat16: bool) -> int:
    """Bytes of the storages that autograd keeps of a real forward pass, parameters aside."""
    model = DiT(SHAPE)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x, t, y = torch.randn(samples, 4, 8, 8), torch.rand(samples), torch.zeros(samples, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        result = model(x, t, y)
    assert result.requires_grad
    return sum(storage.nbytes() for address, storage in found.items() if address not in own)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("samples", [1, 7])
def test_the_count_is_what_autograd_keeps(bfloat16: bool, samples: int) -> None:
    kept = dit_kept_bytes(SHAPE, bfloat16=bfloat16)
    assert kept.of(samples) == pytest.approx(measured(samples, bfloat16=bfloat16), rel=0.01)


def test_recomputing_keeps_the_blocks_inputs_and_one_block() -> None:
    whole, recomputed = dit_kept_bytes(SHAPE), dit_kept_bytes(SHAPE, recompute=True)
    inputs = 4 * 16 * SHAPE.hidden_size * (SHAPE.depth - 1)  # that of the block that is there is part of it
    fewer = dit_kept_bytes(SHAPE.model_copy(update={"depth": 2}))
    block = whole.per_sample - fewer.per_sample
    ends = whole.per_sample - 3 * block
    assert recomputed.per_sample == inputs + block + ends
    assert recomputed.per_sample < 0.6 * whole.per_sample


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, ``known`` ones aside, and the most there were."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._known:
                    self._alive[reference.cdata] = (reference, storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_and_the_gradients_are_what_a_step_takes_at_most(bfloat16: bool, recompute: bool) -> None:
    """Measured: every tensor that is alive at any moment of a real step."""
    shape = SHAPE.model_copy(update={"depth": 6})
    model = DiT(shape)
    model.activation_checkpointing = recompute
    x, t, y = torch.randn(16, 4, 8, 8), torch.rand(16), torch.zeros(16, dtype=torch.int64)
    with Live(model.parameters()) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            result = model(x, t, y)
        result.square().mean().backward()
    gradients = sum(4 * parameter.numel() for parameter in model.parameters())
    counted = dit_kept_bytes(shape, bfloat16=bfloat16, recompute=recompute).of(16) + gradients
    assert 0.65 * counted < live.peak <= counted


def test_it_counts_the_published_sizes_without_their_memory() -> None:
    big = dit_kept_bytes(DiTConfig(), bfloat16=True)  # DiT-XL/2
    assert 300e6 < big.per_sample < 500e6
    assert big.fixed == pytest.approx(2 * DiT_XL_PRODUCTS, rel=0.05)


DiT_XL_PRODUCTS = 28 * 12 * 1152**2
"""Weights of the blocks' matrix products under autocast, of which a bfloat16 copy is kept."""


def test_shared_storages_are_counted_once() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin() * x.cos()

    def call(model: torch.nn.Module, samples: int) -> torch.Tensor:
        return model(torch.empty(samples, 10, requires_grad=True))

    kept = kept_bytes(Twice, call)
    assert (kept.fixed, kept.per_sample) == (0, 3 * 40)  # x, sin x and cos x
