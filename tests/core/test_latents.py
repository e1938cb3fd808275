"""Pixels there and back, moments, normalisation."""

import numpy as np
import pytest
import torch

from ray_dit.core import latents


def test_pixels_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    floats = latents.to_float(pixels)
    assert floats.dtype == torch.float32
    assert floats.shape == (2, 3, 16, 16)
    assert floats.min() == -1.0
    assert floats.max() == 1.0
    assert torch.equal(latents.to_uint8(floats), pixels)


def test_channels_move_with_their_pixels():
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    floats = latents.to_float(pixels)
    assert floats[1, 2, 0, 3] == pixels[1, 0, 3, 2] / 127.5 - 1.0
    assert torch.equal(latents.to_uint8(floats), pixels)


def test_floats_are_truncated_after_half_and_clamped():
    floats = torch.tensor([-7.0, -1.0, 0.0, 0.0039, 0.004, 1.0, 7.0]).reshape(1, 1, 1, 7)
    # 127.5 * 0.0039 + 128 = 128.497, and at -1 0.5: truncated
    assert latents.to_uint8(floats).flatten().tolist() == [0, 0, 128, 128, 128, 255, 255]


def test_moments_are_drawn_with_their_variance():
    mean, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    log_variance = torch.full_like(mean, np.log(0.25))
    drawn = latents.sample_moments(torch.cat([mean, log_variance], dim=1), noise)
    torch.testing.assert_close(drawn, mean + 0.5 * noise)


@pytest.mark.parametrize(("log_variance", "deviation"), [(-1e4, np.exp(-15.0)), (1e4, np.exp(10.0))])
def test_extreme_log_variances_are_clamped(log_variance: float, deviation: float):
    moments = torch.tensor([0.0, log_variance]).reshape(1, 2, 1, 1)
    drawn = latents.sample_moments(moments, torch.ones(1, 1, 1, 1))
    assert drawn.item() == pytest.approx(deviation, rel=1e-5)


def test_half_precision_moments_are_drawn_in_float32():
    moments = torch.randn(1, 8, 2, 2).half()
    noise = torch.randn(1, 4, 2, 2)
    drawn = latents.sample_moments(moments, noise)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, latents.sample_moments(moments.float(), noise))


def test_moments_that_do_not_fit_their_noise_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        latents.sample_moments(torch.zeros(1, 8, 2, 2), torch.zeros(1, 2, 2, 2))


def test_normalisation_is_minus_shift_times_scale():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(latents.normalize(x, 0.5, 0.18215), (x - 0.5) * 0.18215)
    shift, scale = [0.0, 1.0, 2.0, 3.0], [1.0, 0.5, 2.0, 4.0]
    normal = latents.normalize(x, shift, scale)
    for channel in range(4):
        torch.testing.assert_close(normal[:, channel], (x[:, channel] - shift[channel]) * scale[channel])
    torch.testing.assert_close(latents.denormalize(normal, shift, scale), x)
    assert torch.equal(latents.normalize(x, torch.tensor(shift), torch.tensor(scale)), normal)
    torch.testing.assert_close(latents.normalize(x[0], shift, scale), normal[0])


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="3 values"):
        latents.normalize(torch.zeros(1, 4, 2, 2), [0.0, 0.0, 0.0], 1.0)
