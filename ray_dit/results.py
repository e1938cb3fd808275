"""What each stage leaves, as types: the facts of its manifest and of the markers of its objects.

Knows no stage.

Stages meet only in storage, so this is all that one of them knows of another. A result is one stage's
manifest: LatentsResult is what `encode` leaves and `train` reads. What is named Facts is in the marker of one
object. Fields are those of the stored JSON: a new one needs a default, since folders of before lack it.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ray_dit.config import SamplerConfig
from ray_dit.formats.worker_history import History
from ray_dit.ledger.results import Facts, Result

Value = float | int | dict[str, float | None]
"""Of a figure: a number, or one for each class by name (None: the class has no image)."""


UNREADABLE = "unreadable"
FLEETING = ("gone", "changed")
"""Codes of images that may be read another time."""


def _settings(parts: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of these settings that the parts of a fingerprint have."""
    config = parts.get("config", {})
    return {name: config[name] for name in names if name in config}


class ShardFacts(Facts):
    """Of an object that a fan-out made."""

    shard: int
    """Its number."""


class Trained(Result):
    """What comes of a training."""

    history: History = ()
    """Which workers trained which steps; none where an earlier version did."""

    def of(self, history: History) -> Self:
        """This result with the worker history it has."""
        return self.model_copy(update={"history": history}) if history else self


class OfHistory(Facts):
    """Of an object that a training ends with."""

    history: str = ""
    """Hash of the worker history that made it."""


