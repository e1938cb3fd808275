"""A checkpoint's bytes: what is no tensor lies in one metadata entry, as it always did."""

import json

import torch
from safetensors.torch import save

from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes, parse_checkpoint


def test_the_bytes_are_those_of_before_and_are_read_back() -> None:
    tensors = {"model.weight": torch.arange(4.0)}
    data = checkpoint_bytes(tensors, CheckpointFacts(step=8))
    assert data == save(tensors, metadata={"facts": json.dumps({"step": 8})})
    read, facts = parse_checkpoint(data)
    assert facts.step == 8
    assert torch.equal(read["model.weight"], tensors["model.weight"])
