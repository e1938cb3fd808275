"""Where the rows of latents are read decides no byte of a training: all local, none, or some."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import TrainConfig
from ray_dit.errors import Damaged
from ray_dit.formats.latent_layout import index_facts
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.worker import train_worker
from ray_dit.stages import train as stage
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE, files_sha256
from tests.support.results import latent_facts, latents_result
from tests.support.tiny import MODEL, SAMPLER, SIZE, VAE_SIZE

SHARDS, ROWS = 5, 6


def write_latents(folder: Path, *, by_row: bool = True) -> None:
    """Finished latents of random moments."""
    files = VAE.create(VAE_SIZE).files()
    job = Job.open(open_store(str(folder)), "encode", {"inputs": {"vae": files_sha256(files)}})
    for name, data in files.items():
        job.put_plain(f"vae/{name}", data)
    markers: list[Marker[LatentShardFacts]] = []
    for number in range(SHARDS):
        moments = np.random.default_rng(number).normal(size=(2, ROWS, 8, SIZE // 2, SIZE // 2))
        keys, labels = [f"{number}-{row}" for row in range(ROWS)], np.arange(ROWS) % 2
        shard = LatentShard(keys, labels, labels > 5, *moments.astype(np.float16))
        data = latent_shard_bytes(shard, by_row=by_row)
        facts = latent_facts(number, ROWS, **(index_facts(data) if by_row else {}))
        markers.append(job.put(f"{number:05d}", f"latents/{number:05d}.parquet", data, facts))
    rows = SHARDS * ROWS
    job.finish(latents_result(rows=rows, train_rows=rows, image_size=SIZE), objects=markers)


def train_tiny(place: Path, output: str, **fields: object) -> Mapping[str, bytes]:
    """Trains in this process; the weights, checkpoints and losses it leaves."""
    known = {"steps": 12, "batch_size": 4, "log_every": 1, "checkpoint_every": 6, "grid_per_class": 0}
    known |= {"model": MODEL, "sampler": SAMPLER, "latents": str(place / "latents")}
    config = TrainConfig.model_validate({"output": str(place / output), **known, **fields})
    latents, model_config = stage._settled(config)  # pyright: ignore[reportPrivateUsage]
    job = stage.open_job(config, stage.STAGE, {"latents": latents.sha256})
    model_job = stage._open_model(config, job)  # pyright: ignore[reportPrivateUsage]
    task = stage.DiTTask(
        config, model_config, latents, model_job, config.optimizer, config.ema_decay, prefix=job.prefix
    )
    train_worker(task, config, job, device=torch.device("cpu"), parallel=Alone(), show=lambda _: None)
    folder = place / output
    names = [
        *folder.glob("checkpoints/*.safetensors"),
        folder / "model/model.safetensors",
        *folder.glob("loss-*.jsonl"),
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_latents(tmp_path / "latents")
    monkeypatch.setenv("RAY_DIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_training_has_the_same_bytes_whatever_is_local(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = train_tiny(place, "cold")
    assert len(cold) == 4
    (curve,) = (data for name, data in cold.items() if name.startswith("loss-"))
    assert len(curve.splitlines()) == 12
    assert train_tiny(place, "warm") == cold
    size = (place / "latents/latents/00000.parquet").stat().st_size
    for number, budget in enumerate((0, size, 3 * size)):
        monkeypatch.setenv("RAY_DIT_CACHE", str(place / f"cache-{number}"))
        assert train_tiny(place, f"budget-{number}", cache_size=budget) == cold
    write_latents(place / "before/latents", by_row=False)
    assert train_tiny(place / "before", "run") == cold


def test_a_row_that_is_damaged_in_storage_ends_a_training_with_its_name(place: Path) -> None:
    path = place / "latents/latents/00003.parquet"
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 2 * len(data) // 5):
        data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        Damaged, match=r"latents/00003.parquet does not hold what was written there: `ray-dit verify"
    ):
        train_tiny(place, "run", cache_size=0)
    assert not list((place / "run").glob("checkpoints/*"))
