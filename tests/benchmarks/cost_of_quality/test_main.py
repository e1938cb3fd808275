"""The command: a quick run in processes of its own, which goes on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_dit.config import DiTConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE
from tests.support.tiny import VAE_SIZE, write_pictures

ROOT = Path(__file__).parents[3]
NAMES = ("bright", "dark")


def write_model(folder: Path) -> None:
    """A model of 32×32 images, as the settings ask for, with random weights."""
    shape = DiTConfig(
        input_size=16,
        patch_size=4,
        hidden_size=16,
        depth=1,
        num_heads=1,
        num_classes=len(NAMES),
        learn_sigma=False,
    )
    config = ModelConfig(model=shape, latents=LatentsConfig(image_size=32))
    vae = VAE.create(VAE_SIZE).files()
    for key, data in model_objects(config, DiT(shape).state_dict(), Labels(NAMES), vae, "card").items():
        open_store(str(folder)).put(key, data)


def benchmark(folder: Path, *options: str) -> str:
    """What a quick run in ``folder`` prints; without a compiler on the path nothing is compiled."""
    command = [sys.executable, "-m", "benchmarks.cost_of_quality", "--quick"]
    done = subprocess.run(
        [*command, "--model", "model", "--images", "images", *options],
        cwd=folder,
        env=os.environ | {"PATH": "", "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


@pytest.mark.slow
def test_a_quick_run_measures_every_cell_once(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_pictures(tmp_path / "images", dict.fromkeys(NAMES, 10), size=32)
    text = benchmark(tmp_path)
    assert "42 of 42 cells left" in text
    results = tmp_path / "bench" / "cost_of_quality_quick.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 42
    assert results.with_suffix(".md").read_text() in text
    assert results.with_suffix(".svg").exists()
    assert "0 of 42 cells left" in benchmark(tmp_path, "--plan")
