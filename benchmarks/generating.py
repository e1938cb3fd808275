"""How much of a model's own speed is left when `generate` compresses and stores around it.

``python -m benchmarks.generating [--turns 7] [--shards 6] [--rows 8] [--steps 2]``. The model is DiT-S/2 for
images of 256 pixels with random weights and a small VAE, and computes on the CPU with one thread. The bare
loop samples and decodes the same batches and does nothing else; the *plain script* compresses the images to
PNG as well, one after the other. `generate`'s actor is measured in its steady state, from the end of the
first shard to that of the last, and from the beginning of the first. Medians and spread of interleaved turns
go to ``benchmarks/results/generating.json``.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.common import (
    RESULTS,
    TRIALS,
    argument_parser,
    in_turns,
    machine,
    spread_of_ratios,
    timed,
    write_json,
)
from benchmarks.one_actor import Speed, through
from benchmarks.serving.models import random_model
from ray_dit.config import GenerateConfig, SamplerConfig, ShardsConfig
from ray_dit.core.media import png
from ray_dit.pipeline import Pipeline, load
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import ray_session
from ray_dit.stages.dataset_plan import DatasetPlan
from ray_dit.stages.generate import settle
from ray_dit.stages.painter import Build


def plain_script(
    pipeline: Pipeline, config: GenerateConfig, plan: DatasetPlan, shards: int, *, compress: bool
) -> float:
    """Seconds per shard of a loop that samples and decodes, and then compresses if asked to."""
    numbers = iter([0, *range(shards)])  # the first one warms up

    def make() -> None:
        ids = plan.ids(next(numbers))
        latents = pipeline.sample_latents(
            plan.labels(ids).tolist(), sample_ids=ids.tolist(), seed=0, sampler=config.sampler
        )
        images = pipeline.decode(latents)
        if compress:
            for image in images:
                png(image)

    return statistics.mean(timed(make, repeats=shards, warm_up=1))


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--rows", type=int, default=8, help="images per shard, which is one batch")
    parser.add_argument("--steps", type=int, default=2, help="of DDIM, guided")
    parser.add_argument("--quick", action="store_true", help="a turn of a tiny model: shows that it works")
    arguments = parser.parse_args()
    rows, shards = arguments.rows, arguments.shards
    set_up_torch(1)
    speeds: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder, "model"), "tiny" if arguments.quick else "dit-s2")
        config = GenerateConfig(
            model=model, output=f"{folder}/out", num_images=rows * shards, shard_size=rows, batch_size=rows,
            sampler=SamplerConfig(name="ddim", num_inference_steps=arguments.steps, guidance_scale=2.0),
            actors=1, threads=1,
        )  # fmt: skip
        pipeline = load(model, "cpu")
        plan = settle(config).plan
        build = Build(config, plan)
        with ray_session(ShardsConfig(output="unused", num_cpus=4)) as ray:

            def job(_: int) -> float:
                speeds.append(through(ray, config, build, shards))
                return speeds[-1].steady

            seconds = in_turns(
                {
                    "bare": lambda _: plain_script(pipeline, config, plan, shards, compress=False),
                    "script": lambda _: plain_script(pipeline, config, plan, shards, compress=True),
                    "steady": job,
                },
                1 if arguments.quick else arguments.turns,
            )
    seconds["whole"] = [speed.whole for speed in speeds]
    ratios = {
        f"{peer} / {ours}": spread_of_ratios(seconds[peer], seconds[ours])
        for ours in ("steady", "whole")
        for peer in ("bare", "script")
    }
    for name, (median, lowest, highest) in ratios.items():
        print(f"{name}: {median:.3f} ({lowest:.3f} to {highest:.3f})")
    result = {
        "machine": machine(), "shards": shards, "rows": rows, "steps": arguments.steps, "seconds": seconds,
        "median, lowest, highest": ratios,
    }  # fmt: skip
    write_json((TRIALS if arguments.quick else RESULTS) / "generating.json", result)


if __name__ == "__main__":
    main()
