"""`ray-dit export-model`: the averaged weights of a training's checkpoint as a model folder; without Ray.

It is the folder that the training would end with if it ended there. All it needs besides the checkpoint
follows from the run's description, its latents and the model it started from, each known by its hash.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from ray_dit.config import ExportModelConfig, TrainConfig
from ray_dit.errors import Damaged, NotFound, UserError, first_message
from ray_dit.folders.checkpoints import Checkpoint, checkpoints, read_checkpoint
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.checkpoint import CheckpointFacts, with_prefix
from ray_dit.formats.model_folder import ModelConfig
from ray_dit.formats.worker_history import history_hash
from ray_dit.ledger.description import known_description, newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import HOLDS, read_manifest, tied_manifest
from ray_dit.ledger.markers import unless_damaged
from ray_dit.ledger.results import Manifest
from ray_dit.ledger.stored_json import read_json
from ray_dit.results import LatentsResult, ModelResult, TrainingResult
from ray_dit.runtime.training.state import put_weights, trained_parameters
from ray_dit.stages.train import DiTTask, initial_model, model_config_of
from ray_dit.storage.open import open_output, open_store
from ray_dit.storage.store import Store

STAGE = TrainingResult.stage_name


def export_model(config: ExportModelConfig) -> tuple[str, int]:
    """Writes the model folder, where it is not there yet; returns where, and the step it is of.

    UserError or NotFound where there is no such training or checkpoint, or its inputs are not to be found.
    """
    store = open_store(config.run)
    generation, checkpoint = _chosen(store, config.step)
    job = _job(store, generation)
    tensors, facts = _read(job, checkpoint)
    settings, latents, model_config = _settings(config, job)
    output = config.output or f"{config.run.rstrip('/')}/model-step-{checkpoint.step:08d}"
    mark = history_hash(facts.history)
    of = {"train": job.fingerprint, "step": checkpoint.step} | ({"history": mark} if mark else {})
    model_job = Job.open(open_output(output), ModelResult.stage_name, of)
    if model_job.whole(ModelResult) is None:
        model = initial_model(settings, model_config.model)
        put_weights(trained_parameters(model), dict(with_prefix("ema", tensors)))
        task = DiTTask(settings, model_config, latents, model_job, settings.optimizer, settings.ema_decay)
        task.write_model(model_job, model.eval(), tensors["log"].numpy(), facts.history)
    return output, checkpoint.step


def _chosen(store: Store, step: int | None) -> tuple[int, Checkpoint]:
    """The checkpoint of this step, by default of the newest, with the generation it is of."""
    there = list(_all(store))
    steps = ", ".join(str(each) for each in sorted({found.step for _, found in there}))
    fitting = [(number, found) for number, found in there if step in (None, found.step)]
    if not there:
        raise UserError(f"{store.uri} has no checkpoint yet: train until there is one")
    if not fitting:
        raise UserError(f"{store.uri} has no checkpoint of step {step}: there are those of steps {steps}")
    return max(fitting, key=lambda each: each[1])


def _all(store: Store) -> Iterator[tuple[int, Checkpoint]]:
    for generation in range(newest_begun(store) + 1):
        job = _job(store, generation)
        yield from ((generation, found) for found in checkpoints(store, job.prefix))


def _job(store: Store, generation: int) -> Job:
    """A generation of the training; NotFound or UserError if that is not what the folder holds."""
    there = known_description(store, generation)
    if there is None:
        raise NotFound(
            f"{store.uri} holds no job of ray-dit that can be read: give the --output of ray-dit train"
        )
    if there["stage"] != STAGE:
        holds = HOLDS.get(there["stage"], there["stage"])
        raise UserError(f"{store.uri} holds {holds}, not {HOLDS[STAGE]}: give the --output of ray-dit train")
    return Job(store, STAGE, there["fingerprint"], generation)


def _read(job: Job, checkpoint: Checkpoint) -> tuple[Mapping[str, torch.Tensor], CheckpointFacts]:
    try:
        return read_checkpoint(job.store, checkpoint, prefix=job.prefix, get=job.plain.get)
    except Damaged as error:
        raise Damaged(f"{error}: name another step, or train again, which makes it anew") from error


def _settings(
    config: ExportModelConfig, job: Job
) -> tuple[TrainConfig, Manifest[LatentsResult], ModelConfig]:
    """The training's settings, its latents, and what its model is."""
    parts = (known_description(job.store, job.generation) or {})["parts"]
    record = _newest_record(job.store)
    inputs: Mapping[str, str] = parts["inputs"]
    where = _place(config.latents or record.get("latents"), "latents", job)
    latents = tied_manifest(where, LatentsResult, inputs["latents"])
    _check_same(latents.sha256, inputs["latents"], where, "latents", job)
    source: ModelFolder | None = None
    started = {}
    if "init_from" in inputs:
        start = _place(config.init_from or record.get("init_from"), "init_from", job)
        _check_same(read_manifest(start, ModelResult).sha256, inputs["init_from"], start, "init_from", job)
        source, started = read_model(start), {"init_from": start}
    try:
        settings = TrainConfig.model_validate(
            {**parts["config"], **started, "output": job.store.uri, "latents": where}
        )
    except ValidationError as error:
        raise UserError(
            f"{job.store.uri} has settings that this ray-dit doesn't know ({first_message(error)}): export "
            "the model with the one that trains it"
        ) from error
    return settings, latents, model_config_of(settings, latents.facts, source)


def _newest_record(store: Store) -> Mapping[str, Any]:
    """What the newest start of the training wrote down of its inputs; empty where none did."""
    keys = [info.key for info in store.list("_runs/") if info.key.endswith("/start.json")]
    for key in sorted(keys, reverse=True):
        record = unless_damaged(lambda key=key: read_json(store, key, absent=None))
        if record and record.get("what") == STAGE and "latents" in record:
            return record
    return {}


def _place(uri: Any, name: str, job: Job) -> str:
    if not isinstance(uri, str):
        raise UserError(
            f"{job.store.uri} does not tell where its {name} is, as an earlier version began it: give "
            f"--{name.replace('_', '-')}"
        )
    return uri


def _check_same(there: str, wanted: str, uri: str, name: str, job: Job) -> None:
    if there != wanted:
        raise UserError(
            f"{uri} is not what {job.store.uri} is trained with: give the right --{name.replace('_', '-')}"
        )
