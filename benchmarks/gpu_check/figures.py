"""The parts without a bound: how fast sampling, training, VAE and forward passes are, and in how much memory.

A figure knows the device only by ``Bench``; what has a bound stands in ``checks``.
"""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_check.bench import Bench, in_bfloat16, inputs
from benchmarks.gpu_check.runs import training_loop
from benchmarks.serving.models import random_model
from benchmarks.training import LatentsTask, PlainLoop
from ray_dit.config import SamplerConfig
from ray_dit.core.dit import macs, with_bfloat16_products
from ray_dit.core.flops import peak_flops
from ray_dit.pipeline import Pipeline, load
from ray_dit.vae import VAE

STEPS = 5
"""Training steps that are timed together: the host runs ahead of the device within them."""


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
        torch.compiler.reset()  # a code object is compiled for few shapes
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


def generation(bench: Bench, peak: float) -> None:
    """Images as `generate` makes a batch of them, guided: sampled, and decoded to pixels on the host.

    In bfloat16, the VAE's weights too; uncompiled and compiled.
    """
    count, steps = bench.sizes.sampled, bench.sizes.sampler_steps
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder), bench.sizes.generated)
        for compiled in (False, True):
            pipeline = load(
                model, bench.device, precision="bfloat16", vae_precision="bfloat16", compile=compiled
            )
            sampler = pipeline.sampler(steps=steps)
            sampled = partial(_latents, pipeline, sampler, count)
            bench.forget_peak()
            seconds = bench.seconds(lambda pipeline=pipeline, sampled=sampled: pipeline.decode(sampled()))
            latents_only = bench.seconds(sampled)
            flops = 2 * macs(pipeline.config.model) * 2 * steps * count
            how = "compiled" if compiled else "eager"
            bench.report.figure(
                f"{bench.sizes.generated}, bfloat16, {how}, {sampler.name}-{steps} guided, {count} images",
                images_per_second=count / seconds,
                without_decoding=count / latents_only,
                mfu_without_decoding=flops / latents_only / peak,
                peak_gib=bench.peak_gib(),
            )


def _latents(pipeline: Pipeline, sampler: SamplerConfig, count: int) -> Tensor:
    labels = [number % 10 for number in range(count)]
    return pipeline.sample_latents(labels, sample_ids=range(count), seed=0, sampler=sampler)


def training(bench: Bench, peak: float) -> None:
    """Steps of the real training loop on latents in memory, and those of a plain one as published."""
    for name, row_counts in bench.sizes.train_rows.items():
        for rows in row_counts:
            task = LatentsTask(bench.sizes.presets[name])
            for what, settings in {
                "bfloat16": {"precision": "bfloat16"},
                "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
            }.items():
                with training_loop(bench, task, rows=rows, **settings) as step:
                    _steps_figure(bench, peak, f"{name} training, {what}, {rows} samples", task, rows, step)
            for what, bfloat16 in {"TF32": False, "bfloat16": True}.items():
                with _as_published():
                    what = f"{name} plain training, {what}, {rows} samples"
                    _steps_figure(
                        bench, peak, what, task, rows, PlainLoop(task, rows, bench.device, bfloat16=bfloat16)
                    )


def _steps_figure(
    bench: Bench,
    peak: float,
    what: str,
    task: LatentsTask,
    rows: int,
    step: Callable[[], None],
) -> None:
    gc.collect()
    bench.forget_peak()
    torch.compiler.reset()

    def some() -> None:
        for _ in range(STEPS):
            step()

    try:
        seconds = bench.seconds(some) / STEPS
    except torch.OutOfMemoryError:
        bench.report.figure(f"{what}: out of memory")
        return
    flops = 6 * macs(task.shape) * rows / seconds
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else ""
    told = peak_flops(name, bfloat16=True)
    bench.report.figure(
        what,
        samples_per_second=rows / seconds,
        tflops=flops / 1e12,
        mfu=flops / peak,
        peak_gib=bench.peak_gib(),
        **({} if told is None else {"mfu_by_data_sheet": flops / told}),
    )


@contextlib.contextmanager
def _as_published() -> Iterator[None]:
    """Kernels as a script has them that sets TF32 and nothing else."""
    deterministic, products = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(deterministic)


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


FIGURES: tuple[Callable[[Bench, float], None], ...] = (training, generation, vae, forwards)
"""In the order they run; each is given the peak rate."""
