"""Model folders: what `train` and `import-checkpoint` write, and generate, serve and `ray_dit.load` read.

A folder holds config.json (`ModelConfig`), model.safetensors (the averaged weights, float32, under the official
checkpoints' names), labels.json, vae/ (diffusers' layout) and README.md, the model card. This module knows names,
shapes and bytes, but no network: whoever builds one says which shapes it wants.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ray_dit.config.model_folder import VAE_FOLDER, LatentsConfig, ModelConfig
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.storage.labels import Labels
from ray_dit.storage.manifest import job_key, manifest_objects, read_json, read_manifest
from ray_dit.storage.store import CHUNK, Store

__all__ = [
    "VAE_FOLDER", "LatentsConfig", "ModelConfig", "ModelFolder", "check_shapes", "model_card", "model_objects", "read_model",
    "read_safetensors",
]  # fmt: skip

MODEL_STAGE = "model"
"""What a model folder's job is called, whichever stage writes it."""
CONFIG_KEY = "config.json"
WEIGHTS_KEY = "model.safetensors"
LABELS_KEY = "labels.json"
CARD_KEY = "README.md"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found and understood; the weights are read when asked for."""

    store: Store
    config: ModelConfig
    labels: Labels

    @property
    def vae_uri(self) -> str:
        """What ``VAE.load`` takes: the folder of the VAE, or its hub id."""
        return self.store.child(VAE_FOLDER).uri if self.config.vae == VAE_FOLDER else self.config.vae

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by parameter name; see `read_safetensors`. UserError where they are not those that were written."""
        return read_safetensors(self.store, WEIGHTS_KEY, sha256=self._recorded().get(WEIGHTS_KEY))

    def check_vae(self) -> None:
        """UserError unless the VAE in the folder, if there is one, holds the bytes that were written."""
        if self.config.vae != VAE_FOLDER:
            return
        for key, sha256 in self._recorded().items():
            if key.startswith(f"{VAE_FOLDER}/") and self.store.sha256(key) != sha256:
                raise UserError(_damaged(self.store, key))

    def _recorded(self) -> dict[str, str]:
        """sha256 by key as the job of a model wrote them down; nothing for a folder of another kind or made by hand."""
        job = read_json(self.store, job_key(0), absent=None)
        if job is None or job["stage"] != MODEL_STAGE:
            return {}
        manifest = read_manifest(self.store, MODEL_STAGE)
        return {marker["key"]: marker["sha256"] for marker in manifest_objects(self.store, manifest)}


def read_model(uri: str) -> ModelFolder:
    """The model folder at ``uri``: configuration and labels checked, weights not yet read.

    Raises NotFound when there is none, and UserError when it is a folder of another kind or damaged.
    """
    store = Store.open(uri)
    try:
        data: Any = json.loads(store.get(CONFIG_KEY))
        if not isinstance(data, dict) or "format" not in data:
            raise UserError(f"{store.uri} holds {_kind(store)}, not a model: {_ADVICE}")
        config = ModelConfig.model_validate_json(json.dumps(data))
        labels = Labels.from_json(store.get(LABELS_KEY))
    except NotFound:
        raise NotFound(f"there is no model at {store.uri} ({_kind(store)}): {_ADVICE}") from None
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"the model at {store.uri} can't be read: {first_message(error)}: {_ADVICE}"
        ) from error
    if len(labels) != config.model.num_classes:
        raise UserError(
            f"the model at {store.uri} has {config.model.num_classes} classes, but its {LABELS_KEY} "
            f"names {len(labels)}: restore the file that belongs to it"
        )
    return ModelFolder(store, config, labels)


_ADVICE = "give the model folder that `ray-dit train` or `ray-dit import-checkpoint` made"


def _kind(store: Store) -> str:
    """What a folder without a model's config.json holds, in words for an error."""
    for key, words in (("model_index.json", "a diffusers pipeline, to be imported first"), ("_job.json", "")):
        try:
            data: Any = json.loads(store.get(key))
        except (NotFound, ValueError):
            continue
        return words or f"the result of `{data.get('stage', 'another stage')}`"
    return "something else" if any(True for _ in store.list("")) else "nothing is there"


