"""State dicts that do not fit a model are refused, and the parameters named."""

import pytest
import torch

from ray_dit.errors import UserError
from ray_dit.formats.weights import check_shapes

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.1])}


def test_check_shapes_lists_every_kind_of_misfit() -> None:
    check_shapes(STATE, STATE, "here")
    wanted = {"a.weight": torch.empty(3, 3), "c": torch.empty(1)}
    with pytest.raises(UserError) as caught:
        check_shapes(STATE, wanted, "here")
    for part in ("missing: c", "unexpected: b", "a.weight is 2x3 instead of 3x3", "here"):
        assert part in str(caught.value)


def test_check_shapes_names_a_few_and_counts_the_rest() -> None:
    with pytest.raises(UserError, match=r"missing: p0, p1, p2, p3, p4, p5 and 94 more\)"):
        check_shapes({}, {f"p{i}": torch.empty(1) for i in range(100)}, "here")
