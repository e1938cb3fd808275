"""Guided sampling on a CPU: this project's loop against those of diffusers and of the published code.

``python -m benchmarks.sampling [--size DiT-S/2] [--images 8] [--steps 4] [--threads 2] [--turns 7]``. All
draw as many guided images with DDIM, in float32, and stop at the latents. *Ours* is what `generate` does per
batch, as it is and with ``--compile``. *diffusers* is its transformer and scheduler as its ``DiTPipeline``
calls them. *Published* is the loop of facebookresearch/DiT, written anew: state and labels doubled from the
start, the coefficients of a step looked up in numpy tables. *Products* are the network's matrix products and
attention alone: what no loop can save.

Each runs in a process of its own: ours and the products in one that is set up as an actor is, the peers in
one as Python starts it.

``--vae`` measures the decoder of Stable Diffusion's size instead (random weights, images of 256 pixels): as
diffusers calls it, and as ours, as it is and with ``--compile``; of one image and of two at once.

Each turn measures all of them, one after the other. Ratios are medians over the turns, with the spread, in
``benchmarks/results/sampling.json``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import (
    RESULTS,
    TRIALS,
    argument_parser,
    in_turns,
    machine,
    spread_of_ratios,
    write_json,
)
from benchmarks.dit_options import add_options, shape_of
from benchmarks.gpu_check.bench import SD_VAE
from benchmarks.own_process import Contender, in_own_processes
from ray_dit.config import DiffusionConfig, DiTConfig, SamplerConfig
from ray_dit.core.compiled import compile_static
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.dit import DiT
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.runtime.process import set_up_torch
from ray_dit.vae import VAE

CLASSES, SCALE = 1000, 4.0
T = 1000
DECODED = (1, 2)
"""Images that a decoder is given at once."""


def ours(shape: DiTConfig, images: int, steps: int, *, compiled: bool) -> Callable[[], Tensor]:
    """What `generate` does for a batch."""
    model = DiT(shape, generator=torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    network = compile_static(model) if compiled else model
    sampler = SamplerConfig(name="ddim", num_inference_steps=steps)
    schedule = linear_schedule(DiffusionConfig())

    def draw() -> Tensor:
        rows = init_rows(
            (shape.in_channels, shape.input_size, shape.input_size),
            labels=torch.arange(images),
            sample_id=torch.arange(images),
            seed=0,
            guidance_scale=SCALE,
        )
        bank = TableBank([make_table(sampler, schedule, learn_sigma=True)])
        return sample(GuidedModel(network, CLASSES, 3), rows, bank)

    return draw


@torch.no_grad()
def _published(model: DiT, images: int, steps: int) -> Tensor:
    shape = model.config
    betas = np.linspace(1e-4, 0.02, T)
    times = np.arange(0, T, T // steps)
    alphas_cumprod = np.cumprod(1 - betas)[times]
    previous = np.append(1.0, alphas_cumprod[:-1])
    z = torch.randn(images, shape.in_channels, shape.input_size, shape.input_size)
    x, y = torch.cat([z, z]), torch.cat([torch.arange(images), torch.full((images,), CLASSES)])

    def at(table: np.ndarray[Any, Any], t: Tensor) -> Tensor:
        return torch.from_numpy(table)[t].float().view(-1, 1, 1, 1).expand(x.shape)

    for index in reversed(range(steps)):
        t = torch.full((len(x),), index)
        half = x[: len(x) // 2]
        output = model(torch.cat([half, half]), torch.from_numpy(times)[t], y)
        eps, rest = output[:, :3], output[:, 3:]
        cond, uncond = eps.chunk(2)
        mixed = uncond + SCALE * (cond - uncond)
        prediction = torch.cat([torch.cat([mixed, mixed]), rest], dim=1)[:, : shape.in_channels]
        x_start = at(np.sqrt(1 / alphas_cumprod), t) * x - at(np.sqrt(1 / alphas_cumprod - 1), t) * prediction
        again = (at(np.sqrt(1 / alphas_cumprod), t) * x - x_start) / at(np.sqrt(1 / alphas_cumprod - 1), t)
        before = at(previous, t)
        x = x_start * before.sqrt() + (1 - before).sqrt() * again
    return x[:images]


def published(shape: DiTConfig, images: int, steps: int) -> Callable[[], Tensor]:
    """The published loop, with this project's network uncompiled."""
    model = DiT(shape, generator=torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    return lambda: _published(model, images, steps)


def diffusers(shape: DiTConfig, images: int, steps: int) -> Callable[[], Tensor]:
    """The calls that diffusers' ``DiTPipeline`` makes up to the latents."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    torch.manual_seed(0)
    model: Any = DiTTransformer2DModel(
        num_attention_heads=shape.num_heads,
        attention_head_dim=shape.hidden_size // shape.num_heads,
        in_channels=shape.in_channels,
        out_channels=2 * shape.in_channels,
        num_layers=shape.depth,
        sample_size=shape.input_size,
        patch_size=shape.patch_size,
        num_embeds_ada_norm=CLASSES,
    )
    model.eval().requires_grad_(False)
    scheduler: Any = DDIMScheduler(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02)

    @torch.no_grad()
    def draw() -> Tensor:
        z = torch.randn(images, shape.in_channels, shape.input_size, shape.input_size)
        latents, labels = torch.cat([z, z]), torch.cat([torch.arange(images), torch.full((images,), CLASSES)])
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            half = latents[:images]
            given = scheduler.scale_model_input(torch.cat([half, half]), t)
            output = model(given, timestep=t.expand(len(given)), class_labels=labels).sample
            eps, rest = output[:, : shape.in_channels], output[:, shape.in_channels :]
            cond, uncond = eps.chunk(2)
            mixed = uncond + SCALE * (cond - uncond)
            output = torch.cat([torch.cat([mixed, mixed]), rest], dim=1)
            latents = scheduler.step(output.chunk(2, dim=1)[0], t, latents).prev_sample
        return latents[:images]

    return draw


def products(shape: DiTConfig, images: int, steps: int) -> Callable[[], None]:
    """The matrix products and attention of the network alone, of guided rows."""
    rows, width, hidden = 2 * images, shape.hidden_size, int(shape.hidden_size * shape.mlp_ratio)
    tokens = rows * (shape.input_size // shape.patch_size) ** 2
    sizes = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, hidden)]
    sizes += [(tokens, hidden, width), (rows, width, 6 * width)]
    layers = [(torch.randn(n, a), torch.randn(b, a), torch.randn(b)) for n, a, b in sizes]
    q, k, v = torch.randn(3, rows, shape.num_heads, tokens // rows, width // shape.num_heads)

    @torch.no_grad()
    def once() -> None:
        for _ in range(steps * shape.depth):
            for inputs, weight, bias in layers:
                F.linear(inputs, weight, bias)
            F.scaled_dot_product_attention(q, k, v)

    return once


def decoder(images: int, side: int, how: str) -> Callable[[], object]:
    """A decoder as diffusers calls it, or as ours, as it is or compiled."""
    vae = VAE.create(SD_VAE)
    latents = torch.randn(images, 4, side // 8, side // 8)
    if how == "diffusers":
        return lambda: torch.no_grad()(vae.module.decode)(latents).sample
    own = vae.compiled() if how == "ours, compiled" else vae
    return lambda: torch.inference_mode()(own.decode)(latents)


def main() -> None:
    """Measures, prints the ratios and writes them down."""
    parser = argument_parser(__doc__)
    add_options(parser, turns=7, quick="two turns")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--vae", action="store_true", help="the decoder instead of the network")
    arguments = parser.parse_args()
    images, steps, quick = arguments.images, arguments.steps, arguments.quick
    shape = shape_of(arguments, CLASSES)
    mine, peers = partial(set_up_torch, arguments.threads), partial(torch.set_num_threads, arguments.threads)
    if arguments.vae:
        side = 64 if quick else 256
        contenders = {
            f"{how} ({count})": Contender(
                partial(decoder, count, side, how), peers if how == "diffusers" else mine
            )
            for count in DECODED
            for how in ("diffusers", "ours", "ours, compiled")
        }
        wanted = [
            (f"diffusers ({count})", f"{how} ({count})")
            for count in DECODED
            for how in ("ours", "ours, compiled")
        ]
    else:
        contenders = {
            "ours": Contender(partial(ours, shape, images, steps, compiled=False), mine),
            "ours, compiled": Contender(partial(ours, shape, images, steps, compiled=True), mine),
            "diffusers": Contender(partial(diffusers, shape, images, steps), peers),
            "published": Contender(partial(published, shape, images, steps), peers),
            "products": Contender(partial(products, shape, images, steps), mine),
        }
        wanted = [
            (peer, how)
            for peer in ("diffusers", "published", "products")
            for how in ("ours", "ours, compiled")
        ]
    with in_own_processes(contenders, repeats=1 if quick else 3) as measure:
        seconds = in_turns(measure, 2 if quick else arguments.turns)
    ratios = {f"{peer} / {mine}": spread_of_ratios(seconds[peer], seconds[mine]) for peer, mine in wanted}
    for name, (median, low, high) in ratios.items():
        print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f})")
    result = {
        "machine": machine(), "model": arguments.size, "images": images, "steps": steps,
        "threads": arguments.threads, "seconds": seconds, "median, lowest, highest": ratios,
    }  # fmt: skip
    name = "decoding.json" if arguments.vae else "sampling.json"
    write_json((TRIALS if arguments.quick else RESULTS) / name, result)


if __name__ == "__main__":
    main()
