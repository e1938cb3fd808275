"""The models that are served: folders with random weights, and pipelines whose network counts its rows.

With the step times of an accelerator such a network is a simulated one.
"""

import time
from pathlib import Path
from typing import Any


def random_model(folder: Path, preset: str) -> str:
    """A finished model folder with random weights.

    It is DiT-S/2 or DiT-XL/2 at 256 pixels (``dit-s2``; ``dit-xl2``, whose VAE is of Stable Diffusion's
    size), or the small stand-in that the simulated device needs.
    """
    from benchmarks.gpu_check.bench import SD_VAE, random_dit
    from ray_dit.config import DiTConfig, SamplerConfig, VAESizeConfig
    from ray_dit.config.model_folder import LatentsConfig
    from ray_dit.formats.labels import Labels
    from ray_dit.formats.model_folder import ModelConfig, model_objects
    from ray_dit.ledger.job import Job
    from ray_dit.ledger.results import Facts
    from ray_dit.results import ModelResult
    from ray_dit.storage.open import open_store
    from ray_dit.vae import VAE

    if preset == "dit-s2":
        shape = DiTConfig.preset("DiT-S/2")
        size, vae_size = 256, VAESizeConfig(block_out_channels=(8, 8, 16, 16))
    elif preset == "dit-xl2":
        shape = DiTConfig.preset("DiT-XL/2")
        size, vae_size = 256, SD_VAE
    else:  # what an accelerator does to latents is in a + b·r, so they are small here
        shape = DiTConfig(input_size=4, patch_size=2, hidden_size=16, depth=1, num_heads=1)
        size, vae_size = 16, VAESizeConfig(block_out_channels=(8, 8, 8))
    config = ModelConfig(
        model=shape,
        latents=LatentsConfig(image_size=size),
        sampler=SamplerConfig(name="dpmpp", guidance_scale=2.0),
    )
    vae = VAE.create(vae_size).files()
    labels = Labels.numbered(shape.num_classes)
    job = Job.open(open_store(str(folder)), ModelResult.stage_name, {"made": "by a benchmark"})
    weights = random_dit(shape).state_dict()
    for key, data in model_objects(config, weights, labels, vae, "random weights").items():
        job.put(key.replace("/", "-"), key, data, Facts())
    job.finish(ModelResult())
    return str(folder)


class Counted:
    """A network that counts its rows and, where a and b are given, is an accelerator's.

    A call takes a + b·rows.

    As on a GPU a call is issued and runs behind the one before; the host waits until that one is done, as the
    engine does on CUDA (at most one step ahead), and the results of a call are there when it is done
    (``finish``).
    """

    def __init__(self, network: Any, a: float | None, b: float | None) -> None:
        self.network, self.a, self.b = network, a, b
        self.rows = 0
        self.free_at = 0.0
        self.ahead = True

    def __call__(self, x: Any, t: Any, y: Any) -> Any:
        import torch

        self.rows += len(x)
        if self.a is None or self.b is None:
            return self.network(x, t, y)
        before = self.free_at
        self.free_at = max(time.perf_counter(), before) + self.a + self.b * len(x)
        _sleep_until(before if self.ahead else self.free_at)
        return torch.cat((0.9 * x, torch.zeros_like(x)), dim=1)

    def finish(self) -> None:
        """Waits for all calls issued so far."""
        _sleep_until(self.free_at)


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


def counted_pipeline(
    uri: str, a: float | None, b: float | None, threads: int, precision: Any
) -> tuple[Any, Counted]:
    """The pipeline of a model folder, and its network in it, which counts the rows it is called with."""
    import torch

    from ray_dit.core.guidance import GuidedModel
    from ray_dit.pipeline import load

    torch.set_num_threads(threads)
    pipeline = load(uri, "cpu", precision=precision)
    guided = pipeline.guided_model
    counted = Counted(guided.network, a, b)
    pipeline.__dict__["guided_model"] = GuidedModel(counted, guided.null_label, guided.guidance_channels)
    decode = pipeline.decode

    def decode_when_there(latents: Any) -> Any:
        counted.finish()
        return decode(latents)

    pipeline.decode = decode_when_there
    return pipeline, counted


def bulk_rate(pipeline: Any, counted: Counted, images: int, seconds: float) -> float:
    """Rows per second of bulk generation, decoded.

    Batches are whole and of one kind, and nobody waits; it lasts ``seconds`` at least.
    """
    sampler = pipeline.sampler("dpmpp", steps=20, guidance_scale=2.0)
    started, before, passed = time.perf_counter(), counted.rows, 0.0
    while passed < seconds:
        pipeline.decode(
            pipeline.sample_latents([0] * images, sample_ids=range(images), seed=0, sampler=sampler)
        )
        passed = time.perf_counter() - started
    return (counted.rows - before) / passed
