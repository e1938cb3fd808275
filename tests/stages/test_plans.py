"""Plans beside the jobs they foretell, on a real Ray: counts exact, bytes within 10 %, nothing written.

Times are compared by hand (docs/plans.md): a machine that is busy for a moment would fail a test of them.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_dit.config import (
    ClassifierConfig,
    EncodeConfig,
    EvaluateConfig,
    GenerateConfig,
    ImagesConfig,
    SamplerConfig,
    TrainConfig,
    TrainVaeConfig,
)
from ray_dit.runtime.planning import Plan
from ray_dit.runtime.shard_maker import make_shard
from ray_dit.stages.encode import encode, plan_encode
from ray_dit.stages.evaluate import evaluate, plan_evaluate
from ray_dit.stages.generate import generate, plan_generate, settle
from ray_dit.stages.painter import Painter
from ray_dit.stages.train import plan_train, train
from ray_dit.stages.train_vae import plan_train_vae, train_vae
from tests.support.tiny import MODEL, SIZE, VAE_SIZE, write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

COUNTS = {"left": 40, "middle": 40, "right": 40}
SAMPLER = SamplerConfig(num_inference_steps=4, guidance_scale=2.0, guidance_interval=(100, 600))


class Jobs:
    """The settings of a small pipeline below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        images = ImagesConfig(uri=self.at("images"), size=SIZE, heldout=0.2)
        self.train_vae = TrainVaeConfig(
            images=images, output=self.at("vae"), vae=VAE_SIZE, steps=25, checkpoint_every=10, batch_size=8
        )
        self.encode = EncodeConfig(
            images=images, vae=self.at("vae"), output=self.at("latents"), shard_size=50, batch_size=16
        )
        self.train = TrainConfig(
            latents=self.at("latents"), output=self.at("run"), model=MODEL, steps=25, checkpoint_every=10,
            batch_size=8, sampler=SAMPLER, grid_per_class=2,
        )  # fmt: skip
        self.generate = GenerateConfig(
            model=self.at("run/model"),
            output=self.at("dataset"),
            num_images=150,
            shard_size=40,
            batch_size=16,
        )
        self.evaluate = EvaluateConfig(
            images=images, dataset=self.at("dataset"), output=self.at("evaluation"),
            classifier=ClassifierConfig(steps=20, batch_size=16, width=4),
        )  # fmt: skip

    def at(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = tmp_path_factory.mktemp("plans")
    write_pictures(folder / "images", COUNTS)
    return Jobs(folder)


@pytest.fixture(scope="module")
def plans(jobs: Jobs, one_ray: Any) -> dict[str, Plan]:
    """Each stage's plan, made right before it is run."""
    found: dict[str, Plan] = {}
    for plan, run, config in [
        (plan_train_vae, train_vae, jobs.train_vae),
        (plan_encode, encode, jobs.encode),
        (plan_train, train, jobs.train),
        (plan_generate, generate, jobs.generate),
        (plan_evaluate, evaluate, jobs.evaluate),
    ]:
        before = files(jobs.folder)
        made: Plan = plan(config, begun=time.monotonic())  # type: ignore[operator]
        assert files(jobs.folder) == before, f"the plan of {made.stage} wrote something"
        found[made.stage] = made
        run(config)  # type: ignore[operator]
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def written(folder: Path) -> int:
    """Bytes of a job's objects, without its notes."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith("_") for part in path.relative_to(folder).parts)
        and not path.name.startswith("manifest") and "manifest" not in path.parent.name
    )  # fmt: skip


def test_counts_are_exact(jobs: Jobs, plans: dict[str, Plan]) -> None:
    assert plans["train-vae"].counts == {"steps": 25, "samples": 200, "checkpoints": 3}
    assert plans["encode"].counts == {
        "images": 120,
        "shards": len(list((jobs.folder / "latents/latents").iterdir())),
    }
    assert plans["train"].counts == {"steps": 25, "samples": 200, "checkpoints": 3}
    assert len(list((jobs.folder / "run/samples").iterdir())) == plans["train"].counts["checkpoints"]
    assert plans["generate"].counts == {
        "images": 150,
        "shards": len(list((jobs.folder / "dataset/data").iterdir())),
    }
    measured = len(list((jobs.folder / "evaluation/measures").iterdir()))
    assert plans["evaluate"].counts == {"images": 270, "shards": measured}


def test_network_evaluations_are_the_rows_the_network_sees(jobs: Jobs, plans: dict[str, Plan]) -> None:
    from ray_dit.folders.model import read_model

    config = jobs.generate
    folder = read_model(config.model)
    painter = Painter(config, settle(config).plan)
    seen: list[int] = []
    painter._pipeline.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for shard in range(plans["generate"].counts["shards"]):
        make_shard(painter, shard)
    assert sum(seen) == plans["generate"].network_evaluations
    steps = folder.config.sampler.num_inference_steps
    assert steps is not None
    assert min(seen) < max(seen), "some steps are guided and some are not"


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        ("train-vae", "vae"),
        ("encode", "latents"),
        ("train", "run"),
        ("generate", "dataset"),
        ("evaluate", "evaluation"),
    ],
)
def test_bytes_are_within_a_tenth(stage: str, folder: str, jobs: Jobs, plans: dict[str, Plan]) -> None:
    found = written(jobs.folder / folder)
    assert plans[stage].bytes_out == pytest.approx(found, rel=0.1)


def test_times_are_told_part_by_part(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        assert plan.total_seconds == pytest.approx(sum(plan.seconds.values()), abs=0.01)
        assert all(seconds > 0 for seconds in plan.seconds.values())
        assert plan.basis.startswith("measured: ")
        assert set(plan.done.values()) == {0}
    assert plans["evaluate"].seconds.keys() == {"starting", "classifiers", "shards"}


def test_what_is_there_already_takes_no_time(jobs: Jobs, plans: dict[str, Plan]) -> None:
    for plan, config in [(plan_generate, jobs.generate), (plan_train, jobs.train)]:
        again: Plan = plan(config, begun=time.monotonic())  # type: ignore[operator]
        assert again.done == again.counts == plans[again.stage].counts
        assert again.total_seconds == 0
        assert again.basis.startswith("finished")
    (jobs.folder / "dataset/manifest.json").rename(jobs.folder / "manifest.json")
    for shard in (0, 2):
        (jobs.folder / f"dataset/_markers/{shard:05d}.json").rename(jobs.folder / f"{shard}.json")
    part = plan_generate(jobs.generate, begun=time.monotonic())
    assert part.done == {"images": 70, "shards": 2}
    ratio = part.seconds["shards"] / plans["generate"].seconds["shards"]
    assert 0.1 < ratio < 2.0


def test_without_gpus_the_plan_rests_on_an_assumption(jobs: Jobs, plans: dict[str, Plan]) -> None:
    plan = plan_train(
        jobs.train.model_copy(update={"use_gpu": True, "output": jobs.at("other")}), begun=time.monotonic()
    )
    assert plan.basis.startswith("assumed: ")
    assert plan.counts == plans["train"].counts
    assert plan.bytes_out == pytest.approx(plans["train"].bytes_out, rel=0.3)
    encoded = plan_encode(
        jobs.encode.model_copy(update={"use_gpu": True, "output": jobs.at("other")}), begun=time.monotonic()
    )
    assert encoded.bytes_out == pytest.approx(written(jobs.folder / "latents"), rel=0.3)
    assert np.isclose(encoded.bytes_in, written(jobs.folder / "images"))
