"""How much of a VAE's own speed is left when `encode` reads, decodes and stores around it.

``python -m benchmarks.encoding [--turns 7] [--shards 4] [--rows 2] [--size 256]``. The VAE has the shape of
Stable Diffusion's and random weights, and computes on the CPU with one thread; the images are JPEGs of
500x375 in a folder. The bare loop hands the VAE the same batches, already decoded. `encode`'s actor is
measured from the first shard begun to the last marker, with one thread that decodes: the time of reading the
first shard and of storing the last one counts. Medians and spread of interleaved turns go to
``benchmarks/results/encoding.json``.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, spread, write_json
from benchmarks.gpu_check.bench import SD_VAE
from benchmarks.one_actor import through
from benchmarks.overlap import photographs
from ray_dit.config import EncodeConfig, ImagesConfig, ShardsConfig
from ray_dit.core.latents import to_float
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.reading import load_images
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import ShardMaker
from ray_dit.stages.encode import Encoder
from ray_dit.vae import VAE


@dataclass(frozen=True)
class Build:
    """Makes `encode`'s own maker."""

    config: EncodeConfig
    plan: ImagePlan

    def __call__(self) -> ShardMaker:
        return Encoder(self.config, self.plan)


def bare(vae: VAE, plan: ImagePlan, rows: int, shards: int) -> float:
    """Seconds that the VAE alone takes for the same batches."""
    images = [
        to_float(torch.from_numpy(load_images(plan, range(s * rows, (s + 1) * rows))[0]))
        for s in range(shards)
    ]
    with torch.inference_mode():
        vae.encode(images[0])
        begun = time.monotonic()
        for batch in images:
            vae.encode(batch)
        return time.monotonic() - begun


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2, help="images per shard")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="a turn of small images: shows that it works")
    arguments = parser.parse_args()
    turns, size = (1, 32) if arguments.quick else (arguments.turns, arguments.size)
    rows, shards = arguments.rows, arguments.shards
    set_up_torch(1)
    ratios: list[float] = []
    seconds: dict[str, list[float]] = {"bare": [], "encode": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vae = VAE.create(SD_VAE)
        for file, data in vae.files().items():
            (folder / "vae").mkdir(exist_ok=True)
            (folder / "vae" / file).write_bytes(data)
        photographs(folder / "images", rows * shards)
        images = ImagesConfig(uri=str(folder / "images"), size=size)
        config = EncodeConfig(
            images=images, vae=str(folder / "vae"), output="unused", shard_size=rows, batch_size=rows,
            mirror=False, threads=1, decode_threads=1, actors=1,
        )  # fmt: skip
        plan = plan_images(images)
        with ray_session(ShardsConfig(output="unused", num_cpus=4)) as ray:
            for _ in range(turns):
                seconds["bare"].append(bare(vae, plan, rows, shards))
                speed = through(ray, config, Build(config, plan), shards)
                seconds["encode"].append(shards * speed.whole)
                ratios.append(seconds["bare"][-1] / seconds["encode"][-1])
                print(f"{ratios[-1]:.3f} of the bare loop's {seconds['bare'][-1]:.1f} s", flush=True)
    median, lowest, highest = spread(ratios)
    print(f"encode's speed over the bare VAE's: {median:.3f} ({lowest:.3f} to {highest:.3f})")
    result = {
        "machine": machine(), "size": size, "shards": shards, "rows": rows, "seconds": seconds,
        "median, lowest, highest": [median, lowest, highest],
    }  # fmt: skip
    write_json((TRIALS if arguments.quick else RESULTS) / "encoding.json", result)


if __name__ == "__main__":
    main()
