"""Every setting of every stage, as data: one frozen pydantic model a stage; imports neither torch nor ray.

A configuration is checked when it is made, saved with what was made from it, and its ``content()`` is part of the
fingerprint that decides the bytes. Fields that only say when and where work happens (addresses, actor counts,
progress) are listed in ``PLACEMENT`` and stay out of the fingerprint.
"""

import os
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Precision = Literal["float32", "bfloat16"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "unipc"]
"""The samplers there are: each is the module of that name in `ray_dit/core/samplers/`."""


def _absolute(uri: str) -> str:
    """A local path made absolute where it is given: Ray's workers have working folders of their own."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _folder_or_hub_id(source: str) -> str:
    path = _absolute(source)
    return source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(path) else path


Uri = Annotated[str, AfterValidator(_absolute)]
VaeSource = Annotated[str, AfterValidator(_folder_or_hub_id)]


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    PLACEMENT: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that decide when and where, never what: outside the fingerprint."""

    def content(self) -> dict[str, Any]:
        """The fields that determine bytes, as JSON data; nested settings likewise."""
        plain = self.model_dump(mode="json", exclude=set(self.PLACEMENT))
        nested = {name: getattr(self, name) for name in plain}
        return {
            name: nested[name].content() if isinstance(nested[name], Config) else value
            for name, value in plain.items()
        }


PRESET_SIZES: dict[str, tuple[int, int, int]] = {
    # name: (hidden_size, depth, num_heads); Peebles & Xie 2022, table 1
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


class DiTConfig(Config):
    """The shape of a diffusion transformer: everything its parameters' names and shapes follow from."""

    input_size: PositiveInt = 32
    """Height and width of the latents."""
    patch_size: PositiveInt = 2
    """Height and width of the square of latents that becomes one token."""
    in_channels: PositiveInt = 4
    """Channels of the latents."""
    hidden_size: PositiveInt = 1152
    """Width of a token."""
    depth: Annotated[int, Field(gt=0, le=1000)] = 28
    """Number of transformer blocks."""
    num_heads: PositiveInt = 16
    """Attention heads; must divide hidden_size."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the MLP's hidden layer over hidden_size."""
    num_classes: NonNegativeInt = 1000
    """Classes; label num_classes is the null class of guidance. 0: unconditional."""
    class_dropout_prob: Fraction = 0.1
    """Probability of a training label being replaced by the null class; 0 leaves no null class and no guidance."""
    learn_sigma: bool = True
    """Predict the variance too: twice as many output channels."""

    @model_validator(mode="after")
    def _divides(self) -> "DiTConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4, which the position table needs"
            )
        if self.input_size % self.patch_size:
            raise ValueError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self

    @classmethod
    def preset(cls, name: str, **fields: Any) -> "DiTConfig":
        """A published size such as ``DiT-XL/2`` (table 1 of the paper); other fields by keyword."""
        sizes = {f"DiT-{size}/{patch}": (size, patch) for size in PRESET_SIZES for patch in (2, 4, 8)}
        if name not in sizes:
            raise ValueError(f"no preset {name!r}; there are {', '.join(sizes)}")
        size, patch = sizes[name]
        hidden_size, depth, num_heads = PRESET_SIZES[size]
        return cls(patch_size=patch, hidden_size=hidden_size, depth=depth, num_heads=num_heads, **fields)


class DiffusionConfig(Config):
    """The forward process: Ho et al. 2020's linear schedule as DiT trains it."""

    num_train_timesteps: PositiveInt = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02


