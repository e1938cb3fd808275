"""The Inception network FID is defined by (Heusel et al. 2017).

It is torch-fidelity's port of the original TensorFlow graph.

Resizing is the graph's own. torch-fidelity is an extra, `pip install -c constraints.txt -e '.[fid]'`, which
brings torchvision; it is imported when the network is loaded. Weights are data from elsewhere: they must hold
no code.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from ray_dit.errors import UserError, first_message
from ray_dit.metrics.base import FeatureNetwork, Network, Published, Seen

FEATURE_DIM = 2048
PUBLISHED = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
PUBLISHED_SHA256 = "6726825d"
"""What the hash of the published weights begins with; their name says it."""


def load(weights: Callable[[], bytes], published: Published) -> Network:
    """The network on its device.

    Raises:
        UserError: torch-fidelity is missing, or the weights of ``published.source`` are not what they should
            be.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UserError(
            f"FID needs torch-fidelity ({first_message(error)}): pip install -c constraints.txt -e '.[fid]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        path.write_bytes(checked_weights(weights(), published.source))
        network: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(FEATURE_DIM)], feature_extractor_weights_path=str(path)
        ).to(published.device)

    @torch.inference_mode()
    def see(images: UInt8[np.ndarray, "N S S 3"]) -> Seen:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(published.device)
        return Seen(network(batch)[0].cpu(), None)

    return see


def checked_weights(data: bytes, source: str) -> bytes:
    """The same bytes, once they are known to hold tensors and no code.

    torch-fidelity would run what is in them.
    """
    if source == PUBLISHED and not hashlib.sha256(data).hexdigest().startswith(PUBLISHED_SHA256):
        raise UserError(f"{source} was damaged on its way: fetch it by hand and give it by --inception")
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{source} is no file of weights ({first_message(error)}): give torch-fidelity's"
        ) from error
    return data


NETWORK = FeatureNetwork(
    name="inception", dim=FEATURE_DIM, knows_classes=False, load=load, published=PUBLISHED
)
