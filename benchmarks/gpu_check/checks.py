"""The parts with a bound: an accelerator computes what a CPU computes, and the same every time.

A check knows the device only by ``Bench``; the figures stand in ``figures``.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.gpu_check.bench import SCHEDULE, Bench, deviation, in_bfloat16, inputs, random_dit
from benchmarks.gpu_check.training_step import training_step
from ray_dit.config import DiTConfig, SamplerConfig
from ray_dit.core.dit import DiT, with_bfloat16_products
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.rng import Stream, normal, uniform
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import TableBank, denoise_step, init_rows, sample

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
    first, again = (_trained(bench, steps=3) for _ in range(2))
    differing = sum(not torch.equal(first[name], again[name]) for name in first)
    bench.report.check("trained twice: tensors with other bits", differing, 0)


def unwaited(bench: Bench) -> None:
    """A step of sampling and one of training are queued without waiting for the device.

    torch raises where the host would wait. The first step of each, which makes tables and picks kernels, may.
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
    trained = _trainable(bench)
    step = training_step(bench, trained, trained, rows=8)
    rows, _ = denoise_step(model, rows, bank)
    step(0)
    bench.synchronize()
    with _waiting_refused(bench.device):
        denoise_step(model, rows, bank, pad_to=8)
        step(1)
    bench.report.check("waits of the host in a step of sampling and of training", 0, 0)


@contextlib.contextmanager
def _waiting_refused(device: torch.device) -> Iterator[None]:
    """Within it, what waits for a CUDA device raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def collective(bench: Bench) -> None:
    """DDP over NCCL (gloo on a CPU) of one process gives what no DDP gives, to the bit."""
    import torch.distributed as dist

    plain = _trained(bench, steps=3)
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
        rank=0,
        world_size=1,
    )
    try:
        wrapped = _trained(bench, steps=3, wrap=nn.parallel.DistributedDataParallel)
    finally:
        dist.destroy_process_group()
    differing = sum(not torch.equal(plain[name], wrapped[name]) for name in plain)
    bench.report.check(f"DDP over {backend}, one process: tensors with other bits", differing, 0)


def _trainable(bench: Bench) -> DiT:
    """The network as training has it."""
    model = bench.model(bench.sizes.parity).train().requires_grad_(True)
    model.pos_embed.requires_grad_(False)
    return model


def _trained(
    bench: Bench, *, steps: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> dict[str, Tensor]:
    """The weights after so many steps, with deterministic kernels as training has them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        model = _trainable(bench)
        step = training_step(bench, model, wrap(model), rows=8)
        for number in range(steps):
            step(number)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
    finally:
        torch.use_deterministic_algorithms(before)


CHECKS: tuple[Callable[[Bench], None], ...] = (
    golden,
    parity,
    noise,
    repeatable,
    unwaited,
    collective,
    compiled,
)
"""In the order they run."""