def read_safetensors(store: Store, key: str, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors object by name, taking its size in memory once.

    Raises NotFound, and UserError when the object is damaged, or its bytes are not those of ``sha256`` where given.
    """

    def read(path: Path) -> dict[str, Tensor]:
        if sha256 is not None:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise UserError(_damaged(store, key))
        # pread, not a memory map: tensors then are aligned as torch's own, and outlive what happens to the file.
        return load_file(path, backend="pread")

    path = store.local_path(key)
    try:
        if path is not None:
            return read(path)
        with (
            tempfile.TemporaryDirectory() as scratch
        ):  # by way of a file: bytes and tensors would be twice the size
            path = Path(scratch) / "tensors"
            with store.open_file(key) as source, open(path, "wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
            return read(path)
    except (FileNotFoundError, NotFound):
        raise NotFound(f"there is no {key} in {store.uri}: restore it, or make the folder again") from None
    except SafetensorError as error:
        raise UserError(f"{key} in {store.uri} is damaged ({first_message(error)}): restore it") from error


def _damaged(store: Store, key: str) -> str:
    return f"{store.where(key)} is not what was written there: restore it, or make the folder again"


def check_shapes(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError, naming the parameters, unless ``state_dict`` has exactly the names and shapes of ``expected``.

    Numbers that are not floating-point, and tensors that are sparse or without data, are no weights either.
    """
    wrong = [
        f"{name} is {_shape(state_dict[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in state_dict and state_dict[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in expected],
        "of another shape": wrong,
        "no plain floating-point numbers": [name for name in state_dict if not _is_plain(state_dict[name])],
    }
    if found := _listed(problems):
        raise UserError(f"the weights in {where} don't fit the model ({found}): give the file made for it")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(problems: Mapping[str, Sequence[str]]) -> str:
    """Names by what is wrong with them, as an error says it; "" where there are none."""
    return "; ".join(f"{kind}: {_some_names(names)}" for kind, names in problems.items() if names)


def _some_names(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def model_objects(
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    labels: Labels,
    vae_files: Mapping[str, bytes],
    card: str,
) -> dict[str, bytes]:
    """The objects of a model folder by key; their bytes are a function of the arguments alone.

    ``vae_files`` are those of ``VAE.files()``; floating-point weights become float32.
    """
    if len(labels) != config.model.num_classes:
        raise ValueError(f"{len(labels)} labels for {config.model.num_classes} classes")
    weights = _plain(state_dict)
    return {
        CONFIG_KEY: (config.model_dump_json(indent=2) + "\n").encode(),
        WEIGHTS_KEY: save(weights, metadata={"format": "pt"}),
        LABELS_KEY: labels.to_json(),
        CARD_KEY: card.encode(),
        **{f"{VAE_FOLDER}/{name}": data for name, data in vae_files.items()},
    }


def _plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, float32 where floating-point; no two in the same memory, which safetensors refuses."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        plain[name] = tensor
    return plain


def model_card(config: ModelConfig, labels: Labels, *, title: str, notes: str = "") -> str:
    """README.md of a model folder: what it is, how to use it, origin and licence; YAML header as the hub reads it."""
    model, latents = config.model, config.latents
    size = f"{model.hidden_size} wide, {model.depth} blocks, {model.num_heads} heads, patches of {model.patch_size}"
    classes = f"{len(labels)} classes" if len(labels) else "no classes (unconditional)"
    guided = "all" if config.guidance_channels is None else f"the first {config.guidance_channels}"
    ask = f"labels=[{labels.names[0]!r}]" if len(labels) else "num_images=1"
    header = ["library_name: ray-dit", "pipeline_tag: unconditional-image-generation"]
    header += [f"license: {config.licence.lower()}"] if config.licence else []
    return "\n".join(
        [
            "---",
            *header,
            "---",
            f"# {title}",
            "",
            f"A class-conditional diffusion transformer (DiT, Peebles & Xie 2022): {size}; "
            f"{latents.image_size}x{latents.image_size} pictures, {classes}.",
            "",
            "```python",
            "import ray_dit",
            "",
            'pipe = ray_dit.load("path/of/this/folder")',
            f"pipe({ask}, seed=0)[0].save('image.png')",
            "```",
            "",
            f"* Weights: float32; origin: {config.origin or 'not recorded'}.",
            f"* Licence of the weights: {config.licence or 'not recorded; ask whoever made them'}.",
            f"* Latents: {model.in_channels} channels of {model.input_size}x{model.input_size}; "
            f"guidance acts on {guided} of them.",
            *([f"* {notes}"] if notes else []),
            "",
        ]
    )