class DiffusionOverrides(Config):
    """Schedule settings that differ from where the weights come from; None keeps what is told there, else the default."""

    num_train_timesteps: PositiveInt | None = None
    """By default 1000."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    """By default 0.0001."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """By default 0.02."""

    def over(self, base: DiffusionConfig) -> DiffusionConfig:
        """``base`` with these settings in place of its own."""
        return DiffusionConfig(**base.model_dump() | self.model_dump(exclude_none=True))


class SamplerConfig(Config):
    """How latents are drawn: the sampler's table and the guidance. The default is chosen by measurement: docs/sampling.md."""

    name: SamplerName = "unipc"
    """ddpm (Ho 2020), ddim (Song 2021), dpmpp (DPM-Solver++(2M), Lu 2022), unipc (UniPC-bh2, Zhao 2023)."""
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)] = 10
    """Model evaluations an image, each one or two rows (guided)."""
    guidance_scale: Annotated[float, Field(ge=0.0, le=100.0)] = 2.0
    """Classifier-free guidance; 1 is off and skips the unconditional rows."""
    guidance_interval: tuple[float, float] | None = None
    """Training time steps [low, high] inside which guidance acts; outside the scale is 1 (Kynkäänniemi 2024)."""
    spacing: Literal["auto", "uniform", "respaced", "leading", "trailing", "logsnr"] = "auto"
    """Which time steps are visited; auto is respaced for ddpm and uniform for the others."""
    timesteps: tuple[float, ...] | None = None
    """The exact time steps, falling; instead of spacing and num_inference_steps."""
    eta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """DDIM's noise: 0 deterministic, 1 as much as DDPM."""
    order: Literal[1, 2, 3] = 2
    """Order of dpmpp (1 or 2) and unipc (1 to 3)."""
    variance: Literal["auto", "learned", "fixed_small", "fixed_large"] = "auto"
    """DDPM's variance; auto is learned where the model predicts it (learn_sigma), else fixed_small."""

    @property
    def num_steps(self) -> int:
        """Model evaluations an image: the list's where there is one."""
        return self.num_inference_steps if self.timesteps is None else len(self.timesteps)

    @model_validator(mode="after")
    def _consistent(self) -> "SamplerConfig":
        if self.timesteps is not None:
            steps = self.timesteps
            if not steps or any(a <= b for a, b in zip(steps, steps[1:], strict=False)) or steps[-1] < 0:
                raise ValueError("timesteps must be a falling list of numbers of at least 0")
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval must be low, then high")
        return self


class SamplerOverrides(Config):
    """Sampler settings that differ from a model's own (`ray-dit info MODEL` shows them); None keeps the model's."""

    name: SamplerName | None = None
    """The sampler; another than the model's keeps its steps and guidance only."""
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Model evaluations an image, each one or two rows (guided)."""
    guidance_scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Classifier-free guidance; 1 is off and skips the unconditional rows."""
    guidance_interval: tuple[float, float] | None = None
    """Training time steps [low, high] inside which guidance acts; outside the scale is 1."""
    spacing: Literal["auto", "uniform", "respaced", "leading", "trailing", "logsnr"] | None = None
    """Which time steps are visited; auto is respaced for ddpm and uniform for the others."""
    timesteps: tuple[float, ...] | None = None
    """The exact time steps, falling; instead of spacing and num_inference_steps."""
    eta: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """DDIM's noise: 0 deterministic, 1 as much as DDPM."""
    order: Literal[1, 2, 3] | None = None
    """Order of dpmpp (1 or 2) and unipc (1 to 3)."""
    variance: Literal["auto", "learned", "fixed_small", "fixed_large"] | None = None
    """DDPM's variance; auto is learned where the model predicts it, else fixed_small."""

    def over(self, base: SamplerConfig) -> SamplerConfig:
        """``base`` with these settings in place of its own; ValueError if they do not fit together.

        Another sampler keeps the number of steps and the guidance, and nothing that was set for the one before. A number
        of steps or a spacing takes the place of a list of time steps.
        """
        if self.timesteps is not None and (self.num_inference_steps, self.spacing) != (None, None):
            raise ValueError("timesteps is a list of its own: leave num_inference_steps and spacing out")
        kept = base.model_dump()
        if self.name not in (None, base.name):
            kept = base.model_dump(include={"guidance_scale", "guidance_interval"})
            kept["num_inference_steps"] = base.num_steps
        elif (self.num_inference_steps, self.spacing) != (None, None):
            kept |= {"num_inference_steps": base.num_steps, "timesteps": None}
        return SamplerConfig(**kept | self.model_dump(exclude_none=True))


