"""The parts without a bound: how fast sampling, training, VAE and forward passes are, and in how much memory.

A figure knows the device only by ``Bench``; what has a bound stands in ``checks``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.bench import SCHEDULE, Bench, in_bfloat16, inputs
from benchmarks.gpu_check.training_step import training_step
from ray_dit.config import DiTConfig, SamplerConfig
from ray_dit.core.dit import macs, with_bfloat16_products
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.vae import VAE


def peak_rate(bench: Bench) -> float:
    """FLOPs per second of a large bfloat16 matrix product."""
    n = bench.sizes.matrix
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * n**3 / bench.seconds(lambda: a @ b)
    bench.report.figure(f"bfloat16 matrix product of {n}", tflops=rate / 1e12)
    return rate


@torch.no_grad()
def forwards(bench: Bench, peak: float) -> None:
    """Forward passes in bfloat16 by the number of rows."""
    for name, config in bench.sizes.presets.items():
        torch.compiler.reset()  # a code object is compiled for few shapes, and runs eager after that
        model = with_bfloat16_products(bench.model(config))
        ways: list[tuple[str, Callable[..., Tensor], int]] = [
            ("eager", model, rows) for rows in bench.sizes.forward_rows
        ]
        ways.append(("compiled", torch.compile(model, dynamic=False), bench.sizes.forward_rows[-1]))
        for how, network, rows in ways:
            call, arguments = in_bfloat16(network, bench.device), inputs(config, rows, bench.device)
            bench.forget_peak()
            seconds = bench.seconds(lambda call=call, arguments=arguments: call(*arguments))
            bench.report.figure(
                f"{name} forward, {how}, {rows} rows",
                ms=1e3 * seconds,
                rows_per_second=rows / seconds,
                mfu=2 * macs(config) * rows / seconds / peak,
                peak_gib=bench.peak_gib(),
            )


def sampling(bench: Bench, peak: float) -> None:
    """Latents by the default sampler, bfloat16: what bulk generation does but for the VAE."""
    sampler = SamplerConfig()
    for name, config in bench.sizes.presets.items():
        network = in_bfloat16(with_bfloat16_products(bench.model(config)), bench.device)
        model = GuidedModel(network, config.num_classes)
        bank = TableBank([make_table(sampler, SCHEDULE, learn_sigma=config.learn_sigma)])
        count = bench.sizes.sampled
        shape = (config.in_channels, config.input_size, config.input_size)

        def draw(
            model: GuidedModel = model, bank: TableBank = bank, shape: Any = shape, count: int = count
        ) -> Tensor:
            ids = torch.arange(count)
            labels = ids % 10
            rows = init_rows(
                shape,
                labels=labels,
                sample_id=ids,
                seed=0,
                guidance_scale=sampler.guidance_scale,
                device=bench.device,
            )
            return sample(model, rows, bank)

        bench.forget_peak()
        seconds = bench.seconds(draw)
        evaluations = 2 * sampler.num_inference_steps * count
        bench.report.figure(
            f"{name} {sampler.name}-{sampler.num_inference_steps} guided, {count} images",
            images_per_second=count / seconds,
            mfu=2 * macs(config) * evaluations / seconds / peak,
            peak_gib=bench.peak_gib(),
        )


def training(bench: Bench, peak: float) -> None:
    """Training steps: float32 as it is today, and bfloat16; with and without activation checkpointing."""
    for name, config in bench.sizes.presets.items():
        for rows in bench.sizes.train_rows:
            for bfloat16, recompute in ((False, False), (True, False), (True, True)):
                dtype = "bfloat16" if bfloat16 else "float32"
                what = f"{name} training, {dtype}{', recomputing' if recompute else ''}, {rows} samples"
                try:
                    _training_figure(bench, peak, what, config, rows, bfloat16, recompute)
                except torch.OutOfMemoryError:
                    bench.report.figure(f"{what}: out of memory")


def _training_figure(
    bench: Bench, peak: float, what: str, config: DiTConfig, rows: int, bfloat16: bool, recompute: bool
) -> None:
    bench.forget_peak()
    model = bench.model(config).train().requires_grad_(True)
    model.pos_embed.requires_grad_(False)
    model.activation_checkpointing = recompute
    step, numbers = training_step(bench, model, model, rows=rows, bfloat16=bfloat16), iter(range(10**6))
    seconds = bench.seconds(lambda: step(next(numbers)))
    bench.report.figure(
        what,
        samples_per_second=rows / seconds,
        mfu=6 * macs(config) * rows / seconds / peak,
        peak_gib=bench.peak_gib(),
    )


@torch.no_grad()
def vae(bench: Bench, peak: float) -> None:
    """The VAE of Stable Diffusion's shape, random weights.

    In float32, whose convolutions may use TF32, and in bfloat16; decoding compiled as well.
    """
    vae = VAE.create(bench.sizes.vae)
    vae.module.to(bench.device).eval()
    count, size = bench.sizes.vae_images, bench.sizes.image_size
    images = torch.rand(count, 3, size, size, device=bench.device) * 2 - 1
    latents = vae.encode(images)[:, : vae.latent_channels]
    low = vae.to_precision("bfloat16")
    calls = {
        "encode": partial(vae.encode, images),
        "encode, bfloat16": partial(low.encode, images),
        "decode": partial(vae.decode, latents),
        "decode, compiled": partial(vae.compiled().decode, latents),
        "decode, bfloat16": partial(low.decode, latents),
        "decode, bfloat16, compiled": partial(low.compiled().decode, latents),
    }
    for what, call in calls.items():
        bench.forget_peak()
        seconds = bench.seconds(call)
        bench.report.figure(
            f"VAE {what}, {count} images of {size}",
            images_per_second=count / seconds,
            peak_gib=bench.peak_gib(),
        )


FIGURES: tuple[Callable[[Bench, float], None], ...] = (sampling, training, vae, forwards)
"""In the order they run; each is given the peak rate."""
