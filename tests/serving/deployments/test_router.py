"""What Ray Serve asks of a request router, without a Ray."""

import asyncio
from types import SimpleNamespace
from typing import Any

from ray_dit.serving.backend import ImageSpec
from ray_dit.serving.deployments.router import FewestStepsRouter

REPLICAS: Any = [SimpleNamespace(replica_id=name) for name in "ab"]


def request(name: str, steps: int | None) -> Any:
    spec = [] if steps is None else [ImageSpec(labels=(0,), seed=0, image_steps=steps)]
    return SimpleNamespace(
        args=spec,
        metadata=SimpleNamespace(internal_request_id=name),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def router() -> FewestStepsRouter:
    made = FewestStepsRouter.__new__(FewestStepsRouter)  # Ray's part of it needs a Serve
    made.initialize_state()
    return made


def choose(made: FewestStepsRouter, asked: Any) -> list[str]:
    ranks = asyncio.run(made.choose_replicas(REPLICAS, asked))
    assert all(len(rank) == 1 for rank in ranks)  # else Serve would take the one with fewer requests
    return [rank[0].replica_id for rank in ranks]


def test_a_spec_counts_from_its_choice_to_its_end():
    made = router()
    long = request("long", 2500)
    assert choose(made, long)[0] == "a"
    assert long.routing_context.should_backoff
    assert choose(made, request("short", 25)) == ["b", "a"]  # before the long one is known to be routed
    made.on_request_routed(long, REPLICAS[1].replica_id, None)  # the first of its ranks was full
    assert choose(made, request("another", 25)) == ["a", "b"]
    made.on_request_completed(REPLICAS[1].replica_id, "long")
    assert choose(made, request("third", 25)) == ["b", "a"]


def test_a_question_costs_nothing():
    made = router()
    for number in range(3):
        choose(made, request(str(number), None))
    assert made._outstanding._given == {}


def test_ray_serve_makes_one():
    from ray.serve.config import RequestRouterConfig

    config = RequestRouterConfig(request_router_class="ray_dit.serving.deployments.router:FewestStepsRouter")
    assert config.get_request_router_class() is FewestStepsRouter