class StageConfig(Config):
    """What every stage has: where its result goes, the Ray it runs on, threads an actor."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"output", "address", "num_cpus", "accept_fingerprint"})

    output: Uri
    """Folder the result goes to: a path or any fsspec URI."""
    address: str = "local"
    """local: a private Ray on this machine; auto or host:port: the cluster that is there."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a private Ray; by default this machine's, at least 4."""
    accept_fingerprint: bool = False
    """Go on with a job that was begun with other library versions; each shard records which made it."""
    threads: PositiveInt = 1
    """torch threads an actor; part of what determines bytes."""


class ShardsConfig(StageConfig):
    """What the stages have in common that make shards on a pool of actors."""

    PLACEMENT: ClassVar[frozenset[str]] = StageConfig.PLACEMENT | {"actors", "shard_deadline"}

    actors: PositiveInt = 2
    """Actors that make shards; more than the cluster has room for start when it grows."""
    shard_deadline: Annotated[float, Field(gt=0)] | None = None
    """Seconds a shard may take once the model is loaded, before its process is killed and the shard tried again (three
    tries in all); by default 15 minutes, or 20 times the median of this run's finished shards if that is more."""


class ImagesConfig(Config):
    """The pictures: a folder with one sub-folder a class, and how a picture becomes a square."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"uri", "max_bad"})

    uri: Uri
    """Folder of pictures, one sub-folder a class: a path or any fsspec URI."""
    size: PositiveInt = 256
    """Height and width after the ADM centre crop, in pixels."""
    heldout: Fraction = 0.02
    """Part of the pictures no model ever trains on, chosen by a hash of the picture's key."""
    max_bad: Fraction = 0.01
    """Part of the pictures that may be unreadable before the stage fails; they are set aside and listed."""


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) and its learning rate over time."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate; the paper's is 1e-4."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant as in the paper, or a cosine to zero at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient over all parameters; longer ones are scaled down."""


class TrainingConfig(StageConfig):
    """What the two training stages share: data order, workers, checkpoints."""

    PLACEMENT: ClassVar[frozenset[str]] = StageConfig.PLACEMENT | {"tensorboard"}
    seed: Seed = 0
    """Decides the order of the data, all noise and the initial weights."""
    steps: PositiveInt
    """Optimizer steps in all."""
    batch_size: PositiveInt
    """Samples a step over all workers; the number of workers must divide it."""
    num_workers: PositiveInt = 1
    """Ray Train workers (DDP); part of what determines bits, not which samples a step sees."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    log_every: PositiveInt = 10
    """Steps between points of the loss curve, each the mean over them; divides checkpoint_every."""
    tensorboard: Uri | None = None
    """Folder for TensorBoard's event files (needs the extra ray-dit[tensorboard])."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainingConfig":
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}: change one of them"
            )
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} is not a multiple of log_every {self.log_every}"
            )
        return self


class VAESizeConfig(Config):
    """The shape of a diffusers AutoencoderKL; the latents are 2**(len(block_out_channels)-1) times smaller."""

    latent_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (8, 16, 32)
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 4
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _divides(self) -> "VAESizeConfig":
        odd = [channels for channels in self.block_out_channels if channels % self.norm_num_groups]
        if odd:
            raise ValueError(
                f"block_out_channels {odd[0]} is not a multiple of norm_num_groups {self.norm_num_groups}"
            )
        return self


class TrainVaeConfig(TrainingConfig):
    """`ray-dit train-vae`: a small AutoencoderKL on your pictures, where Stable Diffusion's VAE does not fit."""

    images: ImagesConfig
    vae: VAESizeConfig = VAESizeConfig()
    steps: PositiveInt = 600
    batch_size: PositiveInt = 32
    checkpoint_every: PositiveInt = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine")
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the KL term (a mean over latent values) against the reconstruction error."""


class EncodeConfig(ShardsConfig):
    """`ray-dit encode`: pictures to latents (moments of the VAE's posterior) in shards."""

    PLACEMENT: ClassVar[frozenset[str]] = ShardsConfig.PLACEMENT | {"vae", "use_gpu", "repair"}
    images: ImagesConfig
    vae: VaeSource
    """The VAE: a folder made by train-vae, any diffusers AutoencoderKL folder, or a hub id."""
    mirror: bool = True
    """Encode each picture's mirror image too; turn it off where a mirror image is a wrong picture."""
    shard_size: PositiveInt = 1024
    """Pictures a shard."""
    batch_size: PositiveInt = 32
    """Pictures the VAE sees at once."""
    use_gpu: bool = False
    """Give each actor a GPU."""
    repair: bool = False
    """First read all that is there again, and make damaged or missing shards anew."""


class DiTSizeConfig(Config):
    """Size of the DiT to train; the latents' shape and the classes come from the data.

    What is not given is that of the preset, of the model to start from (init_from), or else of DiT-S/2.
    """

    preset: str | None = None
    """A published size such as DiT-XL/2: patch_size, hidden_size, depth and num_heads."""
    patch_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    """By default 4."""
    class_dropout_prob: Fraction | None = None
    """By default 0.1."""
    learn_sigma: bool | None = None
    """By default True."""

    def resolve(
        self, *, input_size: int, in_channels: int, num_classes: int, base: DiTConfig | None = None
    ) -> DiTConfig:
        """The full shape for latents of this size and that many classes; ``base``: the model to start from."""
        size = (base or DiTConfig.preset("DiT-S/2")).model_dump(include=set(DiTSizeConfig.model_fields))
        if self.preset is not None:
            preset = DiTConfig.preset(self.preset)
            size |= preset.model_dump(include={"patch_size", "hidden_size", "depth", "num_heads"})
        size |= self.model_dump(exclude={"preset"}, exclude_none=True)
        return DiTConfig(**size, input_size=input_size, in_channels=in_channels, num_classes=num_classes)


class TrainConfig(TrainingConfig):
    """`ray-dit train`: a DiT on latents, with DDP on Ray Train."""

    PLACEMENT: ClassVar[frozenset[str]] = TrainingConfig.PLACEMENT | {"latents", "init_from", "model_output"}
    latents: Uri
    """Folder made by encode."""
    model_output: Uri | None = None
    """Folder the finished model goes to; by default `model` inside output."""
    model: DiTSizeConfig = DiTSizeConfig()
    diffusion: DiffusionOverrides = DiffusionOverrides()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: PositiveInt = 400_000
    batch_size: PositiveInt = 256
    checkpoint_every: PositiveInt = 5000
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Decay of the averaged weights; warmed up as (1 + step) / (10 + step), so that short runs are usable."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR weighting of the loss (Hang et al. 2023); off by default, as in the paper."""
    init_from: Uri | None = None
    """Model folder to start from: size and schedule are its own; class count, resolution and schedule may differ."""
    label_init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial label vectors. 0.02 is the paper's, for runs of 100,000s of steps; with 1 the
    labels take hold within hundreds."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    sampler: SamplerConfig = SamplerConfig()
    """For the sample grids, and the defaults stored with the model."""
    grid_per_class: NonNegativeInt = 8
    """Pictures a class in the sample grid made at each checkpoint, of the first ten classes; 0 makes none."""


class GenerateConfig(ShardsConfig):
    """`ray-dit generate`: labelled pictures by the number, in shards."""

    PLACEMENT: ClassVar[frozenset[str]] = ShardsConfig.PLACEMENT | {"model", "use_gpu", "repair"}
    model: Uri
    """Model folder."""
    num_images: PositiveInt | None = None
    """Pictures in all, as equal over the classes as can be; this or per_class."""
    per_class: PositiveInt | None = None
    """Pictures a class; this or num_images."""
    classes: tuple[str, ...] | None = None
    """Classes by name or number; all by default."""
    sampler: SamplerOverrides = SamplerOverrides()
    """What differs from the sampler stored with the model."""
    seed: Seed = 0
    shard_size: PositiveInt = 1000
    """Pictures a shard."""
    batch_size: PositiveInt = 50
    """Pictures the model sees at once; always that many (the last is padded), since it decides the last bits."""
    precision: Precision = "float32"
    """What the transformer's matrix products compute in; bfloat16 is faster and changes pixels a little."""
    use_gpu: bool = False
    """Give each actor a GPU."""
    repair: bool = False
    """First read all that is there again, and make damaged or missing shards anew."""

    @model_validator(mode="after")
    def _count(self) -> "GenerateConfig":
        if (self.num_images is None) == (self.per_class is None):
            raise ValueError("give one of num_images and per_class")
        if self.classes == ():
            raise ValueError("classes needs a name or number, or leave it out for all of them")
        return self


class ClassifierConfig(Config):
    """The small convolutional classifier that judges pictures."""

    steps: PositiveInt = 600
    batch_size: PositiveInt = 64
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    width: PositiveInt = 16
    """Channels of the first layer."""


class EvaluateConfig(ShardsConfig):
    """`ray-dit evaluate`: how good a generated dataset is, beside held-out real pictures."""

    PLACEMENT: ClassVar[frozenset[str]] = ShardsConfig.PLACEMENT | {"dataset"}
    images: ImagesConfig
    """The real pictures; the same split as encode's, so give it the same size and heldout."""
    dataset: Uri
    """Folder made by generate."""
    classifier: ClassifierConfig = ClassifierConfig()
    seed: Seed = 0


class ReportConfig(Config):
    """`ray-dit report`: one HTML file about a whole pipeline run."""

    images: Uri
    """Folder of the real pictures."""
    vae: VaeSource | None = None
    """Folder made by train-vae."""
    latents: Uri
    """Folder made by encode."""
    run: Uri
    """Folder made by train."""
    model: Uri
    """Model folder."""
    dataset: Uri
    """Folder made by generate."""
    evaluation: Uri
    """Folder made by evaluate."""
    output: Uri
    """The HTML file."""


class InfoConfig(Config):
    """`ray-dit info`: what a folder holds, how far it is, and what it was made from."""

    uri: Uri
    """Folder of any stage."""


class VerifyConfig(Config):
    """`ray-dit verify`: reads every object of a folder's jobs again and compares it with its recorded sha256."""

    uri: Uri
    """Folder of any stage, or one that holds several."""


class GcConfig(Config):
    """`ray-dit gc`: removes temporary files and unfinished uploads that killed processes left."""

    uri: Uri
    """Folder of any stage."""
    older_than: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds; younger leftovers may belong to work in progress and stay."""


class ImportConfig(Config):
    """`ray-dit import-checkpoint`: published or diffusers' DiT weights as a model folder."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset(
        {"source", "output", "vae", "labels", "accept_fingerprint"}
    )
    source: Uri
    """An official .pt, a .safetensors with the same names, or a diffusers folder (pipeline or transformer)."""
    output: Uri
    """Model folder to write: a path or any fsspec URI."""
    vae: VaeSource | None = None
    """VAE folder, copied in, or hub id, fetched when needed; by default the pipeline's own, else sd-vae-ft-ema."""
    scale: float | tuple[float, ...] | None = None
    """The model's x_start is (latents - shift) * scale, one number or one a channel; by default what the source tells,
    else 0.18215, Stable Diffusion's."""
    shift: float | tuple[float, ...] | None = None
    """See scale; by default what the source tells, else 0."""
    diffusion: DiffusionOverrides = DiffusionOverrides()
    """The schedule the model was trained on, where the source does not tell it."""
    labels: str | None = None
    """imagenet, or a file of class names: labels.json, or one name a line; by default imagenet for 1000 classes."""
    num_heads: PositiveInt | None = None
    """Attention heads of a model of no preset's size; weights don't show them."""
    guidance_channels: PositiveInt | Literal["all"] | None = None
    """Latent channels guidance acts on; by default what the source tells, else 3, as for the published figures."""
    licence: str | None = None
    """Licence of the weights, for the model card."""
    accept_fingerprint: bool = False
    """Go on with an import that was begun with other library versions."""


class ExportConfig(Config):
    """`ray-dit export`: a model folder as diffusers' DiTPipeline, or as an official .pt."""

    model: Uri
    """Model folder."""
    output: Uri
    """Folder to write (diffusers), or .pt file (official): a path or any fsspec URI."""
    format: Literal["diffusers", "official"] = "diffusers"
