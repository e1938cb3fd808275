"""Ranges of t, and the fixed samples that the validation loss is taken over."""

import numpy as np
import pytest
import torch

from ray_dit.core.batch import t_range, t_ranges, validation_batch, validation_t


@pytest.mark.parametrize("steps", [1, 3, 10, 25, 1000, 1001])
def test_ranges_of_t_are_equal_and_named_by_their_ends(steps: int) -> None:
    names = t_ranges(steps)
    assert len(names) == min(steps, 10)
    numbers = t_range(torch.arange(steps), steps).tolist()
    for number, name in enumerate(names):
        inside = [t for t, which in enumerate(numbers) if which == number]
        assert name == f"{inside[0]}-{inside[-1]}"
        assert len(inside) in (steps // len(names), -(-steps // len(names)))


def test_names_of_the_papers_schedule() -> None:
    assert t_ranges(1000)[:2] == ("0-99", "100-199")


@pytest.mark.parametrize(("count", "steps"), [(1, 1000), (7, 1000), (1000, 1000), (1500, 1000), (5, 3)])
def test_validation_visits_all_of_t_evenly_and_in_no_order(count: int, steps: int) -> None:
    t = validation_t(0, count, steps)
    assert len(t) == count
    expected = [(2 * place + 1) * steps // (2 * count) for place in range(count)]
    assert sorted(t.tolist()) == expected
    assert 0 <= t.min()
    assert t.max() < steps
    if count > 6:
        assert t.tolist() != expected
        assert abs(np.corrcoef(np.arange(count), t)[0, 1]) < 0.5
    assert not len(validation_t(0, 0, steps))


def test_a_held_out_row_has_the_same_noise_in_whatever_batch_it_is() -> None:
    rows, t, labels = torch.arange(40, 46), torch.arange(6) * 100, torch.arange(6)
    moments = torch.full((6, 4, 2, 2), -1.0)
    whole = validation_batch(3, rows, t, moments, labels, shift=0.0, scale=1.0)
    part = validation_batch(3, rows[2:4], t[2:4], moments[2:4], labels[2:4], shift=0.0, scale=1.0)
    assert torch.equal(part.noise, whole.noise[2:4])
    assert torch.equal(part.x_start, whole.x_start[2:4])
    assert torch.equal(part.t, t[2:4])
    assert torch.equal(part.y, labels[2:4])
    other = validation_batch(4, rows, t, moments, labels, shift=0.0, scale=1.0)
    assert not torch.equal(other.noise, whole.noise)
    of_latents = (whole.x_start + 1) / np.exp(-0.5)
    assert (whole.noise - of_latents).abs().mean() > 0.1, "the latents' own noise is the diffusion's"
    assert len({row.sum().item() for row in whole.noise}) == 6
