"""``--plan`` on the command line, without Ray: its options, its table, its JSON."""

import json

import pytest

from ray_dit.cli.plan import PRICE, PlanOptions, help_for, shown, take_plan
from ray_dit.config import GenerateConfig, TrainConfig
from ray_dit.errors import UserError
from ray_dit.runtime.planning import Plan

PLAN = Plan(
    stage="generate",
    output="dataset",
    counts={"images": 50_000, "shards": 50},
    done={"images": 1000, "shards": 1},
    network_evaluations=1_000_000,
    bytes_in=2_700_000_000,
    bytes_out=5_900_000_000,
    workers=8,
    seconds={"starting": 30.0, "shards": 7170.0},
    total_seconds=7200.0,
    basis="measured: 32 shards of 50 images on 8 actors of this cluster",
)


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        (["--a", "1"], None, ["--a", "1"]),
        (["--plan", "--a", "1"], PlanOptions(False, None), ["--a", "1"]),
        (["--a", "1", "--plan", "json"], PlanOptions(True, None), ["--a", "1"]),
        (["--plan=json", "--price-per-hour", "2.5"], PlanOptions(True, 2.5), []),
    ],
)
def test_the_options(words: list[str], options: PlanOptions | None, rest: list[str]) -> None:
    assert take_plan(words, TrainConfig) == options
    assert words == rest


def test_the_price_stays_where_it_is_a_setting() -> None:
    words = ["--plan", "--price-per-hour", "2.5"]
    assert take_plan(words, GenerateConfig) == PlanOptions(False, None)
    assert words == ["--price-per-hour", "2.5"]
    assert (PRICE in help_for(TrainConfig), PRICE in help_for(GenerateConfig)) == (True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan=xml"], "neither json nor table"),
        (["--price-per-hour", "2"], "belongs to --plan"),
        (["--plan", "--price-per-hour", "cheap"], "is no price"),
        (["--plan", "--price-per-hour", "-1"], "is no price"),
        (["--plan", "--price-per-hour"], "needs a price"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        take_plan(words, TrainConfig)


def test_the_table() -> None:
    lines = shown(PLAN, PlanOptions(False, 3.0)).splitlines()
    assert lines[0] == "plan of generate to dataset (nothing was written)"
    assert lines[-1] == PLAN.basis
    cells = {line[:22].strip(): line[22:].split() for line in lines[1:-1]}
    assert cells["images"] == ["50,000", "1,000", "there", "already"]
    assert cells["bytes out"] == ["5.9", "GB"]
    assert cells["time in all"] == ["2", "h", "00", "min"]
    assert cells["cost"] == ["48.00"]


def test_a_training_shows_its_model_its_memory_and_its_speed() -> None:
    parts = {"weights": 4_000_000, "averaged weights": 0, "moments": 8_000_000, "activations": 2_000_000_000}
    training = PLAN.model_copy(
        update={
            "counts": {"steps": 1000},
            "done": {"steps": 200},
            "seconds": {"starting": 10.0, "steps": 400.0},
            "memory": parts | {"measured": 2_100_000_000},
        }
    )
    lines = shown(training, PlanOptions(False, None)).splitlines()
    cells = {line[:22].strip(): line[22:].split() for line in lines[1:-1]}
    assert cells["parameters"] == ["1,000,000"]
    memory = "2.0 GB weights 4.0 MB, moments 8.0 MB, activations 2.0 GB"
    assert cells["memory per worker"] == memory.split()
    assert cells["measured"] == ["2.1", "GB"]
    assert cells["steps per second"] == ["2"]
    names = [line[:22].strip() for line in shown(PLAN, PlanOptions(False, None)).splitlines()]
    assert not {"parameters", "memory per worker", "steps per second"} & set(names)


def test_the_json() -> None:
    assert json.loads(shown(PLAN, PlanOptions(True, 3.0))) == PLAN.priced(3.0).model_dump()
