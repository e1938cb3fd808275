"""How many replicas the images ask for."""

from types import SimpleNamespace

from ray_dit.serving.scaling import ImagesPolicy


def test_replicas_follow_the_images_on_their_way_and_waiting():
    def replicas(images: list[float], queued: float = 0) -> int:
        context = SimpleNamespace(
            aggregated_metrics={"images": dict(enumerate(images))}, total_queued_requests=queued
        )
        return ImagesPolicy(images_per_replica=10)(context)[0]

    assert [replicas([0]), replicas([10]), replicas([11]), replicas([30, 30]), replicas([5], 20)] == [
        1,
        1,
        2,
        6,
        3,
    ]
    assert replicas([]) == 1
