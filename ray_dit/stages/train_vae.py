"""`ray-dit train-vae`: a small AutoencoderKL on the user's own images.

For images Stable Diffusion's VAE does not fit, or where it cannot be had. The result is a folder in
diffusers' own layout with the peak signal-to-noise ratio on held-out images in its manifest.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import OptimizerConfig, TrainVaeConfig
from ray_dit.core.latents import sample_moments, to_float, to_uint8
from ray_dit.core.media import psnr
from ray_dit.core.memory import kept_bytes
from ray_dit.core.order import rows_at, spread
from ray_dit.core.rng import Stream, normal
from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.folders.checkpoints import (
    FOLDER,
    RECONSTRUCTIONS,
    checkpoint_steps,
    for_history,
    leave_only_result,
)
from ray_dit.folders.images import ImagePlan, plan_images, refuse_output_inside
from ray_dit.folders.listing import ListedBy
from ray_dit.folders.loss_curve import put_curve
from ray_dit.folders.quarantine import (
    check_bad,
    earlier_key,
    is_of_earlier,
    put_quarantine,
    quarantine_key,
    read_earlier,
    read_quarantine,
)
from ray_dit.folders.reading import find_bad, load_images
from ray_dit.formats.worker_history import History, keyed
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.results import BadImage, VAEResult
from ray_dit.runtime.planning import Known, Plan, plan_training
from ray_dit.runtime.progress import progress
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.tasks import in_tasks
from ray_dit.runtime.training.checkpointer import checkpoints_kept
from ray_dit.runtime.training.launch import run_training
from ray_dit.runtime.training.memory import worker_memory
from ray_dit.runtime.training.restoring import damaged_results, to_restore
from ray_dit.stages.fingerprint import open_job, rules_of, rules_with_plan

if TYPE_CHECKING:
    from ray_dit.vae import VAE

STAGE = VAEResult.stage_name
MAX_JUDGED = 1000
"""Held-out images the PSNR is taken over, at most."""
AT_ONCE = 1 << 18
"""Samples whose rows are looked up at once."""
MANY = 1000
"""Images from which on it is shown how many have been looked at."""
SHOWN = 16
"""Held-out images kept as reconstructions for the report."""


def train_vae(config: TrainVaeConfig) -> Manifest[VAEResult]:
    """Trains the VAE, or goes on where an earlier run stopped; returns the manifest."""
    plan = _inputs(config)
    rules = rules_with_plan(STAGE, rules_of(config.output))
    job = open_job(config, STAGE, {"images": plan.sha256}, rules=rules)
    manifest = job.whole(VAEResult)
    damage = damaged_results(job, manifest, (f"{FOLDER}/",))
    if manifest is not None and not damage:
        return manifest
    if damage:
        job = to_restore(job, damage)
    bad = _set_aside(config, plan, job)
    with ray_session(config) as ray:
        run_training(ray, config, job, VAETask(config, plan, config.optimizer, bad=bad), "train-vae")
    return read_manifest(job.store, VAEResult)


def plan_train_vae(config: TrainVaeConfig, *, begun: float) -> Plan:
    """What the training will make and take; see ``runtime.planning``."""
    plan, memory = _inputs(config), training_memory(config)
    samples = config.steps * config.batch_size
    judged = len(judged_rows(plan))
    return plan_training(
        config,
        STAGE,
        lambda small, job: VAETask(small, plan, config.optimizer),
        Known(
            network_evaluations=samples + judged,
            bytes_in=plan.stored_bytes(),
            flops=samples * training_flops(config),
            bytes_out=memory["weights"] * (3 * checkpoints_kept(config) + 1),
            left_out="reading images and writing checkpoints are not counted",
            memory=memory,
        ),
        begun=begun,
    )


def training_flops(config: TrainVaeConfig) -> float:
    """Floating-point operations per image that is trained on."""
    # decoder and encoder take about the same, and the backward pass twice the forward pass
    return 2.0 * 3.0 * _meta_vae(config).encode_flops(config.images.size)


def _meta_vae(config: TrainVaeConfig) -> "VAE":
    """The VAE without memory behind its parameters: their names and shapes."""
    from ray_dit.vae import VAE

    with torch.device("meta"):
        return VAE.create(config.vae)


def training_memory(config: TrainVaeConfig) -> dict[str, int]:
    """Bytes that each part takes in a worker."""
    from ray_dit.vae import VAE

    side = config.images.size
    small = side // 2 ** (len(config.vae.block_out_channels) - 1)

    def build() -> nn.Module:
        return VAELoss(VAE.create(config.vae).module.train().requires_grad_(True), config.kl_weight)

    def call(model: nn.Module, samples: int) -> torch.Tensor:
        noise = torch.empty(samples, config.vae.latent_channels, small, small)
        return model(torch.empty(samples, 3, side, side), noise)

    kept = kept_bytes(build, call, bfloat16=config.precision == "bfloat16")
    parameters = sum(parameter.numel() for parameter in _meta_vae(config).module.parameters())
    return worker_memory(config, parameters, kept, average=False)


def _inputs(config: TrainVaeConfig) -> ImagePlan:
    """The images; UserError where none is to be trained on or the VAE can't take them."""
    refuse_output_inside(config.output, config.images)
    plan = plan_images(config.images, ListedBy(in_tasks(config)))
    factor = 2 ** (len(config.vae.block_out_channels) - 1)
    if config.images.size % factor:
        raise UserError(
            f"images.size {config.images.size} is not a multiple of {factor}, the factor by which a VAE with "
            f"{len(config.vae.block_out_channels)} block_out_channels shrinks: change one of them"
        )
    if not len(plan.rows(heldout=False)):
        raise UserError(f"every image in {plan.uri} is held out: lower --images.heldout or add images")
    return plan


