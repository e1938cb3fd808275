"""The training loop without Ray: what a checkpoint must hold for a resumed run to end in the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from ray_dit.config import OptimizerConfig, TrainingConfig
from ray_dit.folders.checkpoints import checkpoint_key, checkpoint_steps, read_checkpoint
from ray_dit.formats.checkpoint import checkpoint_bytes
from ray_dit.ledger.job import HashAlarm, Job
from ray_dit.stages.training import train_worker
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

CONFIG = TrainingConfig(output="unused", steps=8, batch_size=4, checkpoint_every=4, log_every=2)


@dataclass
class Alone:
    """What Ray Train tells a worker, for the only one."""

    def get_world_rank(self) -> int:
        return 0

    def get_local_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1


@dataclass
class Board:
    """Takes what the loop reports."""

    written: list[dict[str, Any]] = field(default_factory=lambda: [])

    @property
    def write(self) -> "Board":
        return self

    def remote(self, **fields: Any) -> None:
        self.written.append(fields)


@dataclass
class Regression:
    """A small network learns a fixed function; sample p's input is a function of p."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.01, schedule="cosine", warmup_steps=2)
    ema_decay: float | None = 0.9
    seen: list[int] = field(default_factory=lambda: [])
    result: dict[str, torch.Tensor] = field(default_factory=lambda: {})
    log: np.ndarray | None = None

    def setup(self, device: torch.device, is_local_first: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(self, model: nn.Module, positions: np.ndarray) -> torch.Tensor:
        self.seen += positions.tolist()
        x = torch.from_numpy(np.sin(np.outer(positions + 1, [1.0, 2.0, 3.0]))).float()
        return (model(x) - x.sum(dim=1, keepdim=True)).square().flatten()

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        return {f"picture-{step}": save({"weight": model[0].weight.detach().clone()})}  # type: ignore[index]

    def finish(self, model: nn.Module, log: np.ndarray, job: Job) -> None:
        self.result = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.log = log


def run(folder: Path, config: TrainingConfig = CONFIG, trainee: Regression | None = None) -> Regression:
    trainee = trainee or Regression()
    job = Job.open(open_store(str(folder)), "train", {"test": True})
    train_worker(config, job, trainee, Board(), Alone())
    return trainee


def at_half(folder: Path) -> Store:
    """A finished run's folder, put back to its checkpoint of step 4."""
    run(folder)
    store = open_store(str(folder))
    store.delete(checkpoint_key(8))
    store.delete("picture-8")
    return store


def same(left: Regression, right: Regression) -> bool:
    return (
        all(torch.equal(value, right.result[name]) for name, value in left.result.items())
        and left.log is not None
        and right.log is not None
        and np.array_equal(left.log, right.log)
    )


def test_each_position_is_seen_once_and_in_order(tmp_path: Path) -> None:
    assert run(tmp_path).seen == list(range(8 * 4))


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    at_half(tmp_path / "half")
    resumed = run(tmp_path / "half")
    assert resumed.seen == list(range(4 * 4, 8 * 4))
    assert same(whole, resumed)
    for key in (checkpoint_key(4), checkpoint_key(8), "picture-8"):
        assert open_store(str(tmp_path / "whole")).get(key) == open_store(str(tmp_path / "half")).get(key)


def test_a_finished_run_only_finishes_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path)
    assert again.seen == [] and same(whole, again)


FIELDS = ("model.", "ema.", ".exp_avg", ".exp_avg_sq", ".step", "log", "step")


@pytest.mark.parametrize("left_out", FIELDS)
def test_every_field_of_the_state_is_needed(tmp_path: Path, left_out: str) -> None:
    """With any one field as it was at the start, the resumed run ends elsewhere (or cannot start)."""
    whole = run(tmp_path / "whole")
    store = at_half(tmp_path / "half")
    tensors, facts = read_checkpoint(store, 4)
    changed = dict(tensors)
    for name in tensors:
        if left_out in ("log", "step"):
            hit = name == left_out
        else:
            hit = name.startswith(left_out) or name.endswith(left_out)
        if hit:
            changed[name] = initial(name, tensors[name])
    assert left_out == "step" or any(not torch.equal(tensors[n], changed[n]) for n in tensors)
    store.delete(checkpoint_key(4))
    store.put(
        checkpoint_key(4), checkpoint_bytes(changed, facts | ({"step": 0} if left_out == "step" else {}))
    )
    try:
        resumed = run(tmp_path / "half")
    except HashAlarm:  # an object came out otherwise than before: seen as well
        return
    assert not same(whole, resumed)


def initial(name: str, value: torch.Tensor) -> torch.Tensor:
    """What this entry of the state is when training starts."""
    kind, _, parameter = name.partition(".")
    if kind in ("model", "ema"):
        return dict(Regression().setup(torch.device("cpu"), True).named_parameters())[parameter].detach()
    return value[:0] if name == "log" else torch.zeros_like(value)


@pytest.mark.parametrize("grad_clip, shorter", [(None, False), (1e-3, True), (1e3, False)])
def test_gradients_longer_than_asked_for_are_scaled_down(
    tmp_path: Path, grad_clip: float | None, shorter: bool
) -> None:
    once = CONFIG.model_copy(update={"steps": 1})
    run(tmp_path, once, Regression(OptimizerConfig(grad_clip=grad_clip)))
    tensors, _ = read_checkpoint(open_store(str(tmp_path)), 1)
    averages = [value.flatten() for name, value in tensors.items() if name.endswith(".exp_avg")]
    norm = torch.cat(averages).norm().item() / (1 - OptimizerConfig().betas[0])
    assert norm == pytest.approx(1e-3, rel=1e-2) if shorter else norm > 0.1


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, CONFIG.model_copy(update={"steps": 16}))
    assert checkpoint_steps(open_store(str(tmp_path))) == [12, 16]


def test_pictures_are_of_the_averaged_weights_and_training_goes_on_without_them(tmp_path: Path) -> None:
    whole = run(tmp_path)
    picture = load(open_store(str(tmp_path)).get("picture-8"))["weight"]
    state, _ = read_checkpoint(open_store(str(tmp_path)), 8)
    assert torch.equal(picture, state["ema.0.weight"]) and torch.equal(picture, whole.result["0.weight"])
    assert not torch.equal(picture, state["model.0.weight"])


def test_the_loss_curve_is_the_mean_since_the_last_point(tmp_path: Path) -> None:
    log = run(tmp_path).log
    assert log is not None and log[:, 0].tolist() == [2, 4, 6, 8]
    every = run(tmp_path / "every", CONFIG.model_copy(update={"log_every": 1})).log
    assert every is not None
    np.testing.assert_allclose(log[:, 1], every[:, 1].reshape(4, 2).mean(axis=1), rtol=1e-12)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    from ray_dit.errors import UserError

    store = at_half(tmp_path)
    store.delete(checkpoint_key(4))
    store.put(checkpoint_key(4), b"rubbish")
    with pytest.raises(UserError, match=r"checkpoint .*step-00000004.* is damaged"):
        run(tmp_path)
