"""`ray-dit train`: a DiT on latents with Ray Train; ends with a model folder.

The run folder holds checkpoints, a sample grid at each, and the loss curve; the model folder holds what
generate and serve need and nothing else.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import (
    DiffusionConfig,
    DiTConfig,
    DiTSizeConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.batch import (
    TrainingBatch,
    mirror_choice,
    t_range,
    t_ranges,
    training_batch,
    validation_batch,
    validation_t,
)
from ray_dit.core.diffusion import linear_schedule, q_sample
from ray_dit.core.dit import DiT, init_label_table
from ray_dit.core.loss import diffusion_loss
from ray_dit.core.media import grid
from ray_dit.core.order import rows_at, spread
from ray_dit.core.settle import evaluations_per_image, settle_sampler
from ray_dit.errors import Conflict, Damaged, UserError, first_message
from ray_dit.folders.checkpoints import FOLDER, SAMPLES, for_history
from ray_dit.folders.duplicates import copies_of_heldout
from ray_dit.folders.latents import LatentRows, cache_folder, open_latent_rows
from ray_dit.folders.loss_curve import put_curve
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import VAE_FOLDER, ModelConfig, model_card, model_objects
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag, manifest_objects, read_manifest, tied_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.pipeline import Pipeline, check_adaptable, dit_flops, initial_state
from ray_dit.results import LatentShardFacts, LatentsResult, ModelResult, TrainingResult
from ray_dit.runtime.planning import Known, Plan, plan_training
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.training.checkpointer import checkpoints_due, checkpoints_kept
from ray_dit.runtime.training.launch import run_training
from ray_dit.runtime.training.memory import dit_memory
from ray_dit.runtime.training.restoring import damaged_results, to_restore
from ray_dit.stages.extension import totals_of
from ray_dit.stages.fingerprint import begun_with, check_begun_with, open_job, rules_of, rules_with_plan
from ray_dit.storage.open import open_store
from ray_dit.vae import check_latents_vae

STAGE = TrainingResult.stage_name
SD_SCALING_FACTOR = 0.18215
_log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Manifest[TrainingResult]:
    """Trains the DiT, or goes on where an earlier run stopped; returns the run's manifest."""
    latents, model_config = _settled(config)
    inputs = {"latents": latents.sha256}
    if config.init_from is not None:
        inputs["init_from"] = read_manifest(config.init_from, ModelResult).sha256
    size = model_config.model.model_dump(mode="json", include=set(DiTSizeConfig.model_fields))
    resolved = {"model": size, "diffusion": model_config.diffusion}
    ends = _ends(config)
    grows = ("config.steps",) if config.optimizer.schedule == "constant" else ()
    rules = rules_with_plan(STAGE, rules_of(config.output))
    job = open_job(
        config, STAGE, inputs, resolved=resolved, extend=config.extend, may_change=grows, rules=rules
    )
    if job.generation != len(ends):
        raise Damaged(
            f"{config.output} does not tell how many steps it was trained before: restore its _job.json "
            "files from a copy"
        )
    model_job = _open_model(config, job)
    manifest, model = job.whole(TrainingResult), model_job.whole(ModelResult)
    # checkpoints and sample grids of a finished training are what nothing needs and nothing makes again
    damage = damaged_results(job, manifest, (f"{FOLDER}/", SAMPLES)) + damaged_results(model_job, model)
    if manifest is not None and model is not None and model.facts.history != manifest.facts.history:
        damage.append(model_job.store.uri)  # that of a run which another one has overtaken
    _tell_damage_before(job, ends)
    if manifest is not None and model is not None and not damage:
        return manifest
    if job.is_finished():
        job = to_restore(job, damage or [model_job.store.uri])
        model_job = replace(model_job, repairing=True)
    check_latents_vae(open_store(config.latents), latents)
    with ray_session(config) as ray:
        average = config.ema_decay
        task = DiTTask(
            config, model_config, latents, model_job, config.optimizer, average, prefix=job.prefix, ends=ends
        )
        inputs_at = {"latents": config.latents, "init_from": config.init_from}
        run_training(ray, config, job, task, "train", ends=ends, facts=inputs_at)
    manifest = job.manifest(TrainingResult)
    assert manifest is not None, "the first worker has written it"
    return manifest


