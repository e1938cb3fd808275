"""The judge.

It is the small classifier that an evaluation trains on real images; its penultimate layer holds the features.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, UInt8
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from ray_dit.config import ClassifierConfig
from ray_dit.core.classifier import FEATURE_DIM, create, predict, train_classifier
from ray_dit.metrics.base import JUDGE, FeatureNetwork, Network, Seen
from ray_dit.results import ClassifierShape


def train(
    images: UInt8[np.ndarray, "N S S 3"],
    labels: Int64[np.ndarray, " N"],
    num_classes: int,
    config: ClassifierConfig,
    seed: int,
) -> tuple[bytes, ClassifierShape]:
    """Weights as safetensors, and the shape they are of."""
    model = train_classifier(images, labels, num_classes, config, seed)
    shape = ClassifierShape(num_classes=model.num_classes, image_size=model.image_size, width=model.width)
    return bytes_of(model.state_dict()), shape


def load(weights: Callable[[], bytes], shape: ClassifierShape) -> Network:
    """The trained classifier, in evaluation mode."""
    model = create(shape.num_classes, shape.image_size, shape.width, seed=0)
    model.load_state_dict(tensors_of(weights()))
    model.eval()

    def see(images: UInt8[np.ndarray, "N S S 3"]) -> Seen:
        logits, features = predict(model, images)
        return Seen(features, logits)

    return see


NETWORK = FeatureNetwork(name=JUDGE, dim=FEATURE_DIM, knows_classes=True, load=load, train=train)
