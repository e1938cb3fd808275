"""Model folders opened from a store.

Configuration and labels are checked, weights are read when asked for, and damage is reported.

Knows no network: whoever builds one says which shapes it wants (``formats.weights.check_shapes``).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import (
    CONFIG_KEY,
    LABELS_KEY,
    VAE_FOLDER,
    WEIGHTS_KEY,
    ModelConfig,
)
from ray_dit.formats.weights import load_weights
from ray_dit.ledger.manifest import job_key, manifest_objects, read_manifest
from ray_dit.ledger.restore import hash_of
from ray_dit.ledger.results import Facts, Result
from ray_dit.ledger.stored_json import read_json
from ray_dit.results import ModelResult
from ray_dit.storage.local_file import local_file
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store


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
        """The weights by parameter name; see `read_safetensors`.

        UserError where they are not those that were written.
        """
        return read_safetensors(
            self.store, WEIGHTS_KEY, sha256=recorded_hashes(self.store, ModelResult).get(WEIGHTS_KEY)
        )

    def check_vae(self) -> None:
        """UserError unless the VAE in the folder, if there is one, holds the bytes that were written."""
        if self.config.vae != VAE_FOLDER:
            return
        for key, sha256 in recorded_hashes(self.store, ModelResult).items():
            if key.startswith(f"{VAE_FOLDER}/") and hash_of(self.store, key) != sha256:
                raise UserError(_damaged(self.store, key))


def recorded_hashes(store: Store, result: type[Result]) -> dict[str, str]:
    """sha256 by key as a finished job of that stage, of few objects, wrote them down.

    It is empty for a folder of another kind or made by hand. UserError where the job is unfinished.
    """
    job = read_json(store, job_key(0), absent=None)
    if job is None or job.get("stage") != result.stage_name:
        return {}
    manifest = read_manifest(store, result)
    return {marker.key: marker.sha256 for marker in manifest_objects(store, manifest, Facts)}


def read_model(uri: str) -> ModelFolder:
    """The model folder at ``uri``: configuration and labels checked, weights not yet read.

    Raises NotFound when there is none, and UserError when it is a folder of another kind or damaged.
    """
    store = open_store(uri)
    try:
        config_text = store.get(CONFIG_KEY)
        data: Any = parse_json(config_text)
        if not isinstance(data, dict) or "format" not in data:
            raise UserError(f"{store.uri} holds {_kind(store)}, not a model: {_ADVICE}")
        config = ModelConfig.model_validate_json(json.dumps(data))
        labels_text = store.get(LABELS_KEY)
        labels = Labels.from_json(labels_text)
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
    recorded = recorded_hashes(store, ModelResult)
    for key, text in ((CONFIG_KEY, config_text), (LABELS_KEY, labels_text)):
        sha256 = hashlib.sha256(text).hexdigest()
        if recorded.get(key, sha256) != sha256:
            raise UserError(_damaged(store, key))
    return ModelFolder(store, config, labels)


_ADVICE = "give the model folder that `ray-dit train` or `ray-dit import-checkpoint` made"


def _kind(store: Store) -> str:
    """What a folder without a model's config.json holds, in words for an error."""
    for key, words in (("model_index.json", "a diffusers pipeline, to be imported first"), ("_job.json", "")):
        try:
            data: Any = parse_json(store.get(key))
        except (NotFound, ValueError):
            continue
        stage = cast("dict[str, Any]", data).get("stage") if isinstance(data, dict) else None
        return words or f"the result of `{stage or 'another stage'}`"
    return "something else" if any(True for _ in store.list("")) else "nothing is there"


def read_safetensors(store: Store, key: str, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors object by name, taking its size in memory once.

    Raises NotFound, and UserError when the object is damaged, or its bytes are not those of ``sha256`` where
    given.
    """

    def read(path: Path) -> dict[str, Tensor]:
        if sha256 is not None:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise UserError(_damaged(store, key))
        return load_weights(path)

    try:
        with local_file(store, key) as path:  # by way of a file: bytes and tensors would be twice the size
            return read(path)
    except (FileNotFoundError, NotFound):
        raise NotFound(f"there is no {key} in {store.uri}: restore it, or make the folder again") from None
    except SafetensorError as error:
        raise UserError(f"{key} in {store.uri} is damaged ({first_message(error)}): restore it") from error


def _damaged(store: Store, key: str) -> str:
    return f"{store.where(key)} is not what was written there: restore it, or make the folder again"
