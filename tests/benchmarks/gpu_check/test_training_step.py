"""A step trains what training trains."""

import pytest
import torch

from benchmarks.gpu_check.bench import QUICK, TINY, Bench, Report
from benchmarks.gpu_check.training_step import training_step


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_step_changes_every_weight_but_the_position_embedding(bfloat16: bool):
    bench = Bench(torch.device("cpu"), QUICK, Report())
    model = bench.model(TINY).train().requires_grad_(True)
    model.pos_embed.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    training_step(bench, model, model, rows=4, bfloat16=bfloat16)(0)
    same = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert same == {"pos_embed"}
    assert all(value.dtype == torch.float32 for value in model.parameters())
