"""The figures are what their names say; that all of them run on a CPU is in test_main."""

import pytest
import torch

from benchmarks.gpu_check.bench import QUICK, TINY, Bench, Report
from benchmarks.gpu_check.figures import sampling, training
from ray_dit.config import SamplerConfig
from ray_dit.core.dit import macs

PEAK = 1e12


def figures(part: object) -> list[dict[str, float]]:
    report = Report()
    part(Bench(torch.device("cpu"), QUICK, report), PEAK)  # type: ignore[operator]
    return report.figures


def test_mfu_of_sampling_counts_two_rows_per_image_and_step():
    (row,) = figures(sampling)
    flops_per_image = 2 * macs(TINY) * 2 * SamplerConfig().num_inference_steps
    assert row["mfu"] == pytest.approx(row["images_per_second"] * flops_per_image / PEAK, rel=1e-3)


def test_mfu_of_training_counts_three_times_a_forward_pass():
    rows = figures(training)
    assert len(rows) == 3
    for row in rows:
        assert row["mfu"] == pytest.approx(row["samples_per_second"] * 6 * macs(TINY) / PEAK, rel=1e-3)
