"""The points of the loss curve as JSON lines."""

import json
import math

from ray_dit.formats.loss_curve import COLUMNS, curve_lines, earlier_lines, named, read_curve, widened, width

RANGES = ("0-4", "5-9")
FULL = (10.0, 0.5, 2.0, 1e-4, 0.75, 0.25, math.nan)


def test_a_point_names_what_it_has() -> None:
    assert width(RANGES) == len(FULL) == len(COLUMNS) + 2
    assert named(FULL, RANGES) == {
        "step": 10, "loss": 0.5, "gradient_norm": 2.0, "learning_rate": 1e-4, "validation_loss": 0.75,
        "loss_by_t": {"0-4": 0.25, "5-9": None},
    }  # fmt: skip
    (short,) = widened([(10.0, 0.5)], width(RANGES))
    assert named(short, RANGES) == {"step": 10, "loss": 0.5}
    assert isinstance(named(FULL, RANGES)["step"], int)
    assert "validation_loss" not in named((*FULL[:4], math.nan))


def test_lines_are_strict_json_and_are_read_again() -> None:
    lines = curve_lines([FULL, (20.0, 0.25, 1.0, 1e-4, math.nan, 0.5, 0.5)], RANGES)
    assert lines.count(b"\n") == 2
    assert b"NaN" not in lines
    assert read_curve(lines) == [json.loads(line) for line in lines.splitlines()]
    assert [point["loss"] for point in read_curve(lines)] == [0.5, 0.25]
    assert read_curve(b"") == []


def test_the_list_of_earlier_versions_is_read_and_written() -> None:
    assert earlier_lines([FULL, (20.0, 0.25)]) == b"[[10, 0.5], [20, 0.25]]\n"
    assert read_curve(b"[[10, 0.5], [20, 0.25]]\n") == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}]
