"""FID of a generated dataset: `python -m jobs.fid --dataset URI --reference STATISTICS.npz`.

It is the registry's Fréchet distance over the features of its network `inception`: torch-fidelity's port of
the network FID is defined by (Heusel et al. 2017), `pip install -c constraints.txt -e '.[fid]'`, which brings
torchvision. Its weights (95 MB) are fetched, or give the file by --inception. The statistics are a .npz with
`mu` [2048] and `sigma` [2048, 2048] of the real images, a path or URL; by default those of ImageNet at 256
pixels that published figures are measured against.

Hardware: a GPU reads some thousand images per second; a CPU about ten.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_dit.core.media import decode
from ray_dit.core.metrics import FeatureStatistics
from ray_dit.errors import UserError, first_message
from ray_dit.folders.dataset import read_shard
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Facts
from ray_dit.metrics import FEATURES, FIGURES, Network, Piece, Sets, Tensors, measure, merge
from ray_dit.metrics.base import Published
from ray_dit.metrics.reference import IMAGENET_256, opened, reference_statistics
from ray_dit.metrics.statistics import moment_tensors
from ray_dit.results import DatasetResult
from ray_dit.storage.open import open_store

NETWORK = FEATURES["inception"]
DISTANCE = FIGURES["frechet_distance"]


def fid(dataset: str, reference: FeatureStatistics, network: Network, *, batch_size: int = 100) -> float:
    """Fréchet distance of a dataset's features to ``reference``.

    UserError for a dataset that is not whole.
    """
    generated: Tensors = {}
    for images in batches(images_of(dataset), batch_size):
        features = network(images).features
        piece = Piece(features=features, compared=torch.ones(len(features), dtype=torch.bool))
        generated = merge([DISTANCE], generated, measure([DISTANCE], piece))
    values = dict(DISTANCE.values(Sets(train=moment_tensors(reference), generated=generated)))
    distance = values[DISTANCE.name]
    assert isinstance(distance, float)
    return distance


def images_of(dataset: str) -> Iterator[NDArray[np.uint8]]:
    """Every image of a generated dataset, uint8 [H, W, 3], in order; one shard in memory."""
    store = open_store(dataset)
    for marker in manifest_objects(store, read_manifest(dataset, DatasetResult), Facts):
        for data in read_shard(store, marker.key, marker.sha256).images:
            yield decode(data)


def batches(images: Iterator[NDArray[np.uint8]], batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """So many at a time; the last may be smaller."""
    batch: list[NDArray[np.uint8]] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def inception(weights: str, device: str) -> Network:
    """The network on ``device``.

    UserError where torch-fidelity is missing or the weights are not what they should be.
    """

    def read() -> bytes:
        try:
            with opened(weights) as file:
                return file.read()
        except OSError as error:
            raise UserError(
                f"{weights} can't be read ({first_message(error)}): give the file by --inception"
            ) from error

    return NETWORK.load(read, Published(source=weights, device=device))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where statistics and weights come from, and where the network runs."""
    parser.add_argument("--reference", default=IMAGENET_256, help="statistics: a .npz, path or URL")
    parser.add_argument(
        "--inception", default=NETWORK.published, help="weights of the Inception network: path or URL"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the Inception network"
    )


def meter(options: argparse.Namespace) -> Callable[[str], float]:
    """Dataset → FID, with the command line's settings.

    Weights and statistics are there before it is called.
    """
    reference = reference_statistics(options.reference, NETWORK.dim)
    network = inception(options.inception, options.device)
    return lambda dataset: fid(dataset, reference, network)


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
