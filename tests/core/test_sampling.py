"""The step that all sampling shares: the reference's results, and rows that don't feel one another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_dit.config import DiffusionConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.rng import Stream, normal
from ray_dit.core.samplers import make_table
from ray_dit.core.sampling import Rows, TableBank, counter_noise, denoise_step, init_rows, sample
from tests.support.golden_dit import CONFIG, assert_near, case, tiny_model

SCHEDULE = linear_schedule(DiffusionConfig())
SHAPE = (4, 8, 8)

CONFIGS = [
    SamplerConfig(name="ddpm", num_inference_steps=7),
    SamplerConfig(name="ddpm", num_inference_steps=3, variance="fixed_large", guidance_interval=(0, 600)),
    SamplerConfig(name="ddim", num_inference_steps=4, eta=0.5),
    SamplerConfig(name="ddim", timesteps=(999.0, 640.5, 200.0)),
    SamplerConfig(name="dpmpp", num_inference_steps=6, guidance_interval=(300, 800)),
    SamplerConfig(name="unipc", num_inference_steps=5, order=2, spacing="logsnr"),
    SamplerConfig(name="unipc", num_inference_steps=6, order=3),
    SamplerConfig(name="dpmpp", num_inference_steps=1),
]


def make_bank(*configs: SamplerConfig, learn_sigma: bool = True) -> TableBank:
    return TableBank([make_table(config, SCHEDULE, learn_sigma=learn_sigma) for config in configs])


class Elementwise:
    """A network without any sum over values: a row's bits can't depend on the batch.

    Counts the rows it is called with.
    """

    def __init__(self, learn_sigma: bool = True) -> None:
        self.learn_sigma = learn_sigma
        self.rows: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        eps = torch.tanh(x) + (t / 1000 - y / 10)[:, None, None, None] * x
        return torch.cat((eps, torch.sin(3 * x)), dim=1) if self.learn_sigma else eps


def one_row(table: int = 0, *, label: int = 1, scale: float = 1.0, seed: int = 0, sample_id: int = 0) -> Rows:
    return init_rows(
        SHAPE,
        labels=torch.tensor([label]),
        sample_id=torch.tensor([sample_id]),
        seed=seed,
        guidance_scale=scale,
        table=table,
    )


# --- against the reference


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddpm", SamplerConfig(name="ddpm", num_inference_steps=10)),
        ("ddim_eta0", SamplerConfig(name="ddim", num_inference_steps=10, spacing="leading")),
        ("ddim_eta1", SamplerConfig(name="ddim", num_inference_steps=10, spacing="leading", eta=1.0)),
    ],
)
def test_loops_are_the_references(name: str, config: SamplerConfig):
    def given_noise(
        seed: torch.Tensor, sample_id: torch.Tensor, step: torch.Tensor, shape: object
    ) -> torch.Tensor:
        drawn = torch.cat((case(f"{name}_x_T")[None], case(f"{name}_noises")))
        return drawn[step, sample_id]

    rows = init_rows(
        SHAPE,
        labels=case("cfg_y"),
        sample_id=torch.arange(4),
        seed=0,
        guidance_scale=1.5,
        noise=given_noise,
    )
    model = GuidedModel(tiny_model(), CONFIG.num_classes, guidance_channels=3)
    assert_near(sample(model, rows, make_bank(config), noise=given_noise), case(f"{name}_out"), 1e-5)


# --- rows don't feel one another

row_strategy = st.fixed_dictionaries(
    {
        "table": st.integers(0, len(CONFIGS) - 1),
        "label": st.integers(0, 9),
        "scale": st.sampled_from([0.0, 1.0, 1.5, 4.0]),
        "seed": st.integers(0, 2**63 - 1),
        "sample_id": st.integers(0, 2**63 - 1),
    }
)


@given(requests=st.lists(row_strategy, min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_mixture_gives_each_row_what_it_gives_alone(requests: list[dict[str, int]]):
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    parts = [one_row(**request) for request in requests]
    mixed = sample(model, Rows.cat(parts), bank)
    for row, part in zip(mixed, parts, strict=True):
        assert torch.equal(row, sample(model, part, bank)[0])


def test_a_mixture_on_a_dit_agrees_to_float_tolerance():
    model, bank = GuidedModel(tiny_model(), CONFIG.num_classes, 3), make_bank(*CONFIGS)
    parts = [
        one_row(table, label=table, scale=1.0 + 0.5 * table, seed=table) for table in range(len(CONFIGS))
    ]
    mixed = sample(model, Rows.cat(parts), bank)
    for row, part in zip(mixed, parts, strict=True):
        assert_near(row[None], sample(model, part, bank), 1e-4)


def test_rows_may_join_at_any_step():
    """As a server does it: a second request comes in while the first is under way."""
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    first, second = one_row(6, scale=3.0, seed=1), one_row(0, label=5, scale=2.0, seed=2)
    rows, _ = denoise_step(model, first, bank)
    rows, _ = denoise_step(model, rows, bank)
    mixed = sample(model, Rows.cat([rows, second]), bank)
    assert torch.equal(mixed[0], sample(model, first, bank)[0])
    assert torch.equal(mixed[1], sample(model, second, bank)[0])


def test_padding_changes_no_bit():
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    rows = Rows.cat([one_row(0, scale=2.0), one_row(4, scale=3.0), one_row(6)])
    assert torch.equal(sample(model, rows, bank, pad_to=[4, 8]), sample(model, rows, bank))


def test_a_grown_bank_keeps_its_numbers():
    bank = make_bank(*CONFIGS[:3])
    rows, model = one_row(2, scale=2.0), GuidedModel(Elementwise(), 10)
    expected = sample(model, rows, bank)
    assert bank.add(make_table(CONFIGS[4], SCHEDULE, learn_sigma=True)) == 3
    assert torch.equal(sample(model, rows, bank), expected)
    assert torch.equal(sample(model, one_row(3), bank), sample(model, one_row(4), make_bank(*CONFIGS)))


# --- noise


def test_noise_is_the_counters_with_the_steps_own_number():
    drawn: list[tuple[list[int], list[int], list[int]]] = []

    def spy(
        seed: torch.Tensor, sample_id: torch.Tensor, step: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        drawn.append((seed.tolist(), sample_id.tolist(), step.tolist()))
        return counter_noise(seed, sample_id, step, shape)

    rows = init_rows(
        SHAPE,
        labels=torch.tensor([1, 2, 3]),
        sample_id=torch.tensor([7, 8, 9]),
        seed=torch.tensor([4, 5, 6]),
        guidance_scale=1.0,
        table=torch.tensor([1, 4, 2]),
        noise=spy,
    )
    assert torch.equal(rows.x, normal(rows.seed, rows.sample_id, 0, SHAPE, stream=Stream.SAMPLE))
    sample(GuidedModel(Elementwise(), None), rows, make_bank(*CONFIGS), noise=spy)
    # 3 steps of DDPM and 4 of DDIM with η; DPM-Solver++ draws none, nor does a last step
    both, last = ([4, 6], [7, 9]), ([6], [9])
    assert drawn == [([4, 5, 6], [7, 8, 9], [0, 0, 0]), (*both, [1, 1]), (*both, [2, 2]), (*last, [3])]


def test_learned_variance_lies_between_its_bounds():
    """v = -1 is the posterior's variance, v = 1 is β: exactly the fixed ones."""

    def network(variance_output: float):
        return lambda x, t, y: torch.cat((0.9 * x, torch.full_like(x, variance_output)), dim=1)

    for variance_output, variance in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        learned, fixed = (
            make_bank(SamplerConfig(name="ddpm", num_inference_steps=8, variance=kind))
            for kind in ("learned", variance)
        )
        model = GuidedModel(network(variance_output), None)
        assert_near(sample(model, one_row(), learned), sample(model, one_row(), fixed), 1e-5)


