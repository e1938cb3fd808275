"""What an accelerator is told, and that nothing waits for one.

torch's meta device stands for the accelerator: its tensors have no values, so whatever would bring one back
to the host, and make it wait, fails there.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ray_dit.config import DiffusionConfig, SamplerConfig
from ray_dit.core.batch import TrainingBatch, training_batch
from ray_dit.core.diffusion import linear_schedule, q_sample
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.rng import Stream, normal
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import Rows, TableBank, denoise_step, init_rows, sample
from ray_dit.core.transfer import pack, to_device, unpack
from ray_dit.pipeline import meta_dit
from tests.support.golden_dit import CONFIG

META = torch.device("meta")
SCHEDULE = linear_schedule(DiffusionConfig())
SAMPLERS = (
    SamplerConfig(name="ddpm", num_inference_steps=3),
    SamplerConfig(name="ddim", num_inference_steps=4, eta=0.5, guidance_interval=(0, 500)),
    SamplerConfig(name="unipc", num_inference_steps=3, order=2),
)


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device, those that the host waits for, and all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waited_for = self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        made = func(*args, **given)
        source = args[1] if func is torch.ops.aten.copy_.default else args[0] if args else None
        if isinstance(source, torch.Tensor) and source.is_cpu and isinstance(made, torch.Tensor):
            is_copy = made.is_meta and source.numel() > 0
            self.count += is_copy
            self.waited_for += is_copy and not given.get("non_blocking")
        self.operations += 1
        return made


def a_mixture() -> tuple[GuidedModel, Rows, TableBank]:
    bank = TableBank([make_table(config, SCHEDULE, learn_sigma=True) for config in SAMPLERS])
    model = GuidedModel(meta_dit(CONFIG), CONFIG.num_classes, guidance_channels=3)
    return model, some_rows(), bank


def some_rows() -> Rows:
    return init_rows(
        (CONFIG.in_channels, CONFIG.input_size, CONFIG.input_size),
        labels=torch.tensor([1, 2, 3]),
        sample_id=torch.arange(3),
        seed=7,
        guidance_scale=torch.tensor([1.0, 1.5, 4.0]),
        table=torch.tensor([0, 1, 2]),
        device=META,
    )


@pytest.mark.parametrize("pad_to", [None, [3, 6]])
def test_a_step_is_told_to_the_device_in_one_copy(pad_to: list[int] | None) -> None:
    model, rows, bank = a_mixture()
    for _ in range(2):
        with Copies() as copies:
            rows, x_start = denoise_step(model, rows, bank, pad_to=pad_to)
        assert copies.count == 1
        assert x_start.is_meta
        assert rows.x.is_meta


def test_no_step_brings_anything_back() -> None:
    model, rows, bank = a_mixture()
    assert sample(model, rows, bank).shape == rows.x.shape


def test_rows_are_begun_and_chosen_in_one_copy_each() -> None:
    with Copies() as begun:
        rows = some_rows()
    assert begun.count == 1
    with Copies() as chosen:
        assert len(rows.select(torch.tensor([2, 0]))) == 2
    assert chosen.count == 1


def a_training_batch() -> TrainingBatch:
    return training_batch(
        7,
        torch.arange(5, device=META),
        torch.empty(5, 8, 4, 4, device=META),
        torch.empty(5, dtype=torch.int64, device=META),
        shift=torch.zeros(1, device=META),
        scale=torch.zeros(1, device=META),
        num_timesteps=SCHEDULE.num_timesteps,
        num_classes=10,
        class_dropout_prob=0.1,
    )


def test_nothing_waits_for_a_training_batch_and_its_loss() -> None:
    with Copies() as copies:
        batch = a_training_batch()
        x_t = q_sample(SCHEDULE, batch.x_start, batch.t, batch.noise)
        output = torch.cat([x_t, x_t], dim=1)
        diffusion_loss(SCHEDULE, output, batch.x_start, x_t, batch.t, batch.noise, learn_sigma=True)
    assert copies.count > 0  # the tables
    assert copies.waited_for == 0


def test_all_noise_of_a_training_batch_is_drawn_at_once() -> None:
    with Copies() as of_batch:
        a_training_batch()
    with Copies() as of_noise:
        normal(7, torch.arange(5, device=META), 0, (4, 4, 4), stream=Stream.TRAIN_NOISE)
    assert of_batch.operations < 2 * of_noise.operations


@pytest.mark.parametrize(
    "values",
    [
        [torch.arange(5), torch.tensor([0.5, -1.0, 3.0]), torch.zeros(0, dtype=torch.int64)],
        [torch.tensor([True, False, True]), torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T],
    ],
)
def test_the_device_gets_what_it_was_sent(values: list[torch.Tensor]) -> None:
    there = unpack(pack(values), values)
    for value, copy in zip(values, there, strict=True):
        assert copy.dtype == value.dtype
        assert torch.equal(copy, value)
    assert [v.shape for v in to_device(META, values)] == [v.shape for v in values]
    assert all(
        one is other for one, other in zip(to_device(torch.device("cpu"), values), values, strict=True)
    )
