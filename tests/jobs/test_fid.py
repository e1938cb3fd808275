"""FID of a dataset of shards, with a feature network that is passed in.

The real one's weights are checked for code.
"""

import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.fid import fid, images_of, inception
from ray_dit.core.metrics import FeatureStatistics, frechet_distance
from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.metrics import Seen
from ray_dit.metrics.features.inception import PUBLISHED, checked_weights
from ray_dit.metrics.reference import reference_statistics
from ray_dit.storage.open import open_store
from tests.support.results import dataset_result, image_facts
from tests.support.tiny import shard_bytes


def some_pictures(count: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Seven pictures in three shards."""
    images = some_pictures(7)
    job = Job.open(open_store(str(tmp_path / "dataset")), "generate", {"what": "a test"})
    markers: list[Any] = []
    for number, ids in enumerate(([0, 1, 2], [3, 4, 5], [6])):
        data = shard_bytes([png(images[i]) for i in ids], [0] * len(ids), ids, ("cat",))
        key = f"data/train-{number:05d}-of-00003.parquet"
        markers.append(job.put(f"shard-{number}", key, data, image_facts(number, len(ids))))
    job.finish(dataset_result(rows=7), objects=markers)
    return str(tmp_path / "dataset")


def three(images: np.ndarray) -> Seen:
    """The mean of each channel: features of width 3."""
    assert images.dtype == np.uint8
    return Seen(torch.from_numpy(images).float().mean(dim=(1, 2)), None)


def test_every_picture_is_read_once_and_in_order(dataset: str) -> None:
    assert np.array_equal(np.stack(list(images_of(dataset))), some_pictures(7))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_it_is_the_distance_of_all_features_whatever_the_batches(dataset: str, batch_size: int) -> None:
    reference = FeatureStatistics.of(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 9 + 100)
    features = three(some_pictures(7)).features
    want = frechet_distance(FeatureStatistics.of(features), reference)
    assert fid(dataset, reference, three, batch_size=batch_size) == pytest.approx(want, rel=1e-9)


def test_statistics_come_from_mu_and_sigma_alone(tmp_path: Path) -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want = FeatureStatistics.of(features)
    path = str(tmp_path / "statistics.npz")
    np.savez(path, mu=want.mean.numpy(), sigma=want.covariance.numpy(), arr_0=some_pictures(2))
    read = reference_statistics(path, dim=3)
    assert torch.equal(read.mean, want.mean)
    assert torch.equal(read.covariance, want.covariance)
    with pytest.raises(UserError, match=r"shapes \[3\] and \[3, 3\]: give those of 2048 features"):
        reference_statistics(path, dim=2048)


@pytest.mark.parametrize("content", [b"not an archive", b"", b"PK\x03\x04 cut off"])
def test_another_file_is_no_statistics(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="other.npz holds no reference statistics .*with mu and sigma"):
        reference_statistics(str(path), dim=2048)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_weights_with_code_in_them_are_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    torch.save({"weight": Evil()}, file)
    with pytest.raises(UserError, match="weights.pth is no file of weights"):
        checked_weights(file.getvalue(), "weights.pth")
    assert not (tmp_path / "evil").exists()


def test_published_weights_are_known_by_their_hash() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, file)
    assert checked_weights(file.getvalue(), "my.pth") == file.getvalue()
    with pytest.raises(UserError, match="damaged on its way"):
        checked_weights(file.getvalue(), PUBLISHED)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is here")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match=r"FID needs torch-fidelity .*: pip install -c constraints.txt -e"):
        inception("no.pth", "cpu")
