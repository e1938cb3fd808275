"""One optimizer step as training does it, which a check repeats and a figure times."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu_check.bench import SCHEDULE, Bench
from ray_dit.config import OptimizerConfig
from ray_dit.core.batch import training_batch
from ray_dit.core.diffusion import q_sample
from ray_dit.core.dit import DiT
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.rng import Stream, normal
from ray_dit.core.train_step import make_ema, make_optimizer, update_ema


def training_step(
    bench: Bench, model: DiT, network: nn.Module, *, rows: int, bfloat16: bool = False
) -> Callable[[int], None]:
    """One optimizer step of ``rows`` samples, as in training: batch, loss, AdamW, averaged weights."""
    config = model.config
    optimizer = make_optimizer(model, OptimizerConfig())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ema = make_ema(trained)
    shape = (2 * config.in_channels, config.input_size, config.input_size)
    moments = normal(0, torch.arange(rows, device=bench.device), 0, shape, stream=Stream.EVALUATE)
    labels = torch.arange(rows, device=bench.device) % config.num_classes

    def step(number: int) -> None:
        batch = training_batch(
            0,
            torch.arange(number * rows, (number + 1) * rows, device=bench.device),
            moments,
            labels,
            shift=0.0,
            scale=1.0,
            num_timesteps=SCHEDULE.num_timesteps,
            num_classes=config.num_classes,
            class_dropout_prob=config.class_dropout_prob,
        )
        x_t = q_sample(SCHEDULE, batch.x_start, batch.t, batch.noise)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bfloat16):
            output = network(x_t, batch.t, batch.y)
        loss = diffusion_loss(
            SCHEDULE, output, batch.x_start, x_t, batch.t, batch.noise, learn_sigma=config.learn_sigma
        ).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, trained, 0.99)

    return step
