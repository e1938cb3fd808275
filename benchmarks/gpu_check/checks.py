"""The parts with a bound: an accelerator computes what a CPU computes, and the same every time.

A check knows the device only by ``Bench``; the figures stand in ``figures``.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.gpu_check.bench import (
    QUICK,
    SCHEDULE,
    Bench,
    deviation,
    in_bfloat16,
    inputs,
    random_dit,
)
from benchmarks.gpu_check.runs import in_engine, trained, training_loop
from benchmarks.serving.models import random_model
from benchmarks.training import LatentsTask
from ray_dit.config import DiTConfig, SamplerConfig
from ray_dit.core.dit import DiT, with_bfloat16_products
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.rng import Stream, normal, uniform
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import TableBank, denoise_step, init_rows, sample
from ray_dit.pipeline import load
from ray_dit.runtime.training.parallel import DataParallel
from ray_dit.serving.engine.tickets import Work

GOLDEN = Path(__file__).parents[2] / "tests/golden/dit_tiny"


def golden(bench: Bench) -> None:
    """The reference implementation's numbers: forward pass, loss, gradients, sampling loops."""
    cases = {name: torch.from_numpy(values) for name, values in np.load(GOLDEN / "cases.npz").items()}
    config = DiTConfig(**json.loads((GOLDEN / "config.json").read_text()))
    model = DiT(config)
    model.load_state_dict(load_file(GOLDEN / "weights.safetensors"))
    model.to(bench.device)

    def there(*names: str) -> list[Tensor]:
        return [cases[name].to(bench.device) for name in names]

    with torch.no_grad():
        bench.report.check("golden forward", deviation(model(*there("x", "t", "y")), cases["forward"]), 1e-5)
    x_t, t, y = there("q_sample", "loss_t", "loss_y")
    x_start, noise = there("loss_x_start", "loss_noise")
    losses = diffusion_loss(SCHEDULE, model(x_t, t, y), x_start, x_t, t, noise, learn_sigma=True)
    bench.report.check("golden loss", deviation(losses.loss, cases["loss_loss"]), 1e-5)
    losses.loss.mean().backward()
    gradients = {f"grad_{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    worst = max(
        deviation(gradients[name], cases[name])
        for name in cases
        if name.startswith("grad_") and name != "grad_global_norm"
    )
    bench.report.check("golden gradients", worst, 1e-5)
    for name, sampler in {
        "ddpm": SamplerConfig(name="ddpm", num_inference_steps=10),
        "ddim_eta1": SamplerConfig(name="ddim", num_inference_steps=10, spacing="leading", eta=1.0),
    }.items():
        drawn = torch.cat((cases[f"{name}_x_T"][None], cases[f"{name}_noises"])).to(bench.device)

        def given(seed: Tensor, sample_id: Tensor, step: Tensor, shape: Any, drawn: Tensor = drawn) -> Tensor:
            return drawn[step, sample_id]

        rows = init_rows(
            tuple(drawn.shape[2:]),
            labels=cases["cfg_y"],
            sample_id=torch.arange(4),
            seed=0,
            guidance_scale=1.5,
            device=bench.device,
            noise=given,
        )
        bank = TableBank([make_table(sampler, SCHEDULE, learn_sigma=True)])
        out = sample(GuidedModel(model, config.num_classes, 3), rows, bank, noise=given)
        bench.report.check(f"golden {name} loop", deviation(out, cases[f"{name}_out"]), 1e-4)


@torch.no_grad()
def parity(bench: Bench) -> None:
    """Against the CPU, and bfloat16 against float32."""
    config = bench.sizes.parity
    on_cpu, model = random_dit(config), bench.model(config)
    arguments = inputs(config, 8, bench.device)
    reference = on_cpu(*(a.cpu() for a in arguments))
    plain = model(*arguments)
    check = bench.report.check
    check("float32 against the CPU", deviation(plain, reference), 1e-5)
    autocast = in_bfloat16(model, bench.device)(*arguments)
    check("bfloat16 against float32", deviation(autocast, plain), 3e-2)
    with_bfloat16_products(model)
    cast_once = in_bfloat16(model, bench.device)(*arguments)
    check(
        "weights cast once against autocast, bfloat16: bits", float(not torch.equal(cast_once, autocast)), 0
    )


@torch.no_grad()
def compiled(bench: Bench) -> None:
    """torch.compile without a graph break, against eager."""
    model = bench.model(bench.sizes.parity)
    arguments = inputs(bench.sizes.parity, 8, bench.device)
    plain = model(*arguments)
    network = torch.compile(model, fullgraph=True)
    bench.report.check("compiled, float32", deviation(network(*arguments), plain), 1e-5)
    bfloat16 = in_bfloat16(network, bench.device)(*arguments)
    bench.report.check("compiled, bfloat16, against float32", deviation(bfloat16, plain), 3e-2)


def noise(bench: Bench) -> None:
    """The counter-based noise: integer bits everywhere the same, normals to a unit in the last place."""
    ids = torch.arange(1000)
    there = ids.to(bench.device)
    exact = uniform(7, ids, 3, (64,), stream=Stream.SAMPLE)
    same = torch.equal(uniform(7, there, 3, (64,), stream=Stream.SAMPLE).cpu(), exact)
    bench.report.check("noise: integer bits", float(not same), 0)
    ours = normal(7, there, 3, (4, 32, 32), stream=Stream.SAMPLE).cpu().numpy()
    reference = normal(7, ids, 3, (4, 32, 32), stream=Stream.SAMPLE).numpy()
    units = np.abs(ours - reference) / np.spacing(np.abs(reference))
    bench.report.check("noise: normals, units in the last place", float(units.max()), 1)
    bench.report.figure("noise", values_differing=float((units > 0).mean()))