def plan_train(config: TrainConfig, *, begun: float) -> Plan:
    """What the training will make and take; see ``runtime.planning``."""
    latents, model_config = _settled(config)
    samples = config.steps * config.batch_size
    sampled = checkpoints_due(config, config.steps) * len(_grid_labels(config, model_config))
    forward = dit_flops(model_config.model)
    memory = dit_memory(config, model_config.model)

    def make_task(small: TrainConfig, job: Job) -> DiTTask:
        model_job = Job.open(job.store.child("model"), ModelResult.stage_name, {"train": job.fingerprint})
        return DiTTask(small, model_config, latents, model_job, config.optimizer, config.ema_decay)

    return plan_training(
        config,
        STAGE,
        make_task,
        Known(
            network_evaluations=samples + sampled * evaluations_per_image(model_config, config.sampler),
            bytes_in=sum(listing.bytes for listing in latents.listings),
            # the backward pass takes twice the forward pass, and recomputing activations another one
            flops=float(samples * forward * (4 if config.activation_checkpointing else 3)),
            # checkpoints hold weights, their average and two moments; the model the average
            bytes_out=memory["weights"] * (4 * checkpoints_kept(config) + 1),
            left_out="sample grids and writing checkpoints are not counted",
            memory=memory,
        ),
        begun=begun,
        generation=len(_ends(config)),
    )


def _ends(config: TrainConfig) -> tuple[int, ...]:
    """The last steps of the generations before the one with as many steps as asked for.

    UserError where an extension is asked for that is none.
    """
    totals = totals_of(config.output, "steps", config.steps, "steps", extend=config.extend)
    number = totals.index(config.steps)
    if config.extend and number and config.optimizer.schedule != "constant":
        raise UserError(
            f"the {config.optimizer.schedule} schedule of {config.output} ends at step {totals[0]}, so more "
            "steps would be another training: begin a run with --optimizer.schedule constant in another "
            "output folder, or one from this run's model with --init-from"
        )
    return totals[:number]


def _open_model(config: TrainConfig, job: Job) -> Job:
    """The job of the model folder; UserError where another generation's model is there."""
    folder = model_folder(config, job.generation)
    try:
        return Job.open(open_store(folder), ModelResult.stage_name, {"train": job.fingerprint})
    except Conflict as error:
        if not job.generation:
            raise
        raise Conflict(
            f"{folder} holds another model, which an extension leaves as it is: give another --model-output, "
            f"or none for {model_folder(config.model_copy(update={'model_output': None}), job.generation)}"
        ) from error


def _tell_damage_before(job: Job, ends: tuple[int, ...]) -> None:
    """Warns of damaged results of the generations before: only their own commands make them again."""
    for generation, steps in enumerate(ends):
        before = replace(job, generation=generation)
        for uri in damaged_results(before, before.whole(TrainingResult), (f"{FOLDER}/", SAMPLES)):
            _log.warning("%s is missing or damaged; train with %d steps makes it again", uri, steps)


def _settled(config: TrainConfig) -> tuple[Manifest[LatentsResult], ModelConfig]:
    """The latents and what the model will be; UserError where they do not fit together.

    A training keeps to the latents it has begun with, though they were extended since.
    """
    latents = tied_manifest(config.latents, LatentsResult, begun_with(config.output, "latents"))
    check_begun_with(config.output, "latents", latents.sha256, config.latents)
    source = None
    if config.init_from is not None:
        read_manifest(config.init_from, ModelResult)  # says best what lies there if it is no model
        source = read_model(config.init_from)
    return latents, model_config_of(config, latents.facts, source)


def model_folder(config: TrainConfig, generation: int) -> str:
    """Where the finished model of this generation goes."""
    return config.model_output or f"{config.output.rstrip('/')}/model{generation_tag(generation)}"


def model_config_of(
    config: TrainConfig, latents: LatentsResult, source: ModelFolder | None = None
) -> ModelConfig:
    """The model folder's configuration: the DiT's full shape, how latents become x_start, its origin.

    A model that starts from ``source`` keeps what its weights were made for: guidance channels, licence, and
    the normalisation of latents where the VAE is the same.
    """
    channels, side, _ = latents.latent_shape
    base = source.config.model if source else None
    try:
        shape = config.model.resolve(
            input_size=side, in_channels=channels, num_classes=_num_classes(latents), base=base
        )
    except ValueError as error:
        raise UserError(
            f"the model does not fit the latents in {config.latents}: {first_message(error)}"
        ) from error
    if source is not None:
        check_adaptable(source, shape)
    diffusion = config.diffusion.over(source.config.diffusion if source else DiffusionConfig())
    own = ModelConfig(
        model=shape,
        diffusion=diffusion,
        latents=_normalisation(latents),
        sampler=config.sampler,
        origin="trained with ray-dit",
    )
    settle_sampler(
        SamplerConfig(), own, where="the model to be trained"
    )  # refused now, not after its training
    if source is None:
        return own
    kept = source.config
    changes: dict[str, Any] = {
        "guidance_channels": kept.guidance_channels,
        "licence": kept.licence,
        "origin": f"trained with ray-dit, starting from: {kept.origin or 'a model of unknown origin'}",
    }
    kept_latents = kept.latents.model_copy(update={"image_size": own.latents.image_size})
    if _same_vae(source, config.latents):
        changes["latents"] = kept_latents
    elif kept.vae != VAE_FOLDER and kept_latents.scale != SD_SCALING_FACTOR and kept_latents != own.latents:
        raise UserError(
            f"{source.store.uri} normalises its latents in a way of its own and only names its VAE "
            f"({kept.vae}), so it can't be told whether {config.latents} were made by it: import the model "
            "again with --vae FOLDER"
        )
    return own.model_copy(update=changes)


