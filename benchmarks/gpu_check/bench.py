"""Where the parts of the GPU check run, how large everything is, and where they report what they find.

Beside them the network with random weights, its inputs, and how far two results lie apart. Knows no part.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import timed
from ray_dit.config import DiffusionConfig, DiTConfig, VAESizeConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.dit import DiT
from ray_dit.core.rng import Stream, normal

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
    generated: str = "dit-xl2"
    """A model of ``benchmarks.serving.models``."""
    sampled: int = 64
    sampler_steps: int = 10
    served: str = "dit-s2"
    """Likewise."""
    train_rows: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {"DiT-S/2": (16,), "DiT-XL/2": (64,)}
    )
    """Samples of a step, by preset."""
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
    generated="small",
    sampled=2,
    sampler_steps=2,
    served="small",
    train_rows={"tiny": (4,)},
    vae=VAESizeConfig(block_out_channels=(8, 8)),
    vae_images=2,
    image_size=16,
    matrix=128,
    repeats=2,
)


@dataclass
class Report:
    """What was found, each with the part that found it."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What each part took."""
    part: str = ""
    """The one that runs now."""
    save: Callable[[], None] = lambda: None
    """Called after each finding."""

    def results(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What was found, in place of what an earlier run found in the same parts."""
        rows = {"checks": self.checks, "figures": self.figures}
        parts = {row["part"] for found in rows.values() for row in found}
        merged: dict[str, Any] = {
            kind: [row for row in before.get(kind, []) if row["part"] not in parts] + found
            for kind, found in rows.items()
        }
        return merged | {"seconds": before.get("seconds", {}) | self.seconds}

    def check(self, name: str, value: float, bound: float) -> None:
        """Holds if value <= bound; NaN never does."""
        holds = value <= bound
        self.checks.append({"part": self.part, "check": name, "value": value, "bound": bound, "holds": holds})
        print(f"{'holds' if holds else 'FAILS'}  {name}: {value:.2e}, at most {bound:.0e}", flush=True)
        self.save()

    def failed(self, name: str, error: BaseException) -> None:
        told = f"{type(error).__name__}: {error}"
        self.checks.append({"part": self.part, "check": name, "holds": False, "error": told})
        print(f"FAILS  {name}: {told}", flush=True)
        self.save()

    def figure(self, name: str, **values: float) -> None:
        rounded = {key: float(f"{value:.4g}") for key, value in values.items()}
        self.figures.append({"part": self.part, "figure": name, **rounded})
        print(f"       {name}: " + ", ".join(f"{k} {v:g}" for k, v in rounded.items()), flush=True)
        self.save()


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
