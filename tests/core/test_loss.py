"""The training loss and its gradients against the reference's numbers."""

import numpy as np
import pytest
import torch

from ray_dit.config import DiffusionConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.loss import Losses, diffusion_loss, min_snr_weight
from tests.support.golden_dit import CASES, assert_near, case, tiny_model

SCHEDULE = linear_schedule(DiffusionConfig())


def golden_loss(model_output: torch.Tensor, **options: float) -> Losses:
    x_start, t, noise = case("loss_x_start"), case("loss_t"), case("loss_noise")
    learn_sigma = model_output.shape[1] == 8
    return diffusion_loss(
        SCHEDULE, model_output, x_start, case("q_sample"), t, noise, learn_sigma=learn_sigma, **options
    )


def test_loss_and_gradients_are_the_references():
    model = tiny_model()
    losses = golden_loss(model(case("q_sample"), case("loss_t"), case("loss_y")))
    assert_near(losses.mse.detach(), case("loss_mse"))
    assert_near(losses.vb.detach(), case("loss_vb"))
    assert_near(losses.loss.detach(), case("loss_loss"))
    losses.loss.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in CASES:
        if name.startswith("grad_") and name != "grad_global_norm":
            assert_near(gradients[name.removeprefix("grad_")], case(name))
    norm = torch.nn.utils.get_total_norm(gradients.values()).item()
    assert norm == pytest.approx(float(CASES["grad_global_norm"]), rel=1e-5)


def test_bound_trains_the_variance_only():
    output = torch.randn(4, 8, 8, 8, requires_grad=True)
    golden_loss(output).vb.sum().backward()
    assert output.grad is not None
    assert output.grad[:, :4].count_nonzero() == 0
    assert output.grad[:, 4:].abs().amax(dim=(1, 2, 3)).min() > 0


def test_without_learned_variance_the_loss_is_the_squared_error():
    losses = golden_loss(torch.zeros(4, 4, 8, 8))
    assert_near(losses.loss, (case("loss_noise") ** 2).mean(dim=(1, 2, 3)), 1e-6)
    assert losses.vb.count_nonzero() == 0
    assert torch.equal(losses.loss, losses.mse)


def test_losses_are_float32_under_autocast_and_of_bfloat16_outputs():
    output = torch.randn(4, 8, 8, 8).bfloat16()
    want = golden_loss(output.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = golden_loss(output)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_min_snr_weights_the_squared_error_only():
    output, t = torch.randn(4, 8, 8, 8), case("loss_t")
    plain, weighted = golden_loss(output), golden_loss(output, min_snr_gamma=5.0)
    alpha_bar = SCHEDULE.alphas_cumprod[t]
    weight = np.minimum(1.0, 5.0 * (1.0 - alpha_bar) / alpha_bar)
    assert weight[0] < 0.01
    assert weight[-1] == 1.0
    np.testing.assert_allclose(min_snr_weight(SCHEDULE, t, 5.0), weight, rtol=1e-6)
    np.testing.assert_allclose(weighted.loss, weight * plain.mse.numpy() + plain.vb.numpy(), rtol=1e-6)
    assert torch.equal(weighted.mse, plain.mse)
    assert torch.equal(weighted.vb, plain.vb)


def test_output_that_does_not_fit_learn_sigma_is_refused():
    x, t = torch.zeros(1, 4, 2, 2), torch.zeros(1, dtype=torch.long)
    for channels, learn_sigma in [(4, True), (8, False)]:
        with pytest.raises(ValueError, match="learn_sigma"):
            diffusion_loss(SCHEDULE, torch.zeros(1, channels, 2, 2), x, x, t, x, learn_sigma=learn_sigma)
