"""The judge.

It is the small classifier that an evaluation trains on real images; its penultimate layer holds the features.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from ray_dit.config import ClassifierConfig
from ray_dit.core.classifier import FEATURE_DIM, create, predict, train_classifier
from ray_dit.metrics.base import JUDGE, FeatureNetwork, Network, Seen


def train(
    images: UInt8[np.ndarray, "N S S 3"],
    labels: Int64[np.ndarray, " N"],
    num_classes: int,
    config: ClassifierConfig,
    seed: int,
) -> tuple[bytes, dict[str, Any]]:
    """Weights as safetensors, and the shape they are of."""
    model = train_classifier(images, labels, num_classes, config, seed)
    facts = {"num_classes": model.num_classes, "image_size": model.image_size, "width": model.width}
    return bytes_of(model.state_dict()), facts


def load(weights: Callable[[], bytes], facts: Mapping[str, Any]) -> Network:
    """The trained classifier, in evaluation mode."""
    model = create(facts["num_classes"], facts["image_size"], facts["width"], seed=0)
    model.load_state_dict(tensors_of(weights()))
    model.eval()

    def see(images: UInt8[np.ndarray, "N S S 3"]) -> Seen:
        logits, features = predict(model, images)
        return Seen(features, logits)

    return see


NETWORK = FeatureNetwork(name=JUDGE, dim=FEATURE_DIM, knows_classes=True, load=load, train=train)