def _stored_quarantine(job: Job) -> list[BadImage] | None:
    """The images that were set aside; None where there is no list, or a damaged one."""
    try:
        if is_of_earlier(job):
            return read_earlier(job.plain.get(earlier_key()))
        return read_quarantine(job.plain.get(quarantine_key()), job.store.where(quarantine_key()))
    except (Damaged, NotFound):
        return None


def _set_aside(config: TrainVaeConfig, plan: ImagePlan, job: Job) -> tuple[BadImage, ...]:
    """The images of this training that can't be read, found before it begins and listed in its folder.

    UserError if they are more than allowed, or if a step or the judging would have none that can.
    """
    rows = _needed(config, plan)
    stored = _stored_quarantine(job)
    known = any(job.store.head(job.plain.place(key)) is not None for key in (quarantine_key(), earlier_key()))
    if stored is not None:
        bad = stored
    elif not known and checkpoint_steps(job.store):
        return ()  # each was tried before the training began, and none was set aside
    elif len(rows) < MANY:
        bad = find_bad(plan, rows)
    else:
        with progress("train-vae: looking at images", len(rows), "images") as advance:
            bad = find_bad(plan, rows, advance)
    check_bad(len(bad), len(rows), config.images.max_bad, plan.uri, bad)
    if bad:
        _check_left(config, plan, {entry.key for entry in bad})
        put_quarantine(job, bad, plan.classes)
    return tuple(bad)


def _needed(config: TrainVaeConfig, plan: ImagePlan) -> NDArray[np.int64]:
    """The rows that all steps and the judging will read."""
    rows = plan.rows(heldout=False)
    samples = config.steps * config.batch_size
    if samples < len(rows):  # else the first epoch has them all
        rows = rows[rows_at(config.seed, np.arange(samples), len(rows))]
    return np.union1d(rows, judged_rows(plan))


