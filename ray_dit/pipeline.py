"""A model folder in memory: class names in, images out; without Ray.

``ray_dit.load(uri)`` is for people; bulk generation and the server use the parts: `Pipeline.table` and
`Pipeline.guided_model` with core.sampling, `Pipeline.sample_latents`, `Pipeline.decode`. It knows no shards,
requests or files to write.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ray_dit.config import DiTConfig, Precision, SamplerConfig
from ray_dit.core.compiled import compile_static
from ray_dit.core.determinism import set_cublas_workspace
from ray_dit.core.diffusion import Schedule, linear_schedule
from ray_dit.core.dit import (
    DiT,
    adapt_state_dict,
    null_label,
    refuse_other_shapes,
    with_bfloat16_products,
)
from ray_dit.core.flops import count_flops
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.latents import denormalize, to_uint8
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.core.settle import settle_sampler
from ray_dit.errors import UserError, first_message
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.weights import check_shapes
from ray_dit.vae import VAE

Label = str | int


def load(
    uri: str,
    device: str | torch.device | None = None,
    *,
    precision: Precision = "float32",
    compile: bool = False,
    vae_precision: Precision = "float32",
    compile_vae: bool | None = None,
) -> "Pipeline":
    """The model folder at a path or fsspec URI, ready to make images; on the GPU if there is one.

    ``precision`` is that of the transformer's matrix products, ``vae_precision`` the whole VAE's; all else
    computes in float32. ``compile``: let TorchInductor compile the transformer, once for each number of rows
    it is called with, and the VAE's decoder (``compile_vae`` says otherwise); that takes some minutes, and
    the last bits are others. Raises UserError when there is no model, or its weights don't fit its
    configuration.
    """
    for asked in (precision, vae_precision):
        if asked not in get_args(Precision):
            raise UserError(f"there is no precision {asked!r}: take one of {', '.join(get_args(Precision))}")
    set_cublas_workspace()  # before CUDA starts, so that equal inputs give equal images
    folder = read_model(uri)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Pipeline(
        folder,
        load_dit(folder, device),
        precision,
        compile=compile,
        vae_precision=vae_precision,
        compile_vae=compile_vae,
    )


def load_dit(folder: ModelFolder, device: str | torch.device = "cpu") -> DiT:
    """The transformer with the folder's weights, eval mode; takes their size in memory once."""
    model = meta_dit(folder.config.model)
    state_dict = folder.state_dict()
    check_shapes(state_dict, model.state_dict(), folder.store.uri)
    model.load_state_dict(state_dict, assign=True)
    return model.to(device).eval().requires_grad_(False)


def meta_dit(config: DiTConfig) -> DiT:
    """A transformer without memory behind its parameters: their names and shapes."""
    with torch.device("meta"):
        return DiT(config)


def dit_flops(config: DiTConfig) -> int:
    """Floating-point operations of one image's forward pass through the transformer."""
    model = meta_dit(config)
    with torch.device("meta"):
        x = torch.empty(1, config.in_channels, config.input_size, config.input_size)
        t, y = torch.empty(1), torch.empty(1, dtype=torch.int64)
    return count_flops(lambda: model(x, t, y))


def initial_state(
    uri: str, config: DiTConfig, *, seed: int = 0, label_std: float = 0.02
) -> dict[str, Tensor]:
    """The weights of the model at ``uri`` as the start for one of shape ``config``: fine-tuning.

    Class count and resolution may differ (core.dit.adapt_state_dict); what is new is drawn from ``seed``,
    label vectors with deviation ``label_std``. Raises UserError when anything else differs.
    """
    folder = read_model(uri)
    check_adaptable(folder, config)
    state_dict = folder.state_dict()
    check_shapes(state_dict, meta_dit(folder.config.model).state_dict(), folder.store.uri)
    generator = torch.Generator().manual_seed(seed)
    return adapt_state_dict(state_dict, folder.config.model, config, generator=generator, label_std=label_std)


def check_adaptable(folder: ModelFolder, config: DiTConfig) -> None:
    """UserError, naming what differs, where the folder's weights can't be the start for this shape.

    Reads no weights.
    """
    try:
        refuse_other_shapes(folder.config.model, config)
    except ValueError as error:
        raise UserError(f"training can't start from {folder.store.uri}: {error}") from error


