"""What only an accelerator can show: that it computes the same as a CPU does, and how fast.

``python -m benchmarks.gpu_check`` (`make gpu-check`), a few minutes on one GPU; from the repository's root,
since it reads tests/golden. It prints a line for each check and figure, writes them to
``benchmarks/results/gpu-NAME.json`` (after every part, so that a run that is cut short leaves what it found),
and ends with exit code 1 if a check fails. A part that raises is a failed check, and the others still run.

*Checks* have a bound, all in float32 without TF32 unless their name says otherwise. *Figures* are throughput,
peak memory and MFU: 2 FLOPs per multiply-accumulate (`core.dit.macs`), three times that in training, over the
rate of a large bfloat16 matrix product measured in the same run on the same device, and not over a data
sheet's.

``--device cpu --quick`` runs everything at tiny sizes, to try the script itself.
"""

import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.cuda.nccl
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import RESULTS, argument_parser, timed, write_json
from ray_dit.config import DiffusionConfig, DiTConfig, OptimizerConfig, SamplerConfig, VAESizeConfig
from ray_dit.core.batch import training_batch
from ray_dit.core.diffusion import linear_schedule, q_sample
from ray_dit.core.dit import DiT, macs, with_bfloat16_products
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.rng import Stream, normal, uniform
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.core.train_step import make_ema, make_optimizer, update_ema
from ray_dit.vae import VAE

GOLDEN = Path(__file__).parent.parent / "tests/golden/dit_tiny"
SCHEDULE = linear_schedule(DiffusionConfig())
SD_VAE = VAESizeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
TINY = DiTConfig(input_size=8, hidden_size=64, depth=2, num_heads=2)


@dataclass(frozen=True)
class Sizes:
    """How large everything is that has no fixed size."""

    presets: dict[str, DiTConfig]
    parity: DiTConfig
    forward_rows: tuple[int, ...] = (2, 16, 64, 256)
    """The last of them compiled as well: each shape is compiled by itself, which takes a minute for a large
    model."""
    sampled: int = 64
    train_rows: tuple[int, ...] = (32, 128)
    vae: VAESizeConfig = SD_VAE
    vae_images: int = 32
    image_size: int = 256
    matrix: int = 8192
    repeats: int = 7


FULL = Sizes(
    presets={name: DiTConfig.preset(name) for name in ("DiT-S/2", "DiT-B/2", "DiT-XL/2")},
    parity=DiTConfig.preset("DiT-S/2"),
)
QUICK = Sizes(
    presets={"tiny": TINY},
    parity=TINY,
    forward_rows=(1, 4),
    sampled=2,
    train_rows=(4,),
    vae=VAESizeConfig(block_out_channels=(8, 8)),
    vae_images=2,
    image_size=16,
    matrix=128,
    repeats=2,
)


@dataclass
class Report:
    """What was found."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What each part took."""

    def check(self, name: str, value: float, bound: float) -> None:
        """Holds if value <= bound; NaN never does."""
        holds = value <= bound
        self.checks.append({"check": name, "value": value, "bound": bound, "holds": holds})
        print(f"{'holds' if holds else 'FAILS'}  {name}: {value:.2e}, at most {bound:.0e}", flush=True)

    def failed(self, name: str, error: BaseException) -> None:
        self.checks.append({"check": name, "holds": False, "error": f"{type(error).__name__}: {error}"})
        print(f"FAILS  {name}: {type(error).__name__}: {error}", flush=True)

    def figure(self, name: str, **values: float) -> None:
        rounded = {key: float(f"{value:.4g}") for key, value in values.items()}
        self.figures.append({"figure": name, **rounded})
        print(f"       {name}: " + ", ".join(f"{k} {v:g}" for k, v in rounded.items()), flush=True)


def random_dit(config: DiTConfig) -> DiT:
    """Random weights everywhere: the initial model of the paper says 0 whatever it is asked."""
    generator = torch.Generator().manual_seed(0)
    model = DiT(config, generator=generator).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Bench:
    """Where it runs, how large, and where it says what it finds."""

    device: torch.device
    sizes: Sizes
    report: Report
    make: Callable[[DiTConfig], DiT] = random_dit

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds of a call after two to warm up."""
        return statistics.median(timed(call, repeats=self.sizes.repeats, synchronize=self.synchronize))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        """Most memory held on the device since ``forget_peak``, GiB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def model(self, config: DiTConfig) -> DiT:
        return self.make(config).to(self.device)


