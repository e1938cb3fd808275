"""Learning rate, averaged weights, optimizer."""

import math

import pytest
import torch

from ray_dit.config import DiTConfig, OptimizerConfig
from ray_dit.core.dit import DiT
from ray_dit.core.train_step import ema_decay, learning_rate, make_ema, make_optimizer, update_ema

TINY = DiTConfig(input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=3)


def rates(total: int, **fields: object) -> list[float]:
    config = OptimizerConfig(learning_rate=2.0, **fields)
    return [learning_rate(config, step, total) for step in range(total)]


def test_constant_rate():
    assert rates(3) == [2.0, 2.0, 2.0]


def test_warm_up_rises_to_the_peak_and_never_starts_at_zero():
    assert rates(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_falls_from_the_peak_to_just_above_zero():
    expected = [1.0, 2.0] + [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert rates(10, warmup_steps=2, schedule="cosine") == pytest.approx(expected)
    assert rates(1000, schedule="cosine")[-1] > 0


def test_warm_up_as_long_as_the_run():
    assert rates(2, warmup_steps=2, schedule="cosine") == [1.0, 2.0]


@pytest.mark.parametrize("step", [-1, 5])
def test_steps_outside_the_run_are_refused(step: int):
    with pytest.raises(ValueError, match="step"):
        learning_rate(OptimizerConfig(), step, 5)


def test_decay_is_warmed_up():
    assert ema_decay(0, 0.9999) == 0.1
    assert ema_decay(90, 0.9999) == 0.91
    assert ema_decay(10**6, 0.9999) == 0.9999


def test_averages_move_towards_the_weights():
    params = {"w": torch.tensor([1.0, 2.0]), "fixed": torch.tensor([0.1])}
    ema = make_ema(params)
    kept = ema["w"]
    params["w"].fill_(5.0)
    assert kept.tolist() == [1.0, 2.0]  # a copy
    update_ema(ema, params, 0.75)
    assert ema["w"] is kept
    torch.testing.assert_close(kept, torch.tensor([2.0, 2.75]))
    assert torch.equal(ema["fixed"], params["fixed"])


def test_averages_are_float32_whatever_the_weights_are():
    params = {"w": torch.ones(2, dtype=torch.bfloat16)}
    ema = make_ema(params)
    params["w"] = torch.full((2,), 2.0, dtype=torch.bfloat16)
    for _ in range(3):
        update_ema(ema, params, 0.999)  # a bfloat16 average would not move
    assert ema["w"].dtype == torch.float32
    torch.testing.assert_close(ema["w"], torch.full((2,), 2 - 0.999**3))


def test_averages_of_other_weights_are_refused():
    ema = make_ema({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match="b, c"):
        update_ema(ema, {"a": torch.zeros(1), "c": torch.zeros(1)}, 0.5)


def test_optimizer_trains_all_but_the_position_table():
    model = DiT(TINY)
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.1, betas=(0.8, 0.9)))
    (group,) = optimizer.param_groups
    trained = {id(p) for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if name != "pos_embed"}
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (0.5, 0.1, (0.8, 0.9))
    assert group["fused"] is True


def test_optimizer_steps_as_the_paper_says():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    model.weight.grad = torch.tensor([[3.0]])
    optimizer.step()
    # decoupled decay, then the first Adam step: of the size of the learning rate
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)