class VAEResult(Trained):
    """A trained VAE, in diffusers' layout."""

    stage_name: ClassVar[str] = "train-vae"

    psnr_heldout: float
    """Mean over held-out images (training ones where none are held out), in dB."""
    num_heldout: int
    """How many images that is the mean of."""
    steps: int
    loss: float
    """Mean of the last steps."""
    bad: int = 0
    """Images that could not be read, listed in quarantine.parquet; written where there are any."""

    def expected(self, parts: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        return _settings(parts, "steps")


@dataclass(frozen=True)
class BadImage:
    """An image that was set aside, and why; what is not known of it is None."""

    key: str
    reason: str
    """A sentence."""
    code: str = UNREADABLE
    """The reason in a word; `folders/quarantine.py` has all."""
    label: int | None = None
    object: str | None = None
    """Key of the object it lies in."""
    bytes: int | None = None
    """How many were read of it."""
    sha256: str | None = None
    """Of those."""
    format: str | None = None
    """As Pillow names it, such as JPEG."""
    mode: str | None = None
    """As Pillow names it, such as CMYK."""
    width: int | None = None
    height: int | None = None

    @property
    def is_fleeting(self) -> bool:
        """Whether it may be read another time: what is made without it may come out differently then."""
        return self.code in FLEETING

    @classmethod
    def as_before(cls, key: str, reason: str) -> "BadImage":
        """What markers of earlier versions say of one."""
        return cls(key, reason, reason if reason in FLEETING else UNREADABLE)


class PrecisionError(Facts):
    """How far the moments of a sample are from those computed in float32."""

    images: int
    """How many the sample has: those of the first batch of the first shard."""
    max: float
    """Largest absolute difference of a value."""
    mean: float
    """Mean absolute difference."""
    relative: float
    """Root mean square of the difference, over that of the float32 moments."""


class LatentShardFacts(ShardFacts):
    """Of one shard of latents."""

    rows: int
    seen: int
    """Images it should hold: those that could be read, ``rows``, and those that could not."""
    bad: tuple[BadImage | tuple[str, str], ...]
    """The images that could not be read; earlier versions wrote key and reason."""
    converted: int = 0
    """Images of which something had to be converted; ``conversions`` counts what, by its name."""
    conversions: dict[str, int] = {}
    train_rows: int
    """Rows that are not held out."""
    moments_sha256: str
    sum: tuple[float, ...]
    """Of the posterior's mean over all positions of the training rows, per channel."""
    sum_squares: tuple[float, ...]
    """As ``sum``, of the latents' expected square."""
    precision_error: PrecisionError | None = None
    """Of the first shard, where it was not computed in float32."""
    images_sha256: str | None = None
    """Of the rows' ``image_sha256``, one after the other; None in shards of earlier versions."""
    index_sha256: str | None = None
    """Of the shard's bytes but for its moments; None in shards of earlier versions, whose rows can't be read
    one by one."""
    index_spans: tuple[tuple[int, int], ...] = ()
    """Where those bytes lie: start and end of each part."""

    @property
    def set_aside(self) -> tuple[BadImage, ...]:
        """The bad images, whichever version wrote them down."""
        return tuple(e if isinstance(e, BadImage) else BadImage.as_before(*e) for e in self.bad)

    def adds_up(self, planned: int) -> bool:
        """Whether each of the images that were ``planned`` is accounted for."""
        most = max(self.conversions.values(), default=0)
        return self.rows + len(self.bad) == self.seen == planned and most <= self.converted <= self.rows


class Duplicates(Facts):
    """Images whose files have the same bytes as another's; of each set of such files one is not counted."""

    within_classes: int
    """Copies of an image of their own class."""
    across_classes: int
    """Copies of an image of another class: one of them has a wrong label."""
    heldout: int
    """Training images that are copies of a held-out one, and count as held out."""
    sum: tuple[float, ...] = ()
    """Of those, as of a shard; they are no part of ``mean`` and ``std``."""
    sum_squares: tuple[float, ...] = ()


class LatentsResult(Result):
    """Latents of a folder of images."""

    stage_name: ClassVar[str] = "encode"

    classes: tuple[str, ...]
    """Names in the order of their numbers."""
    image_size: int
    latent_shape: tuple[int, int, int]
    """Channels, height, width."""
    rows: int
    train_rows: int
    """Rows that are not held out."""
    bad: int
    """Images that could not be read, listed in quarantine.parquet (quarantine.tsv by earlier versions)."""
    converted: int | None = None
    """Images of which something had to be converted; None where it was not counted yet."""
    conversions: dict[str, int] = {}
    """How many images took each conversion; docs/images.md has the names."""
    scaling_factor: float
    """The VAE's own, from its configuration."""
    mean: tuple[float, ...]
    """Of the raw latents of the training rows, per channel."""
    std: tuple[float, ...]
    precision_error: PrecisionError | None = None
    """Where the VAE did not compute in float32."""
    duplicates: Duplicates | None = None
    """Exact copies among the images, listed in duplicates.parquet; None where nobody has looked for them."""

    def expected(self, parts: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        shards = [LatentShardFacts.model_validate(facts) for facts in objects]
        train_rows = sum(shard.train_rows for shard in shards)
        twice = [self.duplicates] if self.duplicates is not None and self.duplicates.heldout else []
        train_rows -= sum(known.heldout for known in twice)
        per_row = math.prod(self.latent_shape[1:])
        mean, squares = (
            [math.fsum(column) / max(train_rows * per_row, 1) for column in zip(*sums, strict=True)]
            for sums in (
                [shard.sum for shard in shards] + [tuple(-value for value in known.sum) for known in twice],
                [shard.sum_squares for shard in shards]
                + [tuple(-value for value in known.sum_squares) for known in twice],
            )
        )
        return {
            "rows": sum(shard.rows for shard in shards),
            "train_rows": train_rows,
            "bad": sum(len(shard.bad) for shard in shards),
            **({} if self.converted is None else conversions_of(shards)),
            **precision_error_of(shards),
            "mean": mean,
            "std": [math.sqrt(max(s - m * m, 1e-12)) for s, m in zip(squares, mean, strict=True)],
        }


def precision_error_of(shards: Sequence[LatentShardFacts]) -> dict[str, Any]:
    """``precision_error`` of the first shard; nothing where it has none."""
    error = shards[0].precision_error if shards else None
    return {} if error is None else {"precision_error": error.to_json()}


def conversions_of(shards: Iterable[LatentShardFacts]) -> dict[str, Any]:
    """``converted`` and ``conversions`` of all shards together."""
    conversions: Counter[str] = Counter()
    converted = 0
    for shard in shards:
        conversions.update(shard.conversions)
        converted += shard.converted
    return {"converted": converted, "conversions": dict(sorted(conversions.items()))}


class TrainingResult(Trained):
    """A finished training run; the model lies in a folder of its own."""

    stage_name: ClassVar[str] = "train"

    steps: int
    samples: int
    """Steps times batch size."""
    loss: float
    """Mean of the last steps."""

    def expected(self, parts: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        known = _settings(parts, "steps", "batch_size")
        return {"steps": known["steps"], "samples": math.prod(known.values())} if len(known) == 2 else {}


class ModelResult(Trained):
    """A model folder, whose settings are in its config.json."""

    stage_name: ClassVar[str] = "model"

    steps: int | None = None
    """Of the training it comes from; None for an imported one."""
    origin: str | None = None
    """Of an imported one."""


class ImageShardFacts(ShardFacts):
    """Of one shard of a generated dataset."""

    rows: int
    pixels_sha256: str
    """Of the images, whatever format they are stored in."""
    first_id: int
    classes: dict[str, int]
    """How many images each class has, by its number."""


class UsedSampler(Facts):
    """The sampler that made a dataset, with every setting; the name may be that of another version's."""

    name: str
    num_inference_steps: int
    guidance_scale: float

    @classmethod
    def of(cls, config: SamplerConfig) -> "UsedSampler":
        """The sampler of this configuration."""
        return cls.model_validate(config.model_dump(mode="json"))


class DatasetResult(Result):
    """A generated dataset."""

    stage_name: ClassVar[str] = "generate"

    rows: int
    classes: tuple[str, ...]
    """Names of all classes of the model in the order of their numbers; none of a model without."""
    labels: tuple[int, ...]
    """Numbers of the classes that were asked for."""
    image_size: int | None = None
    """Side in pixels; None where the dataset was made before it was written down."""
    sampler: UsedSampler
    pixels_sha256: str
    """Of the shards' hashes of their pixels."""
    wordnet_ids: tuple[str, ...] = ()
    """Of all classes; none where they are not known, or were not written down yet."""
    stored_as: str = "parquet"
    """The format of its shards, as `--format` names it."""
    label_rule: str = "balanced"
    """How each image came by its class: balanced, random, or requests."""
    guidance_scales: tuple[float, ...] = ()
    """Those that were drawn from; none where each image has its sampler's, or its request's."""
    sampler_tables_sha256: tuple[str, ...] = ()
    """Of the coefficients of each sampler that was used, the job's own first; none where it was not written
    down yet."""

    def expected(self, parts: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        rows, pixels = 0, hashlib.sha256()
        for facts in map(ImageShardFacts.model_validate, objects):
            rows += facts.rows
            pixels.update(facts.pixels_sha256.encode())
        return {"rows": rows, "pixels_sha256": pixels.hexdigest()}


class ClassifierShape(Facts):
    """What must be known of a classifier to load its weights."""

    num_classes: int
    image_size: int
    width: int


class ClassifierFacts(ClassifierShape):
    """Of one trained classifier."""

    classifier: str
    """Its name."""
    images: int
    """How many it was trained on."""


class PieceFacts(ShardFacts):
    """Of the measures of one piece of the images that are compared."""

    of: Literal["train", "heldout", "generated"]
    seen: int
    """Images it should hold: those that could be read, ``rows``, and those that could not."""
    rows: int
    bad: tuple[tuple[str, str], ...]
    """Key of each image that could not be read, and why."""


class EvaluationResult(Result):
    """How good a dataset is."""

    stage_name: ClassVar[str] = "evaluate"

    num_images: int
    """Generated ones."""
    num_train: int
    num_heldout: int
    bad: int = 0
    """Real images that could not be read; written where there are any."""

    @property
    def figures(self) -> Mapping[str, Value]:
        """By name, as the figures of `ray_dit/metrics` gave them.

        A name with ``real`` is the ceiling of the one without.
        """
        extra: dict[str, Any] = self.model_extra or {}
        return extra

    def expected(self, parts: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        rows = dict.fromkeys(("generated", "train", "heldout"), 0)
        for facts in objects:
            if "of" in facts:  # the others are those of classifiers
                piece = PieceFacts.model_validate(facts)
                rows[piece.of] += piece.rows
        counts = ("num_images", "num_train", "num_heldout")
        return dict(zip(counts, rows.values(), strict=True))


RESULTS: Mapping[str, type[Result]] = {
    result.stage_name: result
    for result in (VAEResult, LatentsResult, TrainingResult, ModelResult, DatasetResult, EvaluationResult)
}
"""What each stage leaves, by its name."""
