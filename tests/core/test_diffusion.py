"""Schedule, respacing and the Gaussians of diffusion against the reference's numbers."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from ray_dit.config import DiffusionConfig
from ray_dit.core import diffusion
from ray_dit.core.diffusion import Schedule, linear_schedule, respace, space_timesteps
from tests.support.golden_dit import CASES, assert_near, case, tiny_model

SCHEDULE = linear_schedule(DiffusionConfig())
TABLES = [name.removeprefix("table_") for name in CASES if name.startswith("table_")]
RESPACINGS = [name.removeprefix("respaced_betas_") for name in CASES if name.startswith("respaced_betas_")]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_references(name: str):
    table = getattr(SCHEDULE, name)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, CASES["table_" + name], rtol=1e-12, atol=1e-18)


def test_tables_without_golden_numbers_follow_from_the_others():
    np.testing.assert_allclose(
        SCHEDULE.sqrt_alphas_cumprod * SCHEDULE.sqrt_recip_alphas_cumprod, 1.0, rtol=1e-14
    )
    ones = SCHEDULE.sqrt_alphas_cumprod**2 + SCHEDULE.sqrt_one_minus_alphas_cumprod**2
    np.testing.assert_allclose(ones, 1.0, rtol=1e-14)
    np.testing.assert_array_equal(SCHEDULE.alphas_cumprod_prev[1:], SCHEDULE.alphas_cumprod[:-1])
    assert SCHEDULE.alphas_cumprod_prev[0] == 1.0
    np.testing.assert_array_equal(SCHEDULE.fixed_large_variance[1:], SCHEDULE.betas[1:])
    assert SCHEDULE.fixed_large_variance[0] == pytest.approx(SCHEDULE.posterior_variance[1], rel=1e-12)


@pytest.mark.parametrize("spacing", RESPACINGS)
def test_respacings_are_the_references(spacing: str):
    timesteps = space_timesteps(1000, spacing)
    respaced = respace(SCHEDULE, timesteps)
    np.testing.assert_array_equal(respaced.timestep_map, CASES["respaced_timesteps_" + spacing])
    np.testing.assert_allclose(respaced.betas, CASES["respaced_betas_" + spacing], rtol=1e-12)
    # x_t at a visited step is the same as before
    np.testing.assert_allclose(respaced.alphas_cumprod, SCHEDULE.alphas_cumprod[timesteps], rtol=1e-12)


def test_respacing_twice_maps_to_training_steps():
    twice = respace(respace(SCHEDULE, space_timesteps(1000, 100)), [0, 50, 99])
    assert twice.timestep_map.tolist() == [0, 505, 999]


def test_spacing_at_the_edges():
    assert space_timesteps(1000, 1).tolist() == [0]
    assert space_timesteps(1000, "3").tolist() == [0, 500, 999]  # 499.5 rounds to even
    assert space_timesteps(4, 4).tolist() == [0, 1, 2, 3]
    assert np.isfinite(respace(SCHEDULE, [999]).posterior_log_variance_clipped).all()


@pytest.mark.parametrize("spacing", [0, 1001, "ddim", "ddim0", "ddim999", "ten", "-3", "1.5", ""])
def test_spacing_that_cannot_be_is_refused(spacing: int | str):
    with pytest.raises(ValueError, match="step"):
        space_timesteps(1000, spacing)


@pytest.mark.parametrize("timesteps", [[], [3, 3], [5, 4], [-1, 3], [0, 1000]])
def test_respacing_to_wrong_steps_is_refused(timesteps: list[int]):
    with pytest.raises(ValueError, match="rising"):
        respace(SCHEDULE, timesteps)


def test_betas_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="betas"):
        Schedule(betas=np.array([0.1, 1.0]), timestep_map=np.arange(2))


def test_q_sample_is_the_references():
    x_t = diffusion.q_sample(SCHEDULE, case("loss_x_start"), case("loss_t"), case("loss_noise"))
    assert_near(x_t, case("q_sample"), 1e-6)


def test_shapes_in_signatures_are_checked_under_pytest():
    with pytest.raises(TypeCheckError):
        diffusion.q_sample(SCHEDULE, case("loss_x_start"), case("loss_t")[:1], case("loss_noise"))


def test_posterior_is_the_references():
    posterior = diffusion.q_posterior(SCHEDULE, case("loss_x_start"), case("x"), case("loss_t"))
    assert_near(posterior.mean, case("q_posterior_mean"), 1e-6)
    assert_near(posterior.variance, case("q_posterior_variance"), 1e-6)
    assert_near(posterior.log_variance, case("q_posterior_log_variance_clipped"), 1e-6)


@torch.no_grad()
def test_p_mean_variance_is_the_references():
    x, t = case("x"), case("loss_t")
    predicted = diffusion.p_mean_variance(SCHEDULE, tiny_model()(x, t, case("cfg_y")), x, t)
    assert_near(predicted.mean, case("p_mean_variance_mean"))
    assert_near(predicted.variance, case("p_mean_variance_variance"))
    assert_near(predicted.log_variance, case("p_mean_variance_log_variance"))
    assert_near(predicted.pred_xstart, case("p_mean_variance_pred_xstart"))


def test_fixed_variances():
    eps, x, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 999])
    small = diffusion.p_mean_variance(SCHEDULE, eps, x, t, variance="fixed_small")
    large = diffusion.p_mean_variance(SCHEDULE, eps, x, t, variance="fixed_large")
    tables = SCHEDULE.posterior_variance[t], SCHEDULE.fixed_large_variance[t]
    np.testing.assert_allclose(small.variance[:, 0, 0, 0], tables[0], rtol=1e-6)
    np.testing.assert_allclose(large.variance[:, 1, 1, 1], tables[1], rtol=1e-6)
    np.testing.assert_allclose(large.log_variance.exp(), large.variance, rtol=1e-5)
    assert torch.equal(small.mean, large.mean)
    with pytest.raises(ValueError, match="learn_sigma"):
        diffusion.p_mean_variance(SCHEDULE, eps, x, t)
    with pytest.raises(ValueError, match="6 channels"):
        diffusion.p_mean_variance(SCHEDULE, torch.zeros(3, 6, 2, 2), x, t)


def test_each_row_has_its_own_time_step():
    x_start, x_t = case("loss_x_start"), case("x")
    together = diffusion.q_posterior(SCHEDULE, x_start, x_t, case("loss_t"))
    for row, t in enumerate(case("loss_t")):
        alone = diffusion.q_posterior(SCHEDULE, x_start[row : row + 1], x_t[row : row + 1], t[None])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))


def test_eps_and_x_start_are_each_others_inverse():
    x_start, noise, t = case("loss_x_start"), case("loss_noise"), torch.tensor([5, 17, 500, 999])
    x_t = diffusion.q_sample(SCHEDULE, x_start, t, noise)
    assert_near(diffusion.predict_xstart_from_eps(SCHEDULE, x_t, t, noise), x_start, 1e-4)
    assert_near(diffusion.predict_eps_from_xstart(SCHEDULE, x_t, t, x_start), noise, 1e-4)


def test_normal_kl_is_the_references():
    assert_near(diffusion.normal_kl(*case("kl_in")), case("normal_kl"), 1e-6)


def test_decoder_likelihood_is_the_references():
    x, means, log_scales = case("dgll_in")
    likelihood = diffusion.discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales)
    assert_near(likelihood, case("discretized_gaussian_log_likelihood"))


def test_decoder_likelihoods_of_all_bins_sum_to_one():
    bins = torch.arange(256) / 127.5 - 1.0
    for mean, log_scale in [(0.0, -1.0), (0.97, -2.0), (-3.0, 0.0)]:
        likelihood = diffusion.discretized_gaussian_log_likelihood(
            bins, means=torch.full((256,), mean), log_scales=torch.full((256,), log_scale)
        )
        assert likelihood.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
