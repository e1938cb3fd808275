"""What a checkpoint must hold for a resumed run to end in the same bits, and the averaged weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from ray_dit.config import OptimizerConfig
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.ledger.writers import HashAlarm
from ray_dit.runtime.training.state import TrainingState
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import (
    CPU,
    Regression,
    at_half,
    key_of,
    picture_of,
    read_step,
    run,
    same,
)

TENSORS = ("model.", "ema.", ".exp_avg", ".exp_avg_sq", ".step", "log")
FACTS: dict[str, Any] = {"step": 0, "history": ()}
"""With what they are at the start."""


def is_of(name: str, field: str) -> bool:
    """Whether a tensor is one of these."""
    return name == field or (field != "log" and (name.startswith(field) or name.endswith(field)))


def test_these_are_all_fields_of_the_state(tmp_path: Path) -> None:
    tensors, facts = read_step(at_half(tmp_path), 4)
    assert all(sum(is_of(name, field) for field in TENSORS) == 1 for name in tensors)
    assert set(type(facts).model_fields) == set(FACTS)


@pytest.mark.parametrize("left_out", [*TENSORS, *FACTS])
def test_every_field_of_the_state_is_needed(tmp_path: Path, left_out: str) -> None:
    """With any one field as it was at the start, the resumed run ends elsewhere (or cannot start)."""
    whole = run(tmp_path / "whole")
    store = at_half(tmp_path / "half")
    tensors, facts = read_step(store, 4)
    changed = dict(tensors)
    for name in tensors:
        if is_of(name, left_out):
            changed[name] = initial(name, tensors[name])
    assert left_out in FACTS or any(not torch.equal(tensors[n], changed[n]) for n in tensors)
    key = key_of(store, 4)
    for each in (key, f"_plain/{key}.json"):  # else it would be known as damaged
        store.delete(each)
    if left_out in FACTS:
        facts = facts.model_copy(update={left_out: FACTS[left_out]})
    store.put(key, checkpoint_bytes(changed, facts))
    try:
        resumed = run(tmp_path / "half")
    except HashAlarm:  # an object came out otherwise than before: seen as well
        return
    assert not same(whole, resumed)


def initial(name: str, value: torch.Tensor) -> torch.Tensor:
    """What this entry of the state is when training starts."""
    kind, _, parameter = name.partition(".")
    if kind in ("model", "ema"):
        return dict(Regression().setup(CPU).named_parameters())[parameter].detach()
    return value[:0] if name == "log" else torch.zeros_like(value)


def made(device: str = "cpu", ema_decay: float | None = 0.9) -> TrainingState:
    """A state after two steps with random gradients."""
    model = Regression().setup(torch.device(device))
    state = TrainingState.initial(model, OptimizerConfig(), ema_decay)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
    state.step, state.log = 2, [(1.0, 0.5, 3.0, 0.1, 0.4), (2.0, 0.25, 2.0, 0.1, 0.3)]
    return state


def test_a_restored_state_is_the_one_saved() -> None:
    state, other = made(), TrainingState.initial(Regression().setup(CPU), OptimizerConfig(), 0.9)
    other.restore(state.tensors(), state.facts())
    assert other.tensors().keys() == state.tensors().keys()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in state.tensors().items())
    assert (other.step, other.log) == (state.step, state.log)


def test_a_restored_optimizer_is_where_the_parameters_are() -> None:
    """On an accelerator the fused AdamW reads its count of steps there too; meta stands in for one."""
    saved = {name: value.detach().cpu() for name, value in made().tensors().items()}
    model = Regression().setup(CPU).to("meta")
    state = TrainingState(model, None, torch.optim.AdamW(model.parameters()))
    state.restore(saved, CheckpointFacts(step=2))
    of_optimizer = [value for entry in state.optimizer.state.values() for value in entry.values()]
    assert len(of_optimizer) == 3 * 4
    assert {value.device.type for value in of_optimizer} == {"meta"}


def test_pictures_are_of_the_averaged_weights_and_training_goes_on_without_them(tmp_path: Path) -> None:
    whole = run(tmp_path)
    store = open_store(str(tmp_path))
    picture = load(store.get(picture_of(store, 8)))["weight"]
    state, _ = read_step(store, 8)
    assert torch.equal(picture, state["ema.0.weight"])
    assert torch.equal(picture, whole.result["0.weight"])
    assert not torch.equal(picture, state["model.0.weight"])


def test_the_trained_weights_come_back_also_after_an_error() -> None:
    state = made()
    before = {name: value.detach().clone() for name, value in state.model.named_parameters()}

    def look_and_fail() -> None:
        with state.averaged() as model:
            assert not model.training
            assert not torch.is_grad_enabled()
            assert state.ema is not None
            assert torch.equal(dict(model.named_parameters())["0.bias"], state.ema["0.bias"])
            assert not torch.equal(before["0.bias"], state.ema["0.bias"])
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        look_and_fail()
    assert state.model.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in state.model.named_parameters())


def test_without_an_average_no_weight_is_copied() -> None:
    state = made(ema_decay=None)
    versions = [value._version for value in state.model.parameters()]  # counts the writes into a tensor
    cloned: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            cloned.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch(), state.averaged() as model:
        assert isinstance(model, nn.Module)
        assert not model.training
    assert cloned == []
    assert [value._version for value in state.model.parameters()] == versions