def _check_left(config: TrainVaeConfig, plan: ImagePlan, bad_keys: set[str]) -> None:
    """UserError where every image of some step's share, or every one to be judged, can't be read."""
    bad = np.array([key in bad_keys for key in plan.keys])
    judged = judged_rows(plan)
    if bad[judged].all():
        raise UserError(
            f"none of the {len(judged)} images in {plan.uri} that the VAE would be judged by can be read, "
            f"first {plan.keys[judged[0]]!r}: repair them, or hold out others by another --images.heldout"
        )
    train = plan.rows(heldout=False)
    fewest, most = config.worker_range
    working = {config.working(there) for there in range(fewest, most + 1)}
    shares = [config.batch_size // (count * config.batches_per_step) for count in sorted(working)]
    samples = config.steps * config.batch_size
    at_once = AT_ONCE // config.batch_size * config.batch_size or config.batch_size
    for first in range(0, samples, at_once):
        at = train[rows_at(config.seed, np.arange(first, min(first + at_once, samples)), len(train))]
        for share in shares:
            lost = np.flatnonzero(bad[at].reshape(-1, share).all(axis=1))
            if len(lost):
                position = int(lost[0]) * share
                raise UserError(
                    f"none of the {share} images in {plan.uri} that a worker has at once in step "
                    f"{(first + position) // config.batch_size} can be read, first "
                    f"{plan.keys[at[position]]!r}: repair them or raise --batch-size"
                )


def judged_rows(plan: ImagePlan) -> NDArray[np.int64]:
    """The images the PSNR is taken over: held-out ones, training ones where none are held out."""
    rows = plan.rows(heldout=True)
    return spread(rows if len(rows) else plan.rows(heldout=False), MAX_JUDGED)


class VAELoss(nn.Module):
    """Reconstruction error and KL of an AutoencoderKL in one forward pass, as DDP needs it."""

    def __init__(self, module: nn.Module, kl_weight: float) -> None:
        super().__init__()
        self.module = module
        self.kl_weight = kl_weight

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Loss [B]: mean squared error of pixels + kl_weight · mean KL of latents to a unit normal."""
        # float32 from here on, whatever the precision of the products
        moments = self.module.encode(images).latent_dist.parameters.float()  # type: ignore[operator]
        latents = sample_moments(moments, noise)
        reconstructed = self.module.decode(latents).sample.float()  # type: ignore[operator]
        mse = (reconstructed - images).square().mean(dim=(1, 2, 3))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(dim=(1, 2, 3))
        return mse + self.kl_weight * kl


@dataclass
class VAETask:
    """The VAE as the training loop sees it: a ``Task``."""

    config: TrainVaeConfig
    plan: ImagePlan
    optimizer: OptimizerConfig
    ema_decay: float | None = None
    bad: tuple[BadImage, ...] = ()
    """Images that were set aside before the training began."""

    @property
    def t_ranges(self) -> tuple[str, ...]:
        return ()

    def setup(self, device: torch.device) -> nn.Module:
        from ray_dit.vae import VAE

        self._rows = self.plan.rows(heldout=False)
        self._device = device
        bad = {entry.key for entry in self.bad}
        self._bad = np.array([row for row, key in enumerate(self.plan.keys) if key in bad], np.int64)
        module = VAE.create(self.config.vae, seed=self.config.seed).module.train().requires_grad_(True)
        return VAELoss(module, self.config.kl_weight).to(device)

    def fetch(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [B, S, S, 3] and their positions, fewer where some can't be read.

        NotFound or Conflict where one is gone or changed since the training began: without it, the steps
        would come out differently.
        """
        rows = self._rows[rows_at(self.config.seed, positions, len(self._rows))]
        images, kept = self._load(rows)
        if not len(kept):
            raise UserError(
                f"none of the images of a step can be read, first {self.plan.keys[rows[0]]!r}: repair them"
            )
        return images, positions[np.isin(rows, kept)]

    def batch(
        self, fetched: tuple[NDArray[np.uint8], NDArray[np.int64]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, H, W] float in [-1, 1] and noise for their latents."""
        images, positions = fetched
        shape = (self.config.vae.latent_channels, *(self._latent_size(),) * 2)
        at = torch.from_numpy(positions).to(self._device)
        noise = normal(self.config.seed, at, 0, shape, stream=Stream.VAE_NOISE)
        return to_float(torch.from_numpy(images).to(self._device)), noise

    def losses(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return model(*batch)

    def t_range(self, batch: Any) -> torch.Tensor:
        raise AssertionError("a VAE's samples have no t")

    def heldout(self, step: int, size: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return ()  # what is held out is judged at the end, in dB

    def flops(self) -> float:
        return training_flops(self.config)

    def memory(self, config: TrainVaeConfig) -> dict[str, int]:
        return training_memory(config)

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        return {}

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        from ray_dit.vae import VAE

        vae = VAE(model.module)
        job, facts = for_history(job, history)
        for name, data in vae.files().items():
            job.put(name, name, data, facts)
        decibels, judged, originals, reconstructed = self._judge(vae)
        shown = npz_bytes(original=originals, reconstructed=reconstructed)
        job.put_plain(keyed(RECONSTRUCTIONS, history), shown, computed=True)
        leave_only_result(job, RECONSTRUCTIONS, history)
        put_curve(job, log, history=history)
        result: dict[str, Any] = {"psnr_heldout": decibels, "num_heldout": judged}
        result |= {"steps": self.config.steps, "loss": float(log[-1, 1])}
        result |= {"bad": len(self.bad)} if self.bad else {}
        job.finish(VAEResult(**result).of(history))

    def _latent_size(self) -> int:
        return self.config.images.size // 2 ** (len(self.config.vae.block_out_channels) - 1)

    def _judge(self, vae: Any) -> tuple[float, int, NDArray[np.uint8], NDArray[np.uint8]]:
        """Mean PSNR over held-out images (training ones where none are held out), and a few of both."""
        judged = judged_rows(self.plan)
        images, _ = self._load(judged)
        if not len(images):  # they could be read when the training began
            raise UserError(
                f"none of the images in {self.plan.uri} that the VAE is judged by can be read any more, "
                f"first {self.plan.keys[judged[0]]!r}: bring them back and run the same command again"
            )
        decoded = np.concatenate(
            [
                self._reconstruct(vae, images[first : first + self.config.batch_size])
                for first in range(0, len(images), self.config.batch_size)
            ]
        )
        decibels = psnr(decoded, images, smallest_error=1e-10)  # JSON has no infinity
        shown = spread(np.arange(len(images)), SHOWN)
        return round(float(decibels.mean()), 4), len(images), images[shown], decoded[shown]

    def _load(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images of those rows that were not set aside, and the numbers of those that can be read."""
        images, kept, _ = load_images(self.plan, rows[~np.isin(rows, self._bad)], all_there=True)
        return images, kept

    def _reconstruct(self, vae: Any, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        moments = vae.encode(to_float(torch.from_numpy(images).to(self._device)))
        return to_uint8(vae.decode(moments.chunk(2, dim=1)[0])).cpu().numpy()


def npz_bytes(**arrays: NDArray[Any]) -> bytes:
    """An .npz archive whose bytes follow from the arrays alone (numpy writes no clock into it)."""
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()