class Pipeline:
    """A model that makes images; call it with labels."""

    def __init__(
        self,
        folder: ModelFolder,
        model: DiT,
        precision: Precision = "float32",
        *,
        compile: bool = False,
        vae_precision: Precision = "float32",
        compile_vae: bool | None = None,
    ) -> None:
        self.folder = folder
        self.config = folder.config
        self.model = model if precision == "float32" else with_bfloat16_products(model)
        self.precision = precision
        self.compile = compile
        self.vae_precision = vae_precision
        self.compile_vae = compile if compile_vae is None else compile_vae
        self._network = compile_static(self.model) if compile else self.model
        self.labels = folder.labels

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.pos_embed.device

    @cached_property
    def vae(self) -> VAE:
        """The model's VAE, loaded when first needed."""
        self.folder.check_vae()
        vae = VAE.load(self.folder.vae_uri, self.device).to_precision(self.vae_precision)
        return vae.compiled() if self.compile_vae else vae

    @cached_property
    def schedule(self) -> Schedule:
        """The forward process the model was trained on."""
        return linear_schedule(self.config.diffusion)

    @cached_property
    def guided_model(self) -> GuidedModel:
        """What core.sampling steps."""
        network = self._network if self.precision == "float32" else self._in_bfloat16
        return GuidedModel(network, null_label(self.config.model), self.config.guidance_channels)

    def _in_bfloat16(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._network(x, t, y)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the latents."""
        config = self.config.model
        return config.in_channels, config.input_size, config.input_size

    def resolve_label(self, label: Label) -> int:
        """The number of a class given by number, name, synonym or WordNet id; UserError with near matches."""
        return self.labels.resolve(label)

    def sampler(
        self,
        sampler: SamplerConfig | str | None = None,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> SamplerConfig:
        """Settings to sample with.

        They are the given ones, or the model's own; ``steps`` and ``guidance_scale`` override theirs.

        A sampler by name is a change of the model's own (`SamplerConfig.over`). UserError where they don't go
        together.
        """
        name, base = (sampler, None) if isinstance(sampler, str) else (None, sampler)
        given = {"name": name, "num_inference_steps": steps, "guidance_scale": guidance_scale}
        try:
            asked = SamplerConfig.model_validate(
                {key: value for key, value in given.items() if value is not None}
            )
        except ValueError as error:
            raise UserError(f"these sampler settings don't work: {first_message(error)}") from error
        return settle_sampler(asked, self.config, base=base, where=self.folder.store.uri)

    def table(self, sampler: SamplerConfig) -> SamplerTable:
        """The sampler's coefficients on this model's schedule.

        UserError for settings the model can't follow.
        """
        try:
            return make_table(sampler, self.schedule, learn_sigma=self.config.model.learn_sigma)
        except ValueError as error:
            raise UserError(
                f"{self.folder.store.uri} can't be sampled with these settings: {error}"
            ) from error

    def sample_latents(
        self,
        labels: Sequence[int],
        *,
        sample_ids: Sequence[int],
        seed: int | Sequence[int],
        sampler: SamplerConfig | Sequence[SamplerConfig],
        pad_to: int | Sequence[int] | None = None,
        callback: Callable[[Tensor, object, Tensor], None] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Latents of these classes as the model sees them (normalised), float32, on the model's device.

        Row i is a function of (seed, sample_ids[i], label, sampler), to the last bits that the size of the
        batch decides; a sequence gives each row a seed or a sampler of its own. ``pad_to`` and ``callback``
        are core.sampling.sample's. A compiled network is called with as many rows as there are labels, or
        twice as many, unless told otherwise. A model without a null class is sampled unguided.
        """
        samplers = [sampler] * len(labels) if isinstance(sampler, SamplerConfig) else [*sampler]
        # The scale is each row's own: samplers that differ in nothing else share a table.
        bare = [each.model_copy(update={"guidance_scale": 1.0}) for each in samplers]
        tables = {each: number for number, each in enumerate(dict.fromkeys(bare))}
        rows = init_rows(
            self.latent_shape,
            labels=torch.tensor(labels, dtype=torch.int64),
            sample_id=torch.tensor(sample_ids, dtype=torch.int64),
            seed=seed if isinstance(seed, int) else torch.tensor(seed, dtype=torch.int64),
            guidance_scale=torch.tensor([each.guidance_scale for each in samplers], dtype=torch.float32),
            table=torch.tensor([tables[each] for each in bare], dtype=torch.int64),
            device=self.device,
        )
        bank = TableBank([self.table(each) for each in tables])
        sizes = pad_to or self._call_sizes(len(labels))
        return sample(self.guided_model, rows, bank, pad_to=sizes, callback=callback)

    def _call_sizes(self, rows: int) -> tuple[int, int] | None:
        """How many rows a compiled network is called with: each number is compiled by itself."""
        return (rows, 2 * rows) if self.compile else None

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "B C H W"]) -> UInt8[np.ndarray, "B height width 3"]:
        """Images of normalised latents, RGB; of a predicted x_start too, as a preview.

        UserError where they are no numbers: black images would look like a result.
        """
        settings = self.config.latents
        raw = denormalize(latents.to(self.device, torch.float32), settings.shift, settings.scale)
        images = self.vae.decode(raw)
        if not torch.isfinite(images).all():
            raise UserError(
                f"{self.folder.store.uri} made images that are no numbers (NaN or infinite): its weights "
                "are damaged or its training diverged"
            )
        return to_uint8(images).cpu().numpy()

    def __call__(
        self,
        labels: Sequence[Label] | Label | None = None,
        *,
        num_images: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        sampler: SamplerConfig | str | None = None,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """One image per label; image i is a function of (seed, i, its label and the sampler).

        ``labels`` are numbers or names; a model without classes takes ``num_images`` instead. ``sampler``: a
        name such as "ddim", or settings; by default the model's own, as are ``steps`` and ``guidance_scale``.
        """
        if batch_size < 1 or not 0 <= seed < 2**63:
            raise UserError(f"batch_size {batch_size} must be at least 1, and seed {seed} in [0, 2^63)")
        numbers = self._numbers(labels, num_images)
        config = self.sampler(sampler, steps=steps, guidance_scale=guidance_scale)
        images: list[Image.Image] = []
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            ids = range(first, first + len(batch))
            pad_to = self._call_sizes(min(batch_size, len(numbers)))  # the last batch may be short
            latents = self.sample_latents(batch, sample_ids=ids, seed=seed, sampler=config, pad_to=pad_to)
            images += [Image.fromarray(image) for image in self.decode(latents)]
        return images

    def _numbers(self, labels: Sequence[Label] | Label | None, num_images: int | None) -> list[int]:
        if labels is not None and num_images is None:
            some = [labels] if isinstance(labels, str) or not isinstance(labels, Iterable) else labels
            return [self.resolve_label(label) for label in some]
        if labels is None and num_images is not None and not len(self.labels):
            return [0] * num_images  # without a label table the number means nothing
        wanted = "labels=[...]" if len(self.labels) else "num_images=..."
        raise UserError(f"{self.folder.store.uri} has {len(self.labels)} classes: call it with {wanted}")
