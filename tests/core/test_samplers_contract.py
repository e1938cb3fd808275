"""What every sampler of the registry must hold: true facts, a whole table, convergence, mixing."""

import importlib
import math
from typing import get_args

import numpy as np
import pytest
import torch

from ray_dit.config import DiffusionConfig, SamplerConfig, SamplerName
from ray_dit.core import samplers
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import SAMPLERS, Sampler, SamplerTable, make_table, table_from_nodes
from ray_dit.core.sampling import Rows, TableBank, init_rows, sample

SCHEDULE = linear_schedule(DiffusionConfig())
EVERY = [(name, order) for name, sampler in SAMPLERS.items() for order in sampler.orders or (1,)]
"""Each sampler in each of its orders."""


def config(name: str, **fields: object) -> SamplerConfig:
    return SamplerConfig.model_validate({"name": name, "order": 1, "num_inference_steps": 8} | fields)


def table(name: str, *, learn_sigma: bool = True, **fields: object) -> SamplerTable:
    return make_table(config(name, **fields), SCHEDULE, learn_sigma=learn_sigma)


# --- facts


def test_the_registry_has_the_names_that_settings_accept():
    assert tuple(SAMPLERS) == get_args(SamplerName)
    for name, sampler in SAMPLERS.items():
        assert isinstance(sampler, Sampler)
        assert sampler is importlib.import_module(f"ray_dit.core.samplers.{name}").SAMPLER
        assert sampler.title
        assert sampler.paper


