"""Samplers' tables: the time steps they visit, diffusers' results, the order they converge with."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ray_dit.config import DiffusionConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule, respace
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import SamplerTable, column_names, make_table, table_from_nodes
from ray_dit.core.sampling import TableBank, init_rows, sample
from tests.support.golden_dit import CASES, assert_near

SCHEDULE = linear_schedule(DiffusionConfig())
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def table(name: str, steps: int = 10, *, learn_sigma: bool = True, **fields: object) -> SamplerTable:
    config = SamplerConfig(name=name, num_inference_steps=steps, **fields)
    return make_table(config, SCHEDULE, learn_sigma=learn_sigma)


# --- time steps


def test_respaced_and_leading_are_the_references_strides():
    for steps in (10, 100, 250):
        expected = CASES[f"respaced_timesteps_{steps}"][::-1]
        assert table("ddpm", steps).timesteps.tolist() == expected.tolist()
    for steps in (25, 50):
        expected = CASES[f"respaced_timesteps_ddim{steps}"][::-1]
        assert table("ddim", steps, spacing="leading").timesteps.tolist() == expected.tolist()


@pytest.mark.parametrize("steps", [1, 5, 10, 25, 999])
def test_uniform_and_trailing_are_diffusers(steps: int):
    for spacing, theirs in (("uniform", "linspace"), ("trailing", "trailing")):
        scheduler = DPMSolverMultistepScheduler(**LINEAR, timestep_spacing=theirs)
        scheduler.set_timesteps(steps)
        assert table("dpmpp", steps, spacing=spacing).timesteps.tolist() == scheduler.timesteps.tolist()


def test_all_time_steps_can_be_visited():
    for spacing in ("uniform", "respaced", "leading", "trailing"):
        assert table("ddim", 1000, spacing=spacing).timesteps.tolist() == list(range(999, -1, -1))


def test_logsnr_has_equal_strides_in_lambda():
    made = table("dpmpp", 12, spacing="logsnr")
    lambdas = -np.log(made.c_eps)  # c_eps = σ/α
    assert made.timesteps[0] == 999
    assert np.any(made.timesteps != np.round(made.timesteps))
    np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas)[0], rtol=1e-9)


def test_auto_is_respaced_for_ddpm_and_uniform_for_the_others():
    for name, spacing in (
        ("ddpm", "respaced"),
        ("ddim", "uniform"),
        ("dpmpp", "uniform"),
        ("unipc", "uniform"),
    ):
        assert table(name).timesteps.tolist() == table(name, spacing=spacing).timesteps.tolist()


def test_one_step_starts_at_the_noise():
    for spacing in ("auto", "uniform", "respaced", "trailing", "logsnr"):
        assert table("ddpm", 1, spacing=spacing).timesteps.tolist() == [999]
    for name in ("ddpm", "ddim", "dpmpp", "unipc"):
        with pytest.raises(ValueError, match="time 0 alone in 1 step.*take 'trailing'"):
            table(name, 1, spacing="leading")


def test_leading_is_diffusers_where_the_steps_divide_the_time_steps():
    """Elsewhere they part, as docs/sampling.md says."""
    scheduler = DDIMScheduler(**LINEAR, timestep_spacing="leading")
    for steps, the_same in ((5, True), (50, True), (30, False), (6, False)):
        scheduler.set_timesteps(steps)
        ours = table("ddim", steps, spacing="leading").timesteps.tolist()
        assert (ours == scheduler.timesteps.tolist()) == the_same


def test_a_list_of_time_steps_is_taken_as_it_is():
    made = table("unipc", timesteps=(980.0, 500.5, 30.0))
    assert made.timesteps.tolist() == [980, 500.5, 30]
    assert len(made) == 3
    alphas_cumprod = 1 / made.c_x**2
    low, high = SCHEDULE.alphas_cumprod[[501, 500]]
    np.testing.assert_allclose(alphas_cumprod[[0, 2]], SCHEDULE.alphas_cumprod[[980, 30]], rtol=1e-12)
    assert low < alphas_cumprod[1] < high


def test_what_the_schedule_or_the_model_has_not_is_refused():
    with pytest.raises(ValueError, match="at most 1000"):
        make_table(
            SamplerConfig.model_construct(**SamplerConfig().model_dump() | {"num_inference_steps": 1001}),
            SCHEDULE,
            learn_sigma=True,
        )
    with pytest.raises(ValueError, match=r"\[0, 999\]"):
        table("ddim", timesteps=(1200.0, 3.0))
    with pytest.raises(ValueError, match="learn_sigma"):
        table("ddpm", learn_sigma=False, variance="learned")
    with pytest.raises(ValueError, match="no integer stride"):
        table("ddim", 300, spacing="leading")
    with pytest.raises(ValueError, match="rising"):
        table_from_nodes(SamplerConfig(), np.array([9.0]), np.array([0.5, 0.5]), learn_sigma=False)


def test_variance_is_learned_where_the_model_predicts_it():
    for learn_sigma, variance in ((True, "learned"), (False, "fixed_small")):
        auto = table("ddpm", learn_sigma=learn_sigma)
        told = table("ddpm", learn_sigma=learn_sigma, variance=variance)
        np.testing.assert_array_equal(auto.matrix(), told.matrix())
    assert table("ddpm").learned_variance.any()
    assert not auto.learned_variance.any()


# --- coefficients


def test_ddpm_is_the_posterior_of_the_respaced_process():
    process = respace(SCHEDULE, CASES["respaced_timesteps_10"])
    made = table("ddpm")
    np.testing.assert_allclose(made.a[::-1], process.posterior_mean_coef2, rtol=1e-9)
    np.testing.assert_allclose(made.b[::-1, 0], process.posterior_mean_coef1, rtol=1e-9)
    np.testing.assert_allclose(
        made.log_variance_min[::-1][1:], process.posterior_log_variance_clipped[1:], rtol=1e-9
    )
    np.testing.assert_allclose(made.log_variance_max[::-1][1:], np.log(process.betas[1:]), rtol=1e-9)
    small, large = (table("ddpm", variance=f"fixed_{size}") for size in ("small", "large"))
    np.testing.assert_allclose(small.d[::-1] ** 2, process.posterior_variance, rtol=1e-9)
    np.testing.assert_allclose(large.d[::-1][1:] ** 2, process.betas[1:], rtol=1e-9)


def test_no_noise_is_added_at_the_clean_end():
    for made in (table("ddpm"), table("ddpm", variance="fixed_large"), table("ddim", eta=1.0)):
        assert made.d[-1] == 0
        assert not made.learned_variance[-1]
        assert made.learned_variance[:-1].all() or (made.d[:-1] > 0).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp", "unipc"])
def test_every_sampler_ends_at_its_last_prediction(name: str):
    made = table(name)
    assert made.a[-1] == 0
    assert made.b[-1].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 2), ("dpmpp", 1), ("dpmpp", 2), ("unipc", 2), ("unipc", 3)]
)
def test_a_constant_prediction_is_carried_exactly(name: str, order: int):
    """x = α·x0 + σ·eps stays on the path of constant x0 and eps, whatever the order."""
    made = table(name, order=order)
    alpha, sigma = np.append(1 / made.c_x, 1.0), np.append(made.c_eps / made.c_x, 0.0)
    np.testing.assert_allclose(made.a * sigma[:-1], sigma[1:], rtol=1e-12)
    np.testing.assert_allclose(made.a * alpha[:-1] + made.b.sum(1), alpha[1:], rtol=1e-9)


def test_guidance_acts_inside_its_interval():
    made = table("ddim", timesteps=(900.0, 700.0, 300.0, 100.0), guidance_interval=(300.0, 700.0))
    assert made.guided.tolist() == [False, True, True, False]
    assert table("ddim").guided.all()


def test_matrix_has_the_named_columns():
    made = table("unipc", order=3)
    columns = dict(zip(column_names(), made.matrix().T, strict=True))
    assert columns["timesteps"].tolist() == made.timesteps.tolist()
    assert columns["b2"].tolist() == made.b[:, 2].tolist()
    assert columns["guided"].all()
    assert columns["c_eps"].tolist() == made.c_eps.tolist()


# --- against diffusers


def toy_network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth function of everything it is given."""
    mix = torch.linspace(-1, 1, 16).view(4, 4)
    strength = 0.3 * torch.sin(t / 200) + 0.1 * y
    return torch.tanh(0.5 * torch.einsum("oc,bchw->bohw", mix, x)) + strength[:, None, None, None] * x


