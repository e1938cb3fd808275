"""A check can fail; that all of them hold on a CPU is in test_main."""

import torch

from benchmarks.gpu_check.bench import QUICK, Bench, Report, random_dit
from benchmarks.gpu_check.checks import parity
from ray_dit.config import DiTConfig
from ray_dit.core.dit import DiT


def test_a_wrong_network_fails():
    def off_by_little(config: DiTConfig) -> DiT:
        model = random_dit(config)
        model.final_layer.linear.bias += 1e-3
        return model

    report = Report()
    parity(Bench(torch.device("cpu"), QUICK, report, off_by_little))
    assert [check["check"] for check in report.checks if not check["holds"]] == ["float32 against the CPU"]
