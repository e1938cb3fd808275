"""The judge sees the real images, and its weights are all that a worker needs."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.cost_of_quality.judge import classifier_of, real_truth
from ray_dit.core.classifier import predict
from tests.benchmarks.cost_of_quality.examples import settings
from tests.support.tiny import write_pictures

OURS = settings(
    size=16,
    heldout=0.25,
    classifier={"steps": 30, "batch_size": 8, "learning_rate": 0.005, "width": 4},
)


def test_the_judge_reads_the_real_images_and_comes_back_from_its_weights(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"dark": 12, "bright": 12})
    truth, again = (real_truth(str(tmp_path / "images"), OURS) for _ in range(2))
    assert truth.num_classes == 2
    assert truth.train.count + truth.heldout.count == 24
    assert truth.heldout.count > 0
    assert truth.heldout_accuracy > 0.8
    assert truth.sha256 == again.sha256
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    ours, same = (predict(classifier_of(one.judge, 2, OURS), images)[0] for one in (truth, again))
    assert torch.equal(ours, same)
    assert not torch.equal(ours[0], ours[1])
