"""Exact copies among images: counted, listed, and kept out of training where one is held out."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_dit.errors import UserError
from ray_dit.folders.duplicates import copies_of_heldout, duplicates_key, find_duplicates
from ray_dit.folders.latent_counts import statistics
from ray_dit.folders.latents import open_latent_rows
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.latents import LatentShard, channel_sums, latent_shard_bytes
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Marker
from ray_dit.results import Duplicates
from ray_dit.storage.open import open_store
from tests.support.results import latent_facts, latents_result

Image = tuple[str, int, bool]
"""What its bytes are a hash of, its label, and whether it is held out."""


def put_shards(job: Job, shards: Sequence[Sequence[Image]], *, known: bool = True) -> list[Marker[Any]]:
    """Shards of these images; the moments of number n are random, with n as the seed."""
    markers: list[Marker[Any]] = []
    first = 0
    for number, images in enumerate(shards):
        ids = range(first, first + len(images))
        moments = [np.random.default_rng(row).standard_normal((4, 2, 2)).astype(np.float16) for row in ids]
        names = [hashlib.sha256(what.encode()).digest() for what, _, _ in images]
        hashes = np.frombuffer(b"".join(names), np.uint8).reshape(len(images), 32)
        shard = LatentShard(
            keys=[f"image {row}" for row in ids],
            labels=np.array([label for _, label, _ in images], np.int64),
            heldout=np.array([heldout for _, _, heldout in images], np.bool_),
            moments=np.stack(moments) if moments else np.zeros((0, 4, 2, 2), np.float16),
            moments_mirror=None,
            image_sha256=hashes if known else None,
        )
        sums, squares = channel_sums(shard)
        facts = latent_facts(
            number,
            len(images),
            train_rows=int((~shard.heldout).sum()),
            images_sha256=array_sha256(hashes) if known else None,
            sum=tuple(sums.tolist()),
            sum_squares=tuple(squares.tolist()),
        )
        markers.append(
            job.put(f"{number:05d}", f"latents/{number:05d}.parquet", latent_shard_bytes(shard), facts)
        )
        first += len(images)
    return markers


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.open(open_store(str(tmp_path / "latents")), "encode", {"a": "test"})


def random_shards(seed: int) -> list[list[Image]]:
    chance = np.random.default_rng(seed)
    sizes = chance.integers(0, 9, 5).tolist()
    return [
        [
            (f"{chance.integers(12)}", int(chance.integers(3)), bool(chance.random() < 0.3))
            for _ in range(size)
        ]
        for size in sizes
    ]


@pytest.mark.parametrize("seed", range(12))
def test_copies_are_counted_as_by_hand(job: Job, seed: int) -> None:
    shards = random_shards(seed)
    markers = put_shards(job, shards)
    found, listed = find_duplicates(job.store, markers)
    images = [image for shard in shards for image in shard]
    counts = Counter(what for what, _, _ in images)
    classes = {what: {label for other, label, _ in images if other == what} for what in counts}
    heldout = {what for what, _, is_heldout in images if is_heldout}
    assert found is not None
    assert found.across_classes == sum(len(labels) - 1 for labels in classes.values())
    assert found.within_classes == sum(counts[what] - len(classes[what]) for what in counts)
    twice = [
        row for row, (what, _, own) in enumerate(images) if what in heldout and not own and counts[what] > 1
    ]
    assert found.heldout == len(twice)
    rows = pq.read_table(io.BytesIO(listed)).to_pylist() if listed else []
    assert [row["key"] for row in rows] == [
        f"image {row}" for row, (what, _, _) in enumerate(images) if counts[what] > 1
    ]
    assert [row["key"] for row in rows if row["counts_as_heldout"] and not row["heldout"]] == [
        f"image {row}" for row in twice
    ]


def test_copies_of_held_out_images_are_not_trained_on(job: Job, tmp_path: Path) -> None:
    first: list[Image] = [("a", 0, True), ("b", 0, False), ("c", 1, False)]
    second: list[Image] = [("a", 1, False), ("b", 0, False), ("d", 1, False)]
    shards = [first, second]
    markers = put_shards(job, shards)
    found, listed = find_duplicates(job.store, markers)
    assert found is not None
    assert (found.within_classes, found.across_classes, found.heldout) == (1, 1, 1)
    rows, mean, std = statistics([marker.facts for marker in markers], found, 4)
    kept: list[Image] = [*first, ("a", 1, True), *second[1:]]
    alone = put_shards(Job.open(open_store(str(tmp_path / "alone")), "encode", {"a": "test"}), [kept])
    assert rows == 4
    expected = statistics([marker.facts for marker in alone], None, 4)
    np.testing.assert_allclose([mean, std], expected[1:], rtol=1e-12)
    job.put_plain(duplicates_key(), listed)
    result = latents_result(
        rows=6, train_rows=rows, latent_shape=(2, 2, 2), duplicates=found, mean=mean, std=std, bad=0
    )
    facts = result.expected({}, [marker.facts.to_json() for marker in markers])
    assert facts["train_rows"] == rows
    np.testing.assert_allclose([facts["mean"], facts["std"]], [mean, std], rtol=1e-12)
    copies = copies_of_heldout(job.store, 0)
    assert copies == {"image 0", "image 3"}
    opened = open_latent_rows(job.store, markers, "name", tmp_path / "cache", copies)
    assert opened.heldout.tolist() == [True, False, False, True, False, False]


def test_where_no_image_has_a_copy_nothing_is_listed(job: Job) -> None:
    markers = put_shards(job, [[("a", 0, True)], [("b", 0, False)]])
    found, listed = find_duplicates(job.store, markers)
    assert found == Duplicates(within_classes=0, across_classes=0, heldout=0)
    assert listed == b""
    assert copies_of_heldout(job.store, 0) == frozenset()


def test_shards_of_earlier_versions_are_left_out(job: Job) -> None:
    markers = put_shards(job, [[("a", 0, True)], [("a", 0, False)]], known=False)
    assert find_duplicates(job.store, markers) == (None, b"")


def test_hashes_that_are_not_those_of_the_marker_are_damage(job: Job, tmp_path: Path) -> None:
    (marker,) = put_shards(job, [[("a", 0, True), ("b", 0, False)]])
    path = tmp_path / "latents" / marker.key
    data = path.read_bytes()
    at = data.index(hashlib.sha256(b"b").digest())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match=r"00000.parquet is damaged \(the hashes of its images are others"):
        find_duplicates(job.store, [marker])


def test_a_damaged_list_is_said(job: Job, tmp_path: Path) -> None:
    markers = put_shards(job, [[("a", 0, True), ("a", 0, False)]])
    job.put_plain(duplicates_key(), find_duplicates(job.store, markers)[1])
    path = tmp_path / "latents" / duplicates_key()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="duplicates.parquet does not hold what was written"):
        copies_of_heldout(job.store, 0)
