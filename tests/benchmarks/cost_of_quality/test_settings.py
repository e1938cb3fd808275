"""The settings that are committed, and those of --quick."""

from benchmarks.cost_of_quality.plan import control_cells
from benchmarks.cost_of_quality.settings import QUICK
from tests.benchmarks.cost_of_quality.examples import settings


def test_the_committed_settings_are_what_the_goal_asks_for() -> None:
    ours = settings()
    assert ours.num_samples >= 5000
    assert len(set(ours.seeds)) >= 5
    assert {sampler.name for sampler in ours.solvers} == {"ddim", "dpmpp", "unipc"}
    assert (min(ours.steps), max(ours.steps), ours.reference_steps) == (5, 50, 200)
    assert ours.goal_steps in ours.steps
    assert ours.goal_loss == 0.05
    assert None in ours.guidance_intervals
    assert len(ours.guidance_intervals) == 2
    assert (ours.ancestral.name, ours.ancestral.num_inference_steps) == ("ddpm", 250)
    assert len(control_cells(ours)) == 4


def test_quick_settings_are_settings() -> None:
    assert settings(**QUICK).num_samples < 100
