"""What a replica is made of. That a run works, ``python -m benchmarks.serving --quick`` shows in minutes."""

from argparse import Namespace

import pytest

from benchmarks.serving.bench import Bench


@pytest.mark.parametrize(("device", "times"), [("simulated", (0.02, 0.0004)), ("cpu", (None, None))])
def test_only_the_simulated_device_has_the_step_times_asked_for(
    device: str, times: tuple[float | None, float | None]
) -> None:
    asked = Namespace(device=device, a=0.02, b=0.0004, threads=1, precision="float32")
    model = Bench(asked, "folder", 8000).model
    assert (model["a"], model["b"]) == times
    assert (model["uri"], model["threads"], model["precision"]) == ("folder", 1, "float32")