def diffusers_result(scheduler: object, steps: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(toy_network(x, t.float().expand(len(x)), y), t, x).prev_sample
    return x


def solver(kind: type, **options: object) -> Callable[[], object]:
    return lambda: kind(**LINEAR, **options)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 25, 50])
@pytest.mark.parametrize(
    ("fields", "scheduler"),
    [
        ({"name": "ddim", "spacing": "leading"}, solver(DDIMScheduler, clip_sample=False)),
        (
            {"name": "ddim", "spacing": "trailing"},
            solver(DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
        ),
        ({"name": "dpmpp", "order": 1}, solver(DPMSolverMultistepScheduler, solver_order=1)),
        ({"name": "dpmpp", "order": 2}, solver(DPMSolverMultistepScheduler, solver_order=2)),
        ({"name": "unipc", "order": 1}, solver(UniPCMultistepScheduler, solver_order=1)),
        ({"name": "unipc", "order": 2}, solver(UniPCMultistepScheduler, solver_order=2)),
        ({"name": "unipc", "order": 3}, solver(UniPCMultistepScheduler, solver_order=3)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_diffusers_schedulers_give_the_same(
    fields: dict[str, object], scheduler: Callable[[], object], steps: int
):
    if steps == 1 and fields.get("spacing") == "leading":
        pytest.skip("refused here: test_one_step_starts_at_the_noise")
    bank = TableBank([table(**fields, steps=steps)])
    rows = init_rows((4, 8, 8), labels=torch.arange(3), sample_id=torch.arange(3), seed=0, guidance_scale=1.0)
    expected = diffusers_result(scheduler(), steps, rows.x, rows.labels)
    assert_near(sample(GuidedModel(toy_network, None), rows, bank), expected, 1e-5)


# --- convergence, where the exact solution is known

MEAN, DEVIATION = 0.7, 0.4


def alphas_cumprod_at(t: np.ndarray) -> np.ndarray:
    """The schedule in continuous time: log ᾱ(t) = -∫β with β rising linearly."""
    return np.exp(-(1e-4 * t + (0.02 - 1e-4) / 999 * t**2 / 2))


def gaussian_network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The exact eps where the data are N(MEAN, DEVIATION²)."""
    alphas_cumprod = torch.from_numpy(alphas_cumprod_at(t.numpy()))[:, None, None, None]
    alpha, variance = alphas_cumprod.sqrt(), 1 - alphas_cumprod
    return variance.sqrt() * (x - alpha * MEAN) / (alphas_cumprod * DEVIATION**2 + variance)


def error_at_end(config: SamplerConfig, steps: int, start: float = 999.0, end: float = 20.0) -> float:
    """Largest deviation from the probability flow's exact solution, t from ``start`` to ``end``; float64."""
    t = np.linspace(start, end, steps + 1)
    nodes = alphas_cumprod_at(t)
    bank = TableBank([table_from_nodes(config, t[:-1], nodes, learn_sigma=False)], dtype=torch.float64)
    unit = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    exact = [math.sqrt(a) * MEAN + math.sqrt(a * DEVIATION**2 + 1 - a) * unit for a in (nodes[0], nodes[-1])]
    ids = torch.arange(9)
    rows = init_rows(
        (1, 1, 1), labels=ids, sample_id=ids, seed=0, guidance_scale=1.0, noise=lambda *_: exact[0].clone()
    )
    return float((sample(GuidedModel(gaussian_network, None), rows, bank) - exact[1]).abs().max())


@pytest.mark.parametrize(
    ("name", "order", "low", "high"),
    [
        ("ddim", 2, 0.95, 1.05),
        ("dpmpp", 1, 0.95, 1.05),
        ("dpmpp", 2, 1.9, 2.2),
        ("unipc", 1, 1.75, 2.2),  # the corrector adds an order
        ("unipc", 2, 1.9, 3.3),
        ("unipc", 3, 2.5, 4.5),
    ],
)
def test_order_of_convergence(name: str, order: int, low: float, high: float):
    steps = np.array([40, 80, 160, 320])
    errors = [error_at_end(SamplerConfig(name=name, order=order), int(n)) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert low <= slope <= high, f"order {slope:.2f}, errors {errors}"
