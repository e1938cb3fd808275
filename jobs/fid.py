"""FID of a generated dataset: `python -m jobs.fid --dataset URI --reference STATISTICS.npz`.

The features are those of the Inception network FID is defined by (Heusel et al. 2017), in torch-fidelity's port of the
original TensorFlow graph, resizing included: `pip install -c constraints.txt -e '.[fid]'`, which brings torchvision. Its weights (95 MB) are
fetched, or give the file by --inception. The statistics are a .npz with `mu` [2048] and `sigma` [2048, 2048] of the real
pictures, a path or URL; by default those of ImageNet at 256 pixels that published figures are measured against.

Hardware: a GPU reads some thousand pictures a second; a CPU about ten.
"""

import argparse
import hashlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import fsspec
import numpy as np
import torch
from torch import Tensor

from ray_dit.core.media import decode
from ray_dit.core.metrics import FeatureStatistics, frechet_distance
from ray_dit.errors import UserError, first_message
from ray_dit.folders.dataset import read_shard
from ray_dit.ledger.job import manifest_objects, read_manifest
from ray_dit.storage.open import open_store

IMAGENET_256 = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
INCEPTION = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
"""What the hash of the published weights begins with; their name says it."""
FEATURE_DIM = 2048

Features = Callable[[Tensor], Tensor]
"""Pictures uint8 [N, 3, H, W] → features [N, 2048]."""


def fid(dataset: str, reference: FeatureStatistics, features: Features, *, batch_size: int = 100) -> float:
    """Fréchet distance of a dataset's features to ``reference``; UserError for a dataset that is not whole."""
    statistics = FeatureStatistics.empty(len(reference.mean))
    for batch in batches(pictures(dataset), batch_size):
        statistics = statistics.merge(FeatureStatistics.of(features(batch).cpu()))
    return frechet_distance(statistics, reference)


def pictures(dataset: str) -> Iterator[Tensor]:
    """Every picture of a generated dataset, uint8 [3, H, W], in order; one shard in memory."""
    store = open_store(dataset)
    for marker in manifest_objects(store, read_manifest(dataset, "generate")):
        for data in read_shard(store, marker["key"]).images:
            yield torch.from_numpy(decode(data)).permute(2, 0, 1)


def batches(images: Iterator[Tensor], batch_size: int) -> Iterator[Tensor]:
    """So many at a time; the last may be smaller."""
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def reference_statistics(source: str, dim: int = FEATURE_DIM) -> FeatureStatistics:
    """``mu`` and ``sigma`` of a .npz at a path or URL, of which nothing else is read; UserError for another file."""
    try:
        with _opened(source) as file, np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{source} holds no reference statistics ({first_message(error)}): give a .npz with mu and sigma"
        ) from error
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise UserError(
            f"mu and sigma in {source} have shapes {list(mean.shape)} and {list(covariance.shape)}: give those of "
            f"{dim} features"
        )
    return FeatureStatistics(2, mean, covariance)  # for 2 samples scatter and covariance are one


def inception(weights: str = INCEPTION, device: str = "cuda") -> Features:
    """The network on ``device``; UserError where torch-fidelity is missing or the weights are not what they should be."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UserError(
            f"FID needs torch-fidelity ({first_message(error)}): pip install -c constraints.txt -e '.[fid]'"
        ) from error
    try:
        with _opened(weights) as file:
            data = file.read()
    except OSError as error:
        raise UserError(
            f"{weights} can't be read ({first_message(error)}): give the file by --inception"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        path.write_bytes(checked_weights(data, weights))
        network: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(FEATURE_DIM)], feature_extractor_weights_path=str(path)
        ).to(device)

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        return network(images.to(device))[0]

    return features


def _opened(source: str) -> Any:
    return fsspec.open(source, "rb")


def checked_weights(data: bytes, source: str) -> bytes:
    """The same bytes, once they are known to hold tensors and no code: torch-fidelity would run what is in them."""
    if source == INCEPTION and not hashlib.sha256(data).hexdigest().startswith(INCEPTION_SHA256):
        raise UserError(f"{source} was damaged on its way: fetch it by hand and give it by --inception")
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{source} is no file of weights ({first_message(error)}): give torch-fidelity's"
        ) from error
    return data


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where statistics and weights come from, and where the network runs."""
    parser.add_argument("--reference", default=IMAGENET_256, help="statistics: a .npz, path or URL")
    parser.add_argument(
        "--inception", default=INCEPTION, help="weights of the Inception network: path or URL"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the Inception network"
    )


def meter(options: argparse.Namespace) -> Callable[[str], float]:
    """Dataset → FID, with the command line's settings; weights and statistics are there before it is called."""
    reference = reference_statistics(options.reference)
    features = inception(options.inception, options.device)
    return lambda dataset: fid(dataset, reference, features)


def main(argv: list[str] | None = None) -> None:
    """Prints the FID of a dataset."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.fid", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="what `ray-dit generate` made: a path or URI")
    add_options(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options: Any = parser.parse_args(argv)
    try:
        print(f"FID {meter(options)(options.dataset):.3f}")
    except UserError as error:
        if options.debug:
            raise
        sys.exit(f"fid: error: {error}")


if __name__ == "__main__":
    main()