def repeatable(bench: Bench) -> None:
    """What is made twice has the same bits, and a row of a mixture what it has alone."""
    config = bench.sizes.parity
    model = GuidedModel(bench.model(config), config.num_classes)
    settings = [
        SamplerConfig(name="ddpm", num_inference_steps=4),
        SamplerConfig(name="unipc", num_inference_steps=5),
    ]
    bank = TableBank([make_table(s, SCHEDULE, learn_sigma=config.learn_sigma) for s in settings])
    shape = (config.in_channels, config.input_size, config.input_size)

    def drawn(*ids: int) -> Tensor:
        rows = init_rows(
            shape,
            labels=torch.tensor(ids),
            sample_id=torch.tensor(ids),
            seed=1,
            guidance_scale=torch.tensor([1.5 + i % 2 for i in ids]),
            table=torch.tensor([i % 2 for i in ids]),
            device=bench.device,
        )
        return sample(model, rows, bank, pad_to=16)

    both = drawn(0, 1, 2, 3)
    bench.report.check("sampled twice: bits", float(not torch.equal(both, drawn(0, 1, 2, 3))), 0)
    alone = torch.cat([drawn(i) for i in range(4)])
    bench.report.check("a mixture against each alone, same padding", deviation(both, alone), 1e-4)
    first, again = (trained(bench) for _ in range(2))
    differing = sum(not torch.equal(first[name], again[name]) for name in first)
    bench.report.check("trained twice: tensors with other bits", differing, 0)


def unwaited(bench: Bench) -> None:
    """A step of sampling and one of training are queued without waiting for the device.

    The first step of each, which makes tables and picks kernels, may wait.
    """
    config = bench.sizes.parity
    model = GuidedModel(bench.model(config), config.num_classes)
    settings = [SamplerConfig(name="ddpm", num_inference_steps=4), SamplerConfig(name="unipc")]
    bank = TableBank([make_table(s, SCHEDULE, learn_sigma=config.learn_sigma) for s in settings])
    rows = init_rows(
        (config.in_channels, config.input_size, config.input_size),
        labels=torch.arange(4),
        sample_id=torch.arange(4),
        seed=1,
        guidance_scale=torch.tensor([1.0, 1.5, 2.0, 4.0]),
        table=torch.tensor([0, 1, 0, 1]),
        device=bench.device,
    )
    rows, _ = denoise_step(model, rows, bank)
    with _waits(bench) as of_sampling:
        denoise_step(model, rows, bank, pad_to=8)
    bench.report.check("waits of the host in a step of sampling", len(of_sampling), 0)
    with training_loop(bench, LatentsTask(config), rows=8) as step:
        step()
        with _waits(bench) as of_training:
            step()
    bench.report.check("waits of the host in a step of training", len(of_training), 0)


@contextlib.contextmanager
def _waits(bench: Bench) -> Iterator[list[str]]:
    """Where the host waits for a CUDA device within it; each place is printed."""
    found: list[str] = []
    if bench.device.type != "cuda":
        yield found
        return

    def note(message: Warning | str, *_: Any) -> None:
        if "called a synchronizing" in str(message):
            frames = [frame for frame in traceback.extract_stack() if "ray_dit" in frame.filename]
            found.append(" < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:])))
            print(f"       waits in {found[-1]}", flush=True)

    bench.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def collective(bench: Bench) -> None:
    """DDP over NCCL (gloo on a CPU) of one process gives what no DDP gives, to the bit."""
    import torch.distributed as dist

    plain = trained(bench)
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
        rank=0,
        world_size=1,
    )
    try:
        wrapped = trained(bench, DataParallel(0, 1))
    finally:
        dist.destroy_process_group()
    differing = sum(not torch.equal(plain[name], wrapped[name]) for name in plain)
    bench.report.check(f"DDP over {backend}, one process: tensors with other bits", differing, 0)


@torch.no_grad()
def served(bench: Bench) -> None:
    """The server's engine makes of requests that differ what the pipeline makes of each alone."""
    steps, worst = bench.sizes.sampler_steps, 0
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load(random_model(Path(folder), bench.sizes.served), bench.device)
        works = [
            Work(
                labels=(number,),
                sampler=pipeline.sampler(name, steps=steps + number % 3, guidance_scale=1.0 + number % 2),
                seed=number,
            )
            for number, name in enumerate(("ddim", "dpmpp", "unipc", "ddpm") * 3)
        ]
        for work, image in zip(works, in_engine(pipeline, works), strict=True):
            latents = pipeline.sample_latents(
                work.labels, sample_ids=[0], seed=work.seed, sampler=work.sampler
            )
            alone = pipeline.decode(latents)[0].astype(int)
            worst = max(worst, int(np.abs(alone - image).max()))
    bench.report.check("served against made alone, levels", worst, 1)


def recompiled(bench: Bench) -> None:
    """Two processes that compile anew, each with empty caches, give equal bits."""
    sizes = "quick" if bench.sizes is QUICK else "full"
    command = [sys.executable, "-m", "benchmarks.gpu_check.fresh", str(bench.device), sizes]
    with contextlib.ExitStack() as stack:
        running: list[subprocess.Popen[str]] = []
        for _ in range(2):
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            environment = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
            running.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
            )
        first, second = (json.loads(process.communicate()[0]) for process in running)
    for name, found in first.items():
        bench.report.check(f"compiled twice: {name}: bits", float(found != second[name]), 0)


CHECKS: tuple[Callable[[Bench], None], ...] = (
    golden,
    parity,
    noise,
    repeatable,
    unwaited,
    collective,
    served,
    compiled,
    recompiled,
)
"""In the order they run."""
