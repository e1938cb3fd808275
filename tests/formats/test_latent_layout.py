"""Where rows lie in a shard's bytes: each read by range is the row, with its CRC-32."""

import io
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_dit.formats.latent_layout import index_facts, index_spans, key_array, pieces_sha256, read_pieces
from ray_dit.formats.latents import LatentShard, latent_shard_bytes, read_latent_shard, views_of

SHAPE = (8, 3, 2)
ROW_BYTES = 2 * 8 * 3 * 2


def latents(rows: int, *, mirror: bool = True) -> LatentShard:
    values = np.random.default_rng(rows).normal(size=(rows, *SHAPE)).astype(np.float16)
    return LatentShard(
        keys=[f"a/{row}.png" for row in range(rows)],
        labels=np.arange(rows) * 7,
        heldout=np.arange(rows) % 3 == 0,
        moments=values,
        moments_mirror=values[..., ::-1] if mirror else None,
        image_sha256=np.arange(32 * rows, dtype=np.int64).astype(np.uint8).reshape(rows, 32),
    )


def pieces_of(data: bytes) -> dict[int, bytes]:
    return {start: data[start:end] for start, end in index_spans(data)}


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5, 300, 30_000])
@pytest.mark.parametrize("group_rows", [1 << 20, 7])
def test_each_row_lies_where_the_layout_says(rows: int, mirror: bool, group_rows: int) -> None:
    if rows > 300 and group_rows == 7:
        rows = 1000
    shard = latents(rows, mirror=mirror)
    data = latent_shard_bytes(shard, group_bytes=group_rows * ROW_BYTES)
    layout, facts = read_pieces(pieces_of(data), len(data))
    assert (layout.shape, layout.rows) == (SHAPE, rows)
    assert len(layout.firsts) == -(-rows // group_rows)
    assert facts.labels.tolist() == shard.labels.tolist()
    assert facts.heldout.tolist() == shard.heldout.tolist()
    held = facts.held_back(key_array(["a/2.png", "b"])).heldout
    assert np.flatnonzero(held & ~shard.heldout).tolist() == [2] * (rows > 2)
    for row in range(0, rows, 1 + rows // 500):
        block = int(np.searchsorted(layout.firsts, row, side="right")) - 1
        for view, moments in enumerate(views_of(shard)):
            start = layout.starts[block, view] + (row - layout.firsts[block]) * ROW_BYTES
            found = data[start : start + ROW_BYTES]
            assert found == moments[row].tobytes()
            assert zlib.crc32(found) == facts.checks[row, view]
    again = read_latent_shard(data)
    np.testing.assert_array_equal(again.moments, shard.moments)


def test_the_rule_in_the_docs_needs_pyarrow_alone() -> None:
    shard = latents(300)
    data = latent_shard_bytes(shard)
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    (column,) = [each for each in columns if each.path_in_schema.startswith("moments_mirror.")]
    start = column.data_page_offset + column.total_compressed_size - (300 - 17) * ROW_BYTES
    assert shard.moments_mirror is not None
    assert data[start : start + ROW_BYTES] == shard.moments_mirror[17].tobytes()


def test_the_index_is_all_but_the_moments_and_small() -> None:
    shard = latents(300)
    data = latent_shard_bytes(shard)
    pieces, moments = pieces_of(data), 2 * shard.moments.nbytes
    assert moments <= len(data) - sum(map(len, pieces.values())) < 1.05 * moments
    assert index_facts(data) == {"index_sha256": pieces_sha256(pieces), "index_spans": index_spans(data)}
    other = latent_shard_bytes(latents(300, mirror=False))
    assert index_facts(other) != index_facts(data)


def test_pieces_that_are_of_something_else_are_refused() -> None:
    data = latent_shard_bytes(latents(5))
    before = latent_shard_bytes(latents(5), by_row=False)
    with pytest.raises(ValueError, match="no Parquet|magic|footer|[Pp]arquet"):
        read_pieces({0: b"nothing"}, 400)
    with pytest.raises(ValueError, match="outside"):
        read_pieces(pieces_of(data), len(data) - 1)
    with pytest.raises(ValueError):  # noqa: PT011  whichever of its columns is missed first
        read_pieces({0: before}, len(before))


def test_the_form_of_before_has_the_bytes_of_before() -> None:
    """What was begun in it is finished and repaired in it: written here as that version wrote it."""
    shard, sink = latents(300), io.BytesIO()
    assert shard.image_sha256 is not None
    columns = {
        "key": pa.array(shard.keys),
        "label": pa.array(shard.labels),
        "heldout": pa.array(shard.heldout),
        "image_sha256": pa.array([row.tobytes() for row in shard.image_sha256], pa.binary(32)),
    }
    for name, moments in zip(("moments", "moments_mirror"), views_of(shard), strict=True):
        flat = pa.array(np.ascontiguousarray(moments).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, ROW_BYTES // 2)
    table = pa.table(columns).replace_schema_metadata({"facts": '{"moments_shape": [8, 3, 2]}'})
    pq.write_table(
        table, sink, row_group_size=300, compression="none", use_dictionary=False, write_statistics=False,
        store_schema=True, data_page_size=1 << 20, version="2.6",
    )  # fmt: skip
    assert latent_shard_bytes(shard, by_row=False) == sink.getvalue()
    assert latent_shard_bytes(shard) != sink.getvalue()
