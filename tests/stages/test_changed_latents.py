"""A training whose latents are no longer those it was begun with. Without Ray."""

from pathlib import Path

import pytest

from ray_dit.errors import Conflict
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import LatentsResult
from ray_dit.stages.train import plan_train, train
from ray_dit.storage.open import open_store
from tests.support.latents_task import train_config, write_latents


def test_both_are_named_and_what_to_do(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents")
    now = read_manifest(latents, LatentsResult).sha256
    config = train_config(latents).model_copy(update={"output": str(tmp_path / "run")})
    Job.open(open_store(config.output), "train", {"inputs": {"latents": "0123456789abcdef" * 4}})
    for command in (lambda: train(config), lambda: plan_train(config, begun=0.0)):
        with pytest.raises(Conflict) as refused:
            command()
        assert str(refused.value) == (
            f"{config.output} was begun with other latents: with those whose manifest has the sha256 "
            f"0123456789ab, and {latents} holds {now[:12]}: give the folder that it was begun with, restore "
            "that from a copy if it was changed, or take another output folder"
        )
