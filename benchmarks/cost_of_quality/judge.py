"""The judge, a classifier trained on the real images, and what it makes of them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from benchmarks.cost_of_quality.settings import Settings
from ray_dit.config import ImagesConfig
from ray_dit.core.classifier import Classifier, create, predict, train_classifier
from ray_dit.core.metrics import FeatureStatistics, accuracy, class_counts
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.reading import load_images


@dataclass(frozen=True)
class Truth:
    """The judge's weights, and what it makes of the real images."""

    judge: bytes
    train: FeatureStatistics
    heldout: FeatureStatistics
    heldout_accuracy: float
    num_classes: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.judge).hexdigest()


def classifier_of(weights: bytes, num_classes: int, settings: Settings) -> Classifier:
    """The judge from its weights, in evaluation mode."""
    model = create(num_classes, settings.size, settings.classifier.width, seed=0)
    model.load_state_dict(tensors_of(weights))
    return model.eval()


def real_truth(uri: str, settings: Settings) -> Truth:
    """Trains the judge and lets it look at the real images."""
    plan = plan_images(ImagesConfig(uri=uri, size=settings.size, heldout=settings.heldout))
    images, labels = real_images(plan, heldout=False)
    num_classes = len(plan.classes)
    print(f"training the judge on {len(images)} images ...", flush=True)
    judge = train_classifier(images, labels, num_classes, settings.classifier, settings.classifier_seed)
    train = FeatureStatistics.of(predict(judge.eval(), images)[1])
    images, labels = real_images(plan, heldout=True)
    logits, features = predict(judge, images)
    counts = class_counts(torch.from_numpy(labels), logits.argmax(dim=1), num_classes)
    weights = bytes_of(judge.state_dict())
    return Truth(weights, train, FeatureStatistics.of(features), accuracy(counts), num_classes)


def real_images(plan: ImagePlan, *, heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real images of one side of the split, and their labels."""
    images, kept, _ = load_images(plan, plan.rows(heldout=heldout))
    return images, plan.labels[kept]
