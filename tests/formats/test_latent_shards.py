"""Latent shards: rows come back, and the bytes are a function of them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_dit.errors import UserError
from ray_dit.formats.latents import LatentShard, latent_shard_bytes, read_latent_labels, read_latent_shard


def latents(mirror: bool = True, rows: int = 3) -> LatentShard:
    values = np.arange(rows * 8 * 2 * 2, dtype=np.float16).reshape(rows, 8, 2, 2)
    return LatentShard(
        keys=[f"a/{row}.png" for row in range(rows)],
        labels=np.arange(rows),
        heldout=np.arange(rows) % 2 == 0,
        moments=values,
        moments_mirror=-values if mirror else None,
    )


def test_latents_come_back() -> None:
    for shard in (latents(), latents(mirror=False), latents(rows=0)):
        again = read_latent_shard(latent_shard_bytes(shard))
        assert again.keys == shard.keys
        for name in ("labels", "heldout", "moments"):
            np.testing.assert_array_equal(getattr(again, name), getattr(shard, name))
        assert (again.moments_mirror is None) == (shard.moments_mirror is None)
        if shard.moments_mirror is not None and again.moments_mirror is not None:
            np.testing.assert_array_equal(again.moments_mirror, shard.moments_mirror)


def test_the_same_rows_are_the_same_bytes() -> None:
    assert latent_shard_bytes(latents()) == latent_shard_bytes(latents())
    assert latent_shard_bytes(latents()) != latent_shard_bytes(latents(mirror=False))


def test_one_row_group_and_nothing_compressed() -> None:
    file = pq.ParquetFile(io.BytesIO(latent_shard_bytes(latents())))
    assert file.num_row_groups == 1
    column = file.metadata.row_group(0).column(3)
    assert column.compression == "UNCOMPRESSED"
    assert not column.has_dictionary_page


def test_the_labels_are_read_alone() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    shard = latents(rows=3000)
    file = Counting(latent_shard_bytes(shard))
    np.testing.assert_array_equal(read_latent_labels(file, "here"), shard.labels)
    assert file.taken < len(file.getvalue()) / 3


def test_what_has_no_labels_is_named() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"label": ["a"]}), sink)
    for data in (b"nothing", sink.getvalue()):
        with pytest.raises(UserError, match="here is damaged"):
            read_latent_labels(io.BytesIO(data), "here")
