"""Made the folders beside it, at commit ac66511: what stages of that day left, so that later ones must go on with it.

    git worktree add /tmp/then ac66511
    PYTHONPATH=/tmp/then:/tmp/then/tests python tests/golden/folders/make.py tests/golden/folders

Kept is what a comparison of settings reads: `_job.json`, the markers and, of a finished job, the manifest and its listing.
Two more are as a version would have left them that did not know `precision` yet, and one that counted encode's `actors`.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny

from ray_dit import config
from ray_dit.session import ray_session
from ray_dit.stages.encode import encode
from ray_dit.stages.generate import generate
from ray_dit.stages.train import train
from ray_dit.storage.job import canonical

KEPT = ("_job.json", "manifest.json", "manifest", "_markers")
HALF_DONE = ("train", "generate")


def make(place: Path) -> None:
    """Encodes 12 pictures, trains four steps on two workers, generates six pictures; all below ``place``."""
    tiny.write_pictures(place / "images", {"cat": 6, "dog": 6})
    tiny.write_vae(place / "vae")
    with ray_session(config.StageConfig(output=str(place), num_cpus=4)):
        encode(
            config.EncodeConfig(
                images=config.ImagesConfig(uri=str(place / "images"), size=tiny.SIZE, heldout=0.2),
                vae=str(place / "vae"),
                output=str(place / "encode"),
                shard_size=5,
                mirror=False,
            )
        )
        train(
            config.TrainConfig(
                latents=str(place / "encode"),
                output=str(place / "train"),
                model_output=str(place / "model"),
                model=config.DiTSizeConfig(hidden_size=16, depth=1, num_heads=2),
                optimizer=config.OptimizerConfig(learning_rate=0.004, betas=(0.9, 0.95)),
                sampler=config.SamplerConfig(num_inference_steps=3),
                steps=4,
                batch_size=4,
                checkpoint_every=2,
                log_every=2,
                num_workers=2,
            )
        )
        generate(
            config.GenerateConfig(
                model=str(place / "model"),
                output=str(place / "generate"),
                per_class=3,
                classes=("dog", "cat"),
                shard_size=2,
                batch_size=2,
            )
        )


def keep(place: Path, target: Path) -> None:
    """Copies what is kept; a half-done job loses its manifest and all markers but the first."""
    for stage in ("encode", *HALF_DONE):
        folder = target / stage
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in KEPT:
            there = place / stage / name
            if there.is_dir():
                shutil.copytree(there, folder / name)
            elif there.exists():
                shutil.copy(there, folder)
        if stage in HALF_DONE:
            (folder / "manifest.json").unlink()
            shutil.rmtree(folder / "manifest")
            for marker in sorted((folder / "_markers").glob("*"))[1:]:
                marker.unlink()


def age(target: Path) -> None:
    """Writes the folders of the two other versions from those of this one."""
    before = json.loads((target / "generate/_job.json").read_bytes())
    del before["parts"]["config"]["precision"]
    _write_job(target / "generate-before-precision", before)
    counted = json.loads((target / "encode/_job.json").read_bytes())
    counted["parts"]["config"]["actors"] = 3
    _write_job(target / "encode-counting-actors", counted)


def _write_job(folder: Path, job: dict[str, Any]) -> None:
    parts = {name: value for name, value in job.items() if name != "fingerprint"}
    folder.mkdir(exist_ok=True)
    fingerprint = hashlib.sha256(canonical(parts)).hexdigest()
    (folder / "_job.json").write_bytes(canonical(parts | {"fingerprint": fingerprint}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        keep(Path(scratch), Path(sys.argv[1]))
    age(Path(sys.argv[1]))