def deviation(ours: Tensor, reference: Tensor) -> float:
    """Largest difference, by the reference's largest magnitude."""
    ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
    return float((ours - reference).abs().max() / reference.abs().max())


def inputs(config: DiTConfig, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, time steps over the whole range, and labels; the same on every device."""
    shape = (config.in_channels, config.input_size, config.input_size)
    x = normal(0, torch.arange(rows), 0, shape, stream=Stream.EVALUATE)
    t = torch.linspace(0, 999, rows).round().long()
    return x.to(device), t.to(device), (torch.arange(rows) % config.num_classes).to(device)


def in_bfloat16(model: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The model under autocast."""

    def call(*arguments: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(*arguments)

    return call


# ---- checks


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


def _trained(
    bench: Bench, *, steps: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> dict[str, Tensor]:
    """The weights after so many steps, with deterministic kernels as training has them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        model = bench.model(bench.sizes.parity).train().requires_grad_(True)
        model.pos_embed.requires_grad_(False)
        step = training_step(bench, model, wrap(model), rows=8)
        for number in range(steps):
            step(number)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
    finally:
        torch.use_deterministic_algorithms(before)


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


# ---- figures


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
    """The VAE of Stable Diffusion's shape, random weights, float32 (convolutions may use TF32)."""
    vae = VAE.create(bench.sizes.vae)
    vae.module.to(bench.device).eval()
    count, size = bench.sizes.vae_images, bench.sizes.image_size
    images = torch.rand(count, 3, size, size, device=bench.device) * 2 - 1
    latents = vae.encode(images)[:, : vae.latent_channels]
    for what, call in {"encode": lambda: vae.encode(images), "decode": lambda: vae.decode(latents)}.items():
        bench.forget_peak()
        seconds = bench.seconds(call)
        bench.report.figure(
            f"VAE {what}, {count} images of {size}",
            images_per_second=count / seconds,
            peak_gib=bench.peak_gib(),
        )


CHECKS: tuple[Callable[[Bench], None], ...] = (golden, parity, noise, repeatable, collective, compiled)
FIGURES: tuple[Callable[[Bench, float], None], ...] = (sampling, training, vae, forwards)


# ---- the command


def run(
    bench: Bench,
    checks: Sequence[Callable[[Bench], None]] = CHECKS,
    figures: Sequence[Callable[[Bench, float], None]] = FIGURES,
    save: Callable[[], None] = lambda: None,
) -> None:
    """These parts, ``save`` after each; one that raises is a failed check of its name."""
    for part in checks:
        _guarded(bench, part.__name__, lambda part=part: part(bench))
        save()
    peak = peak_rate(bench) if figures else math.nan
    for part in figures:
        _guarded(bench, part.__name__, lambda part=part: part(bench, peak))
        save()


def _guarded(bench: Bench, name: str, part: Callable[[], None]) -> None:
    started = time.perf_counter()
    try:
        part()
    except Exception as error:  # whatever it is, it is a finding
        bench.report.failed(name, error)
    bench.report.seconds[name] = round(time.perf_counter() - started, 1)


def machine(device: torch.device) -> dict[str, Any]:
    """Facts of the machine and of its GPU."""
    found = common.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts asked for; 1 if a check fails, else 0."""
    parser = argument_parser(__doc__)
    names = [part.__name__ for part in (*CHECKS, *FIGURES)]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; no results file unless --output")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, help="where to write the results")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "gpu-check: torch sees no GPU here; run it where there is one, or try the script with --device "
            "cpu --quick",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as training has it
    found, report = machine(device), Report()
    name = re.sub(r"[^a-z0-9]+", "-", str(found.get("gpu", device.type)).lower()).strip("-")
    path = arguments.output or (None if arguments.quick else RESULTS / f"gpu-{name}.json")

    def save() -> None:
        if path is not None:
            write_json(path, {"machine": found, **asdict(report)})

    bench = Bench(device, QUICK if arguments.quick else FULL, report)
    checks = [part for part in CHECKS if part.__name__ in arguments.parts]
    run(bench, checks, [part for part in FIGURES if part.__name__ in arguments.parts], save)
    failed = sum(not check["holds"] for check in report.checks)
    print(f"{len(report.checks)} checks, {failed} failed; {len(report.figures)} figures")
    if path is not None:
        print(f"written to {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