def test_learned_variance_needs_a_model_that_predicts_it():
    with pytest.raises(ValueError, match="learn_sigma"):
        sample(GuidedModel(Elementwise(learn_sigma=False), None), one_row(), make_bank(CONFIGS[0]))


# --- the step and the loop


def test_the_network_sees_no_row_it_need_not():
    network = Elementwise()
    model, bank = GuidedModel(network, 10), make_bank(*CONFIGS)
    inside = Rows.cat([one_row(4, scale=3.0), one_row(4, scale=1.0), one_row(6, scale=2.0)])
    assert bank.num_twins(model, inside) == 1  # row 0 starts at 999, outside its interval
    sample(model, inside, bank)
    # uniform in 6 steps: 999, 832, 666, 500, 333, 166: inside [300, 800] at the 3rd to 5th
    assert network.rows == [4, 4, 5, 5, 5, 4]


def test_callback_follows_the_rows_and_ends_at_the_latents():
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    rows = Rows.cat([one_row(0), one_row(3), one_row(7)])
    seen: list[list[int]] = []
    last: dict[int, torch.Tensor] = {}

    def callback(number: torch.Tensor, state: Rows, x_start: torch.Tensor) -> None:
        seen.append(number.tolist())
        assert state.step.tolist() == [len(seen)] * len(number)
        last.update(zip(number.tolist(), x_start, strict=True))

    latents = sample(model, rows, bank, callback=callback)
    assert seen == [[0, 1, 2], [0, 1], [0, 1], [0], [0], [0], [0]]
    assert all(torch.equal(latents[number], x_start) for number, x_start in last.items())


def test_a_finished_row_is_refused():
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    rows, _ = denoise_step(model, Rows.cat([one_row(7), one_row(0)]), bank)
    assert bank.done(rows).tolist() == [True, False]
    with pytest.raises(ValueError, match="no step left"):
        denoise_step(model, rows, bank)
    denoise_step(model, rows.select(torch.nonzero(~bank.done(rows)).flatten()), bank)


def test_rows_are_selected_and_joined_whole():
    parts = [
        one_row(table, label=table, scale=float(table), seed=table, sample_id=table) for table in range(4)
    ]
    rows = Rows.cat(parts).select(torch.tensor([2, 0]))
    for name in ("labels", "guidance_scale", "seed", "sample_id", "table"):
        assert getattr(rows, name).tolist() == [2, 0]
    assert torch.equal(rows.x, torch.cat((parts[2].x, parts[0].x)))
    assert len(rows) == 2


def test_autocast_does_not_reach_the_state():
    model, bank = GuidedModel(Elementwise(), 10), make_bank(*CONFIGS)
    rows = Rows.cat([one_row(table, scale=2.0) for table in range(len(CONFIGS))])
    expected = sample(model, rows, bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sample(model, rows, bank), expected)


def test_a_network_in_half_precision_leaves_the_state_in_float32():
    rows, _ = denoise_step(
        GuidedModel(lambda x, t, y: x.bfloat16(), None), one_row(), make_bank(CONFIGS[4], learn_sigma=False)
    )
    assert rows.x.dtype == torch.float32
    assert rows.history.dtype == torch.float32


def test_no_rows_need_no_step():
    assert sample(
        GuidedModel(Elementwise(), 10),
        one_row().select(torch.zeros(0, dtype=torch.int64)),
        make_bank(CONFIGS[0]),
    ).shape == (0, *SHAPE)
