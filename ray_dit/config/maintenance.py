"""Settings of `ray-dit info`, `verify` and `gc`, which make no job."""

from typing import Annotated

from pydantic import Field

from ray_dit.config.base import Config, Uri


class InfoConfig(Config):
    """`ray-dit info`: what a folder holds, how far it is, and what it was made from."""

    uri: Uri
    """Folder of any stage."""
    sheet: Uri | None = None
    """Of latents: write a PNG here that shows some images of some classes, decoded by the folder's VAE."""


class VerifyConfig(Config):
    """`ray-dit verify`: rereads every object of a folder's jobs and compares it with its recorded sha256."""

    uri: Uri
    """Folder of any stage, or one that holds several."""


class GcConfig(Config):
    """`ray-dit gc`: removes temporary files and unfinished uploads that killed processes left."""

    uri: Uri
    """Folder of any stage."""
    older_than: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds; younger leftovers may belong to work in progress and stay."""
