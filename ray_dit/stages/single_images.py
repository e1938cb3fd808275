"""`ray-dit generate --only`: single images of a dataset again, from what its folder says it was made with.

An image is made in its canonical batch, so that it has the pixels it has in the dataset, and stored as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import GenerateConfig, content_defaults
from ray_dit.core.media import SUFFIX_OF, encode
from ray_dit.errors import NotFound, UserError
from ray_dit.ledger.description import known_description, newest_begun
from ray_dit.runtime.session import check_resources, ray_session
from ray_dit.runtime.tasks import run_tasks
from ray_dit.stages.dataset_plan import STAGE, DatasetPlan
from ray_dit.stages.generate import Settled, settle
from ray_dit.stages.painter import Painter, encoded_image, encoding_of
from ray_dit.storage.open import open_output

Image = tuple[int, bytes]
"""Its number and its file."""
COUNTS = ("num_images", "per_class")


def make_single_images(config: GenerateConfig) -> list[str]:
    """Makes the images ``config.only`` of the dataset in ``config.output`` again.

    Returns where they are. UserError for numbers it has not got, and where the settings, the model or the
    requests are not those it was made with; NotFound where no dataset is.
    """
    assert config.only is not None
    assert config.only_output is not None
    parts = _parts(config.output)
    asked, config = config, _as_begun(config, parts["config"])
    settled = settle(config)
    plan = replace(settled.plan, classes=tuple(parts["config"]["classes"]))
    _refuse_other_settings(asked, settled, parts)
    _refuse_other_inputs(settled, parts["inputs"])
    numbers = sorted(set(config.only or ()))
    if numbers[-1] >= plan.num_images:
        raise UserError(
            f"{config.output} has the images 0 to {plan.num_images - 1}, and no image {numbers[-1]}: check "
            "--only"
        )
    place = open_output(config.only_output or "")
    written: list[str] = []
    with ray_session(config) as ray:
        gpus = 1 if config.use_gpu else 0
        check_resources(ray, config, cpus=config.threads, gpus=gpus)
        work = _shared_out(numbers, plan, config)
        for images in run_tasks(ray, paint, work, config, plan, threads=config.threads, gpus=gpus):
            for number, data in images:
                key = f"{number:09d}{suffix_of(config)}"
                place.put(key, data)
                written.append(place.where(key))
    return sorted(written)


def paint(config: GenerateConfig, plan: DatasetPlan, batches: Sequence[tuple[int, ...]]) -> list[Image]:
    """Makes images, those of one canonical batch together."""
    painter, made = Painter(config, plan), list[Image]()
    for numbers in batches:
        ids = plan.batch_of(numbers[0], config.batch_size)
        pixels = painter.batch(ids)
        made += [(number, image_file(config, pixels[number - int(ids[0])])) for number in numbers]
    return made


def image_file(config: GenerateConfig, pixels: NDArray[np.uint8]) -> bytes:
    """An image as in the dataset; where that holds plain pixels, as PNG."""
    return encode(pixels) if encoding_of(config) == "bmp" else encoded_image(config, pixels)


def suffix_of(config: GenerateConfig) -> str:
    """What the names of these files end in."""
    encoding = encoding_of(config)
    return SUFFIX_OF["png" if encoding == "bmp" else encoding]


def _shared_out(
    numbers: Sequence[int], plan: DatasetPlan, config: GenerateConfig
) -> list[list[tuple[int, ...]]]:
    """The images of each batch, for as many tasks as there may be actors."""
    batches: dict[int, list[int]] = {}
    for number in numbers:
        batches.setdefault(int(plan.batch_of(number, config.batch_size)[0]), []).append(number)
    every = [tuple(batch) for batch in batches.values()]
    tasks = min(config.most_actors, len(every))
    return [every[first::tasks] for first in range(tasks)]


def _parts(output: str) -> Mapping[str, Any]:
    """What the newest generation in a folder was begun with."""
    store = open_output(output)
    there = known_description(store, newest_begun(store))
    if there is None or there.get("stage") != STAGE:
        raise NotFound(f"{output} holds no dataset of ray-dit, whose images --only could make again")
    return there["parts"]


def _as_begun(config: GenerateConfig, stored: Mapping[str, Any]) -> GenerateConfig:
    """The configuration with all that decides bytes as the folder has it."""
    names = GenerateConfig.model_fields.keys() - {"classes", "sampler", *COUNTS}
    known = {
        name: value
        for name, value in (content_defaults(GenerateConfig) | dict(stored)).items()
        if name in names
    }
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    count = {
        "num_images": None if config.requests is not None else stored["num_images"],
        "per_class": None,
        "classes": None,
    }
    sampler = type(config.sampler).model_validate(stored["sampler"])
    return config.model_copy(update={**known, **count, "sampler": sampler})


def _refuse_other_settings(asked: GenerateConfig, settled: Settled, parts: Mapping[str, Any]) -> None:
    """UserError for a setting that was given and is not the folder's."""
    defaults, there = content_defaults(GenerateConfig), parts["config"]
    given = asked.content()
    names = [name for name in asked.model_fields_set if name in given and name not in ("classes", "sampler")]
    different = [name for name in names if _plain(given[name]) != _plain(there.get(name, defaults.get(name)))]
    different += [
        f"sampler.{name}"
        for name in asked.sampler.model_fields_set
        if _plain(given["sampler"][name]) != _plain(there["sampler"].get(name))
    ]
    if asked.classes is not None:
        resolve = settled.folder.labels.resolve
        classes = dict.fromkeys(resolve(name) for name in asked.classes)
        different += ["classes"] if [*classes] != [*there["classes"]] else []
    if different:
        raise UserError(
            f"{asked.output} was made with another {different[0]}: leave out what decides its images, which "
            "--only takes from the folder"
        )


def _refuse_other_inputs(settled: Settled, there: Mapping[str, str]) -> None:
    if "requests" in there and "requests" not in settled.inputs:
        raise UserError("this dataset was made by a list of requests: give it by --requests")
    for name, what in (("model", "the model"), ("requests", "the list of requests")):
        if settled.inputs.get(name) != there.get(name):
            raise UserError(f"{what} is not the one that this dataset was made with: give that one")


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, list | tuple) else value