def _same_vae(source: ModelFolder, latents: str) -> bool:
    """Whether the latents were made by the very VAE in the model's folder.

    False for a model that only names its VAE.
    """
    from ray_dit.vae import WEIGHTS_NAME

    key = f"{VAE_FOLDER}/{WEIGHTS_NAME}"
    if source.config.vae != VAE_FOLDER or source.store.head(key) is None:
        return False
    return source.store.sha256(key) == open_store(latents).sha256(key)


def _num_classes(latents: LatentsResult) -> int:
    """Classes to condition on: images that all lie in one folder are unlabelled."""
    return len(latents.classes) if len(latents.classes) > 1 else 0


def _normalisation(latents: LatentsResult) -> LatentsConfig:
    """Stable Diffusion's VAE keeps its published factor; any other is normalised by its own statistics."""
    if latents.scaling_factor == SD_SCALING_FACTOR:
        return LatentsConfig(shift=0.0, scale=SD_SCALING_FACTOR, image_size=latents.image_size)
    return LatentsConfig(
        shift=latents.mean,
        scale=tuple(1.0 / value for value in latents.std),
        image_size=latents.image_size,
    )


@dataclass
class DiTTask:
    """The DiT as the training loop sees it: a ``Task``."""

    config: TrainConfig
    model_config: ModelConfig
    latents: Manifest[LatentsResult]
    model_job: Job
    optimizer: OptimizerConfig
    ema_decay: float | None
    prefix: str = ""
    """What the names of the generation's sample grids begin with."""
    ends: tuple[int, ...] = ()
    """The last steps of the generations before."""

    @property
    def t_ranges(self) -> tuple[str, ...]:
        return t_ranges(self.model_config.diffusion.num_train_timesteps)

    _device: torch.device = field(default=torch.device("cpu"), init=False)

    def setup(self, device: torch.device) -> nn.Module:
        self._device = device
        self._data = self._open_data()
        self._rows = np.flatnonzero(~self._data.heldout)
        if not len(self._rows):
            raise UserError(
                f"every row of {self.config.latents} is held out: encode with a lower --images.heldout"
            )
        self._schedule = linear_schedule(self.model_config.diffusion)
        latents = self.model_config.latents
        self._shift = torch.tensor(latents.shift, device=device)
        self._scale = torch.tensor(latents.scale, device=device)
        model = initial_model(self.config, self.model_config.model)
        model.activation_checkpointing = self.config.activation_checkpointing
        return model.to(device)

    def fetch(self, positions: NDArray[np.int64]) -> list[torch.Tensor]:
        """Positions, moments and labels, where a GPU copies them from while it computes."""
        rows = self._rows[rows_at(self.config.seed, positions, len(self._rows))]
        at = torch.from_numpy(positions)
        view = mirror_choice(self.config.seed, at, self._data.views).numpy()
        moments = torch.from_numpy(self._data.take(rows, view).astype(np.float32))
        fetched = [at, moments, torch.from_numpy(self._data.labels[rows])]
        return [value.pin_memory() for value in fetched] if self._device.type == "cuda" else fetched

    def batch(self, fetched: list[torch.Tensor]) -> TrainingBatch:
        at, moments, labels = (value.to(self._device, non_blocking=True) for value in fetched)
        model = self.model_config.model
        return training_batch(
            self.config.seed,
            at,
            moments,
            labels,
            shift=self._shift,
            scale=self._scale,
            num_timesteps=self._schedule.num_timesteps,
            num_classes=model.num_classes,
            class_dropout_prob=model.class_dropout_prob if model.num_classes else 0.0,
        )

    def losses(self, model: nn.Module, batch: TrainingBatch) -> torch.Tensor:
        x_t = q_sample(self._schedule, batch.x_start, batch.t, batch.noise)
        output = model(x_t, batch.t, batch.y)
        return diffusion_loss(
            self._schedule,
            output,
            batch.x_start,
            x_t,
            batch.t,
            batch.noise,
            learn_sigma=self.model_config.model.learn_sigma,
            min_snr_gamma=self.config.min_snr_gamma,
        ).loss

    def t_range(self, batch: TrainingBatch) -> torch.Tensor:
        return t_range(batch.t, self._schedule.num_timesteps)

    def heldout(self, step: int, size: int) -> Iterator[TrainingBatch]:
        """Rows evenly over those held out, each always with the same t and noise; not mirrored."""
        if not self.config.is_validated(step, self.ends):
            return
        rows = spread(np.flatnonzero(self._data.heldout), self.config.validation_rows)
        steps = validation_t(self.config.seed, len(rows), self._schedule.num_timesteps)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            moments = self._data.take(part, np.zeros_like(part)).astype(np.float32)
            arrays = (part, steps[first : first + size], moments, self._data.labels[part])
            there = (torch.from_numpy(array).to(self._device) for array in arrays)
            yield validation_batch(self.config.seed, *there, shift=self._shift, scale=self._scale)

    def flops(self) -> float:
        return 3.0 * dit_flops(self.model_config.model)  # the backward pass takes twice the forward pass

    def memory(self, config: TrainConfig) -> dict[str, int]:
        return dit_memory(config, self.model_config.model)

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        """A grid of samples, one row per class, from the averaged weights."""
        if not self.config.grid_per_class:
            return {}
        labels = _grid_labels(self.config, self.model_config)
        # the latents folder holds its VAE where a model folder does
        folder = ModelFolder(open_store(self.config.latents), self.model_config, self._labels())
        pipeline = Pipeline(folder, cast(DiT, model))
        latents = pipeline.sample_latents(
            labels, sample_ids=range(len(labels)), seed=self.config.seed, sampler=self.config.sampler
        )
        key = f"{SAMPLES}{self.prefix}step-{step:08d}.png"
        return {key: grid(pipeline.decode(latents), self.config.grid_per_class)}

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        """Writes the model folder, then closes the run."""
        self._data.close()
        self.write_model(self.model_job, model, log, history)
        put_curve(job, log, self.t_ranges, history)
        result = TrainingResult(
            steps=self.config.steps,
            samples=self.config.steps * self.config.batch_size,
            loss=float(log[-1, 1]),
        )
        job.finish(result.of(history))

    def write_model(self, job: Job, model: nn.Module, log: NDArray[np.float64], history: History) -> None:
        """Writes the model folder of the state that the loss curve ends with, and closes its job."""
        labels, steps = self._labels(), int(log[-1, 0])
        card = model_card(
            self.model_config, labels, title="A DiT trained with ray-dit", notes=self._notes(log)
        )
        check_latents_vae(open_store(self.config.latents), self.latents)  # its VAE goes into the model
        objects = model_objects(self.model_config, model.state_dict(), labels, self._vae().files(), card)
        job, facts = for_history(job, history)
        for key, data in objects.items():
            job.put(key.replace("/", "-"), key, data, facts)
        job.finish(ModelResult(steps=steps).of(history))

    def _open_data(self) -> LatentRows:
        store = open_store(self.config.latents)
        shards = manifest_objects(store, self.latents, LatentShardFacts)
        copies = copies_of_heldout(store, self.latents.generation)
        most = self.config.cache_size
        return open_latent_rows(store, shards, self.latents.sha256, cache_folder(), copies, most=most)

    def _vae(self) -> Any:
        from ray_dit.vae import VAE

        return VAE.load(f"{self.config.latents.rstrip('/')}/vae", device=self._device)

    def _labels(self) -> Labels:
        return Labels(self.latents.facts.classes if self.model_config.model.num_classes else ())

    def _notes(self, log: NDArray[np.float64]) -> str:
        return (
            f"Averaged over training (EMA). Trained for {int(log[-1, 0])} steps of "
            f"{self.config.batch_size} on {self.latents.facts.train_rows} pictures (seed "
            f"{self.config.seed}); last mean loss {log[-1, 1]:.4f}."
        )


def _grid_labels(config: TrainConfig, model_config: ModelConfig) -> list[int]:
    """The labels of a sample grid, one row per class."""
    classes = range(min(10, model_config.model.num_classes or 1))
    return [label for label in classes for _ in range(config.grid_per_class)]


def initial_model(config: TrainConfig, shape: DiTConfig) -> DiT:
    """The DiT with the weights training starts from: those of the paper's initialisation or another model."""
    generator = torch.Generator().manual_seed(config.seed)
    model = DiT(shape, generator=generator)
    if model.y_embedder is not None:
        init_label_table(model.y_embedder.embedding_table.weight, generator, std=config.label_init_std)
    if config.init_from is not None:
        state = initial_state(config.init_from, shape, seed=config.seed, label_std=config.label_init_std)
        model.load_state_dict(state)
    return model
