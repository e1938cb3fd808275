"""Settings of `ray-dit report`, which makes no job: nothing of it is in a fingerprint."""

from ray_dit.config.base import Config, Uri, VaeSource


class ReportConfig(Config):
    """`ray-dit report`: one HTML file about a whole pipeline run."""

    images: Uri
    """Folder of the real images."""
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
