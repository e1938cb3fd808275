"""The noise is Philox bit for bit, has the right distribution, and depends on nothing but its arguments."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_dit.core.rng import Stream, box_muller, draw_words, integers, normal, philox, uniform

int64 = st.integers(-(2**63), 2**63 - 1)
steps = st.integers(0, 2**32 - 1)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: list[int], key: list[int], expected: str):
    words = philox([torch.tensor(word) for word in counter], [torch.tensor(word) for word in key])
    assert " ".join(f"{word.item():08x}" for word in words) == expected


def test_values_stay_what_they_are():
    """Made by this code: a change here changes every picture ever made from a seed."""
    drawn = normal(2**40 + 7, ids(-3, 2**62 + 1), ids(0, 250), (3,), stream=Stream.SAMPLE)
    torch.testing.assert_close(drawn, torch.tensor(GOLDEN_NORMALS), rtol=0, atol=1e-6)
    words = integers(2**40 + 7, torch.arange(8), 250, 2**31 - 1, stream=Stream.TRAIN_T)
    assert words.tolist() == GOLDEN_INTEGERS


@given(
    seed=int64,
    step=steps,
    blocks=st.dictionaries(st.sampled_from(list(Stream)), st.integers(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_streams_drawn_at_once_are_what_each_is_alone(seed: int, step: int, blocks: dict[Stream, int]):
    together = draw_words(seed, ids(3, -9), step, blocks)
    assert list(together) == list(blocks)
    for stream, count in blocks.items():
        alone = draw_words(ids(seed, seed), ids(3, -9), ids(step, step), {stream: count})
        assert torch.equal(together[stream], alone[stream])


@given(
    seed=st.lists(int64, min_size=1, max_size=6),
    data=st.data(),
    shape=st.lists(st.integers(1, 9), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_a_row_is_bitwise_the_same_alone_and_anywhere_in_any_batch(
    seed: list[int], data: st.DataObject, shape: list[int]
):
    count = len(seed)
    sample_id = ids(*data.draw(st.lists(int64, min_size=count, max_size=count)))
    step = ids(*data.draw(st.lists(steps, min_size=count, max_size=count)))
    row = data.draw(st.integers(0, count - 1))
    for draw in (normal, uniform):
        batch = draw(ids(*seed), sample_id, step, shape, stream=Stream.VAE_NOISE)
        alone = draw(seed[row], sample_id[row : row + 1], int(step[row]), shape, stream=Stream.VAE_NOISE)
        assert batch.shape == (count, *shape)
        assert torch.equal(batch[row], alone[0])
    batch = integers(ids(*seed), sample_id, step, 1000, stream=Stream.TRAIN_T)
    alone = integers(seed[row], sample_id[row : row + 1], int(step[row]), 1000, stream=Stream.TRAIN_T)
    assert batch[row] == alone[0]


def test_large_batches_and_threads_change_no_bit():
    torch.set_num_threads(2)
    try:
        batch = normal(5, torch.arange(67), 3, (4, 31, 33), stream=Stream.SAMPLE)
    finally:
        torch.set_num_threads(1)
    for row in (0, 13, 66):
        assert torch.equal(batch[row], normal(5, ids(row), 3, (4, 31, 33), stream=Stream.SAMPLE)[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2},
        {"seed": 1 + 2**32},
        {"sample_id": ids(4)},
        {"sample_id": ids(3 + 2**32)},
        {"sample_id": ids(-3)},
        {"step": 5},
        {"stream": Stream.TRAIN_NOISE},
    ],
)
def test_every_argument_counts_with_all_its_bits(changed: dict[str, object]):
    arguments = {"seed": 1, "sample_id": ids(3), "step": 4, "stream": Stream.SAMPLE}
    drawn = [uniform(shape=(64,), **given) for given in (arguments, arguments | changed)]
    assert not torch.isin(drawn[0], drawn[1]).any()


def test_a_longer_draw_begins_like_a_shorter_one():
    short, long = (normal(0, ids(9), 0, (size,), stream=Stream.SAMPLE) for size in (5, 70))
    assert torch.equal(short[0], long[0, :5])


def test_normals_are_normal():
    drawn = normal(0, torch.arange(400), 0, (1000,), stream=Stream.SAMPLE).double()
    count = drawn.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - expected) < 5 * math.sqrt(variance / count)
    uniforms = torch.special.ndtr(drawn).flatten().sort().values
    ideal = (torch.arange(count) + 0.5) / count
    assert (uniforms - ideal).abs().max() < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov, 0.1 %
    correlations = torch.corrcoef(drawn[:, :8].T) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(400)


def test_the_rarest_words_give_finite_normals():
    words = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1]])
    torch.testing.assert_close(box_muller(words)[0, 0].item(), math.sqrt(66 * math.log(2)))
    assert box_muller(words)[0, 2].item() > 0
    assert box_muller(words).isfinite().all()


def test_uniforms_and_integers_are_even():
    drawn = uniform(0, torch.arange(300), 0, (1000,), stream=Stream.TRAIN_LABEL_DROP)
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min()
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=100, min=0, max=1)
    assert ((counts - 3000) ** 2 / 3000).sum() < 99 + 4 * math.sqrt(2 * 99)
    values = integers(0, torch.arange(100_000), 0, 7, stream=Stream.TRAIN_T)
    counts = values.bincount(minlength=7).double()
    assert len(counts) == 7
    assert ((counts - 1e5 / 7) ** 2 / (1e5 / 7)).sum() < 6 + 4 * math.sqrt(12)


def test_no_rows_is_no_noise():
    assert normal(0, ids(), 0, (4, 8, 8), stream=Stream.SAMPLE).shape == (0, 4, 8, 8)


def test_autocast_changes_nothing():
    plain = normal(0, ids(1, 2), 0, (50,), stream=Stream.SAMPLE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(normal(0, ids(1, 2), 0, (50,), stream=Stream.SAMPLE), plain)


def test_too_much_is_refused():
    with pytest.raises(ValueError, match="at most"):
        normal(0, ids(1), 0, (2**26 + 1,), stream=Stream.SAMPLE)
    with pytest.raises(ValueError, match="high"):
        integers(0, ids(1), 0, 2**31 + 1, stream=Stream.TRAIN_T)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("name", ["seed", "sample_id", "step"])
def test_only_int64_is_taken(dtype: torch.dtype, name: str):
    given = {"seed": ids(1), "sample_id": ids(1), "step": ids(1)}
    given[name] = given[name].to(dtype)
    # Outside the tests nothing checks annotations, so the functions' own refusal is what counts.
    for draw, rest in ((normal, {"shape": (4,)}), (uniform, {}), (integers, {"high": 5})):
        with pytest.raises(ValueError, match=f"{name} must be int64, not {dtype}"):
            inspect.unwrap(draw)(**given, **rest, stream=Stream.SAMPLE)


def test_streams_keep_their_numbers():
    """A stream that changed its number would change the noise made from every seed."""
    assert {stream.name: stream.value for stream in Stream} == {
        "SAMPLE": 0,
        "TRAIN_T": 1,
        "TRAIN_NOISE": 2,
        "TRAIN_MOMENTS": 3,
        "TRAIN_MIRROR": 4,
        "TRAIN_LABEL_DROP": 5,
        "VAE_NOISE": 6,
        "VAE_MIRROR": 7,
        "INIT": 8,
        "LABELS": 9,
        "EVALUATE": 10,
        "VALIDATION": 11,
        "DATASET_LABELS": 12,
        "DATASET_SCALES": 13,
    }


GOLDEN_NORMALS = [[-0.2442044, 0.1033905, -1.6259253], [-0.1934552, -0.6896803, -0.364132]]
GOLDEN_INTEGERS = [1383071384, 592625424, 1936357937, 206355163, 370675237, 936461309, 1707703275, 2135725482]