@pytest.mark.parametrize("name", SAMPLERS)
def test_auto_is_the_spacing_it_says(name: str):
    told = table(name, spacing=SAMPLERS[name].default_spacing)
    np.testing.assert_array_equal(table(name).matrix(), told.matrix())


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_looks_at_the_settings_it_says_and_no_others(name: str):
    def changes(*values: dict[str, object]) -> bool:
        first, *others = (table(name, **fields).matrix() for fields in values)
        return any(not np.array_equal(first, other) for other in others)

    sampler = SAMPLERS[name]
    assert changes({"eta": 0.0}, {"eta": 1.0}) == sampler.uses_eta
    assert changes({"variance": "fixed_small"}, {"variance": "fixed_large"}) == sampler.uses_variance
    orders = sampler.orders or (1, 2, 3)
    assert changes(*({"order": order} for order in orders)) == (len(sampler.orders) > 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_it_has_not_is_refused_with_who_has_it(name: str):
    orders = SAMPLERS[name].orders
    for order in {1, 2, 3} - set(orders or (1, 2, 3)):
        able = [other for other, sampler in SAMPLERS.items() if order in sampler.orders]
        with pytest.raises(
            ValueError, match=rf"{name} has order .*; for order {order} take {' or '.join(able)}"
        ):
            samplers.check_settings(config(name, order=order))
        with pytest.raises(ValueError, match=f"{name} has order"):
            table(name, order=order)


# --- tables


@pytest.mark.parametrize(("name", "order"), EVERY)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_its_table_is_whole(name: str, order: int, steps: int):
    made = table(name, order=order, num_inference_steps=steps)
    assert len(made) == steps
    assert made.b.shape == (steps, 4)
    columns = {key: np.asarray(value) for key, value in vars(made).items()}
    flags = {"guided", "learned_variance"}
    assert {key for key, value in columns.items() if value.dtype == bool} == flags
    assert all(value.dtype == np.float64 for key, value in columns.items() if key not in flags)
    assert all(len(value) == steps for value in columns.values())
    assert np.isfinite(made.matrix()).all()
    assert (np.diff(made.timesteps) < 0).all()


@pytest.mark.parametrize(("name", "order"), EVERY)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_its_last_step_ends_at_the_last_prediction(name: str, order: int, steps: int):
    for extra in ({}, {"eta": 1.0}, {"variance": "fixed_large"}):
        made = table(name, order=order, num_inference_steps=steps, **extra)
        assert made.a[-1] == 0
        assert made.b[-1].tolist() == [1, 0, 0, 0]
        assert made.d[-1] == 0
        assert not made.learned_variance[-1]


# --- convergence: data are N(MEAN, DEVIATION²), for which eps is known and the state stays Gaussian

MEAN, DEVIATION = 0.7, 0.4


def alphas_cumprod_at(t: np.ndarray) -> np.ndarray:
    """The schedule in continuous time: log ᾱ(t) = -∫β with β rising linearly."""
    return np.exp(-(1e-4 * t + (0.02 - 1e-4) / 999 * t**2 / 2))


def exact_network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    alphas_cumprod = torch.from_numpy(alphas_cumprod_at(t.numpy()))[:, None, None, None]
    alpha, variance = alphas_cumprod.sqrt(), 1 - alphas_cumprod
    return variance.sqrt() * (x - alpha * MEAN) / (alphas_cumprod * DEVIATION**2 + variance)


def moments_error(settings: SamplerConfig, steps: int) -> float:
    """How far mean and deviation of the state end from the exact ones, t from 999 to 20, in float64.

    The network is affine in x, so the end is affine in the start and in each step's noise. Their weights are
    read off rows that have one of them at 1 and all others at 0: row 0 nothing, row 1 the start, row 1 + i
    the noise of step i.
    """
    t = np.linspace(999.0, 20.0, steps + 1)
    nodes = alphas_cumprod_at(t)
    bank = TableBank([table_from_nodes(settings, t[:-1], nodes, learn_sigma=False)], dtype=torch.float64)
    ids = torch.arange(steps + 2)

    def impulse(seed: torch.Tensor, row: torch.Tensor, step: torch.Tensor, shape: object) -> torch.Tensor:
        return (row == step + 1).double()[:, None, None, None]

    rows = init_rows((1, 1, 1), labels=ids, sample_id=ids, seed=0, guidance_scale=1.0, noise=impulse)
    ends = sample(GuidedModel(exact_network, None), rows, bank, noise=impulse).flatten().numpy()
    means = np.sqrt(nodes) * MEAN
    deviations = np.sqrt(nodes * DEVIATION**2 + 1 - nodes)
    weights = ends[1:] - ends[0]
    mean = ends[0] + weights[0] * means[0]
    deviation = math.sqrt((weights[0] * deviations[0]) ** 2 + (weights[1:] ** 2).sum())
    return max(abs(mean - means[-1]), abs(deviation - deviations[-1]))


@pytest.mark.parametrize(
    ("name", "order", "extra"),
    [
        (name, order, extra)
        for name, order in EVERY
        for extra in ({}, *([{"eta": 1.0}] if SAMPLERS[name].uses_eta else []))
    ],
)
def test_it_converges_to_the_exact_distribution_with_its_order(
    name: str, order: int, extra: dict[str, object]
):
    steps = np.array([40, 80, 160, 320])
    errors = [moments_error(config(name, order=order, **extra), int(n)) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert errors[-1] < 0.01
    assert slope > order - 0.3, f"order {slope:.2f}, errors {errors}"


# --- mixing


def elementwise_network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Each row's output is a function of that row alone, whatever the batch, and it predicts a variance."""
    eps = x * 0.5 + (t / 1000 + y)[:, None, None, None] * 0.1
    return torch.cat((eps, eps * 0.3), dim=1)


def test_rows_of_all_samplers_in_one_batch_are_as_alone():
    bank = TableBank(
        [table(name, order=order, num_inference_steps=4 + order, eta=0.5) for name, order in EVERY]
    )

    def row(number: int) -> Rows:
        one = torch.tensor([number])
        return init_rows((2, 3, 3), labels=one % 3, sample_id=one, seed=7, guidance_scale=2.0, table=number)

    model = GuidedModel(elementwise_network, 5)
    together = sample(model, Rows.cat([row(number) for number in range(len(EVERY))]), bank)
    for number in range(len(EVERY)):
        assert torch.equal(together[number : number + 1], sample(model, row(number), bank))
