"""Guidance against the reference's numbers; which rows it calls the network for; padding."""

from collections.abc import Sequence

import pytest
import torch

from ray_dit.core.guidance import GuidedModel
from tests.support.golden_dit import CONFIG, assert_near, case, tiny_model


class Recorder:
    """A network that remembers what it was called with.

    Its output depends on x, t and the label of each row.
    """

    def __init__(self, learn_sigma: bool = False) -> None:
        self.learn_sigma = learn_sigma
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, t, y))
        eps = 0.5 * x + (t / 1000 + y)[:, None, None, None]
        return torch.cat((eps, 0.1 * eps), dim=1) if self.learn_sigma else eps


def predict(
    model: GuidedModel,
    scales: Sequence[float],
    guided: Sequence[bool] | None = None,
    pad_to: int | Sequence[int] | None = None,
):
    """Rows of x = 1 at t = 100, 200, ... with labels 0, 1, ..., guided by these scales."""
    count = len(scales)
    scale = torch.tensor(scales)
    call = model.call(scale, torch.tensor(guided or [True] * count), pad_to)
    t = 100.0 * torch.arange(1, count + 1)
    return model.predict(torch.ones(count, 4, 2, 2), t, torch.arange(count), scale, call)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guided_forward_is_the_references(scale: float):
    model = GuidedModel(tiny_model(), CONFIG.num_classes, guidance_channels=3)
    t, scales = torch.full((4,), 321.0), torch.full((4,), scale)
    call = model.call(scales, torch.ones(4, dtype=torch.bool))
    eps, variance = model.predict(case("x"), t, case("cfg_y"), scales, call)
    assert_near(torch.cat((eps, variance), dim=1), case(f"forward_with_cfg_t321_scale{scale}"))


def test_only_guided_rows_have_a_twin_and_each_row_its_own():
    network = Recorder()
    eps, variance = predict(
        GuidedModel(network, 9), [1.0, 3.0, 2.0, 4.0, 0.0], [True, True, False, True, True]
    )
    ((x, t, y),) = network.calls
    assert variance is None
    assert x.shape == (8, 4, 2, 2)
    assert y.tolist() == [0, 1, 2, 3, 4, 9, 9, 9]
    assert t.tolist() == [100, 200, 300, 400, 500, 200, 400, 500]
    cond = torch.tensor([0.6, 1.7, 2.8, 3.9, 5.0])
    uncond = torch.tensor([9.6, 9.7, 9.8, 9.9, 10.0])
    expected = uncond + torch.tensor([1.0, 3.0, 1.0, 4.0, 0.0]) * (cond - uncond)
    torch.testing.assert_close(eps[:, 3, 1, 1], expected)


def test_only_the_models_channels_are_guided():
    eps, variance = predict(GuidedModel(Recorder(learn_sigma=True), 9, guidance_channels=3), [2.0])
    assert variance is not None
    torch.testing.assert_close(eps[0, :, 0, 0], torch.tensor([-8.4, -8.4, -8.4, 0.6]))
    torch.testing.assert_close(variance, torch.full((1, 4, 2, 2), 0.06))


def test_without_a_null_class_there_is_no_guidance():
    network = Recorder()
    eps, _ = predict(GuidedModel(network, None), [5.0, 1.0])
    assert len(network.calls[0][0]) == 2
    torch.testing.assert_close(eps[:, 0, 0, 0], torch.tensor([0.6, 1.7]))


@pytest.mark.parametrize(("pad_to", "rows"), [(4, 4), (7, 7), ([16, 2, 6, 8], 6), ([4], 4), (None, 4)])
def test_padding_changes_the_shape_and_nothing_else(pad_to: int | list[int] | None, rows: int):
    network = Recorder(learn_sigma=True)
    model = GuidedModel(network, 9)
    padded, plain = predict(model, [2.0, 1.0, 1.0], pad_to=pad_to), predict(model, [2.0, 1.0, 1.0])
    assert [len(argument) for argument in network.calls[0]] == [rows] * 3
    assert all(torch.equal(one, other) for one, other in zip(padded, plain, strict=True))


def test_rows_that_fit_no_size_are_refused():
    with pytest.raises(ValueError, match="2 rows and 2 unconditional ones do not fit into 3"):
        predict(GuidedModel(Recorder(), 9), [2.0, 2.0], pad_to=[2, 3])
