"""diffusers' AutoencoderKL as the project uses it: images to raw moments, raw latents to images.

It knows nothing of diffusion: scale and shift of the latents are applied by others (core.latents).
diffusers is imported when a VAE is made, not with this module.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from ray_dit.config import VAESizeConfig
from ray_dit.core.compiled import compile_static
from ray_dit.core.flops import count_flops
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.folders.model import recorded_hashes
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.model_folder import VAE_FOLDER
from ray_dit.ledger.restore import damaged, hash_of
from ray_dit.ledger.results import Manifest
from ray_dit.results import LatentsResult, VAEResult
from ray_dit.storage.local_file import local_folder
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
WEIGHTS_NAMES = (WEIGHTS_NAME, "diffusion_pytorch_model.bin")
PIECES = (8, 4, 2, 1)
"""Latents that compiled code decodes at once: any number of them is a sum of these, with few left over."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class VAE:
    """An AutoencoderKL; ``module`` is the diffusers model itself, for those who train it."""

    def __init__(self, module: Any, *, decoder: nn.Module | None = None) -> None:
        self.module = module
        self._decoder = decoder

    @classmethod
    def create(cls, size: VAESizeConfig, *, seed: int = 0) -> "VAE":
        """A new VAE for RGB images, its initial weights a function of (size, seed).

        It is for inference, like a loaded one.

        torch may multiply in another order for weights that require gradients, so a VAE that is only used
        must not have them: it would differ in the last bits from the same VAE loaded from a folder.
        """
        levels = len(size.block_out_channels)
        blocks: Any = {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _autoencoder_kl()(**size.model_dump(), **blocks, scaling_factor=1.0)
        return cls(module.eval().requires_grad_(False))

    @classmethod
    def load(cls, source: str, device: str | torch.device = "cpu") -> "VAE":
        """The VAE in a diffusers folder (a path, any fsspec URI, or its ``vae/``) or of a hub id.

        float32, eval mode.

        Raises UserError when ``source`` is none of these, or holds something else.
        """
        store = find_vae(source)
        if store is None:
            module = _from_hub(source)
        else:
            _check_trained(open_store(source))
            with local_folder(store, _needed(store)) as folder:
                module = _from_folder(folder, source)
        return cls(module.to(device).requires_grad_(False))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; moments have twice as many."""
        return int(self.module.config.latent_channels)

    @property
    def downsample(self) -> int:
        """Pixels of an image's side for each of its latents'."""
        return 2 ** (len(self.module.config.block_out_channels) - 1)

    def to_precision(self, precision: str) -> "VAE":
        """A VAE that computes in ``float32``, ``bfloat16`` or ``float16``: this one, or a copy."""
        if precision == "float32":
            return self
        # torch's own ``to``: that of diffusers warns of nothing
        return VAE(nn.Module.to(copy.deepcopy(self.module), getattr(torch, precision)))

    def compiled(self) -> "VAE":
        """A VAE of the same weights that decodes by compiled code, whose last bits are others.

        Latents are decoded 8, 4, 2 or 1 at once, so there are four graphs at most, each compiled at its first
        call.
        """
        return VAE(self.module, decoder=compile_static(_Decoder(self.module)))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2C h w"]:
        """Moments of the posterior, raw: mean, then log-variance, in float32.

        ``images`` are RGB in [-1, 1].
        """
        return self.module.encode(images.to(self.module.dtype)).latent_dist.parameters.float()

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images of raw latents, RGB, about [-1, 1] and not clamped; in float32."""
        if self._decoder is None:
            return self.module.decode(latents.to(self.module.dtype)).sample.float()
        # a compiler tells tensors of inference mode from others, and would make code for each kind
        with torch.inference_mode(False), torch.no_grad():
            given = latents.to(self.module.dtype, memory_format=torch.contiguous_format, copy=True)
            return torch.cat([self._decoder(piece) for piece in given.split(pieces_of(len(given)))]).float()

    def encode_flops(self, image_size: int) -> int:
        """Floating-point operations of encoding one image."""
        encoder = copy.deepcopy(self.module).to("meta")
        image = torch.empty(1, 3, image_size, image_size, device="meta")
        return count_flops(lambda: encoder.encode(image))

    @torch.no_grad()
    def fold_normalisation(self, shift: float | Sequence[float], scale: float | Sequence[float]) -> None:
        """Makes the VAE, in place, one of latents (z - shift) * scale.

        ``encode`` gives their moments, ``decode`` takes them.

        Shift and scale are one number, or one per channel; they go into the 1x1 convolutions at the VAE's
        neck. Raises UserError for a VAE without these.
        """
        before, after = self.module.quant_conv, self.module.post_quant_conv
        if before is None or after is None:
            raise UserError(
                "this VAE has no 1x1 convolutions (quant_conv) that could take up shift and scale"
            )
        channels = self.latent_channels
        shifts, scales = (torch.tensor(v, dtype=torch.float64).expand(channels) for v in (shift, scale))
        mean, log_variance = before.bias.double().chunk(2)
        before.bias.copy_(torch.cat([(mean - shifts) * scales, log_variance + 2 * scales.abs().log()]))
        before.weight[:channels] *= scales[:, None, None, None].float()
        after.bias.copy_(after.bias.double() + after.weight[:, :, 0, 0].double() @ shifts)
        after.weight.copy_(after.weight.double() / scales[None, :, None, None])

    def files(self) -> dict[str, bytes]:
        """The VAE as diffusers lays it out, by file name.

        The bytes are a function of weights and configuration.
        """
        config = {k: v for k, v in json.loads(self.module.to_json_string()).items() if k != "_name_or_path"}
        weights = {k: v.detach().cpu().contiguous() for k, v in self.module.state_dict().items()}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        return {CONFIG_NAME: text.encode(), WEIGHTS_NAME: save(weights, metadata={"format": "pt"})}


_OPTIONS: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
"""Memory is no concern for a VAE, and diffusers warns if it may try to save some without `accelerate`."""


def pieces_of(count: int) -> list[int]:
    """The fewest of ``PIECES`` whose sum is ``count``, the largest first."""
    found: list[int] = []
    for size in PIECES:
        found += [size] * (count // size)
        count %= size
    return found


class _Decoder(nn.Module):
    """What diffusers' ``decode`` computes, without what it does around that."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.post_quant_conv = module.post_quant_conv or nn.Identity()
        self.decoder = module.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


def _autoencoder_kl() -> Any:
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    return AutoencoderKL


def find_vae(source: str) -> Store | None:
    """The folder that holds the VAE's configuration: ``source`` or its ``vae/``.

    None where it must be a hub id.

    Raises NotFound when it can be neither.
    """
    store = open_store(source)
    for folder in (store.child("vae"), store):
        try:
            text = folder.get(CONFIG_NAME)
        except NotFound:
            continue
        _check_class(text, folder.uri)
        return folder
    if HUB_ID.fullmatch(source) and not os.path.exists(source):
        return None
    raise NotFound(
        f"there is no VAE at {source}: give a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a hub id"
    )


def _check_class(config: bytes, uri: str) -> None:
    try:
        name = parse_json(config).get("_class_name")
    except (ValueError, AttributeError):
        name = None
    if name != "AutoencoderKL":
        raise UserError(
            f"{uri} holds {str(name or 'no diffusers model')[:100]}, not an AutoencoderKL; give the folder "
            "of a VAE"
        )


def _check_trained(store: Store) -> None:
    """UserError where the folder is that of `train-vae` and a file of it is not what was written."""
    for key, sha256 in recorded_hashes(store, VAEResult).items():
        if hash_of(store, key) != sha256:
            raise damaged(store, key)


def _needed(store: Store) -> list[str]:
    """The objects to fetch from a VAE's folder; NotFound where there are no weights."""
    for name in WEIGHTS_NAMES:
        if store.head(name) is not None:
            return [CONFIG_NAME, name]
    if store.local_path(CONFIG_NAME) is not None:  # nothing to fetch: diffusers may know another layout
        return [CONFIG_NAME]
    raise NotFound(f"there is no {WEIGHTS_NAME} in {store.uri}; give a complete VAE folder")


def _from_folder(folder: Path, source: str) -> Any:
    try:
        # from_pretrained, not load_state_dict: it renames the parameters of old checkpoints (sd-vae-ft-*).
        return _autoencoder_kl().from_pretrained(folder, local_files_only=True, **_OPTIONS)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the VAE in {source} can't be read: {first_message(error)}; make or copy it again"
        ) from error


def _from_hub(hub_id: str) -> Any:
    try:
        return _autoencoder_kl().from_pretrained(hub_id, **_OPTIONS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no folder {hub_id}, and no VAE of that hub id could be fetched "
            f"({first_message(error)}); give a folder, or check the id and the network"
        ) from error


def files_sha256(files: dict[str, bytes]) -> str:
    """One hash of a VAE's files, in order of their names: stands for the VAE in fingerprints."""
    return _joined(hashlib.sha256(files[name]).digest() for name in sorted(files))


def check_latents_vae(latents: Store, manifest: Manifest[LatentsResult]) -> None:
    """Damaged unless the VAE in a latents folder is the one whose hash the job's fingerprint has."""
    wanted = manifest.parts.get("inputs", {}).get("vae")
    found = (hash_of(latents, f"{VAE_FOLDER}/{name}") or "" for name in sorted((CONFIG_NAME, WEIGHTS_NAME)))
    if wanted is not None and _joined(map(bytes.fromhex, found)) != wanted:
        raise damaged(latents, VAE_FOLDER)


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
