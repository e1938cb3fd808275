"""How handles choose a replica: a request router of Ray Serve by `ray_dit.serving.routing`."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from ray_dit.serving.backend import ImageSpec
from ray_dit.serving.routing import Outstanding


class FewestStepsRouter(RequestRouter):
    """Gives a spec to the replica with the fewest image steps to do, and to the next if that takes no more.

    Each handle, so each replica of the API, knows of its own requests only.
    """

    def initialize_state(self, **_: Any) -> None:
        """Called by Ray Serve, once."""
        self._outstanding = Outstanding()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Called by Ray Serve for every attempt: the replicas, each a rank of its own."""
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        ranked = self._outstanding.ranked(by_id)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = (
                True  # all were offered: wait before the next time
            )
            if ranked:
                # At once: the next request may be routed before this one is sent.
                self._give(pending_request, ranked[0])
        return [[by_id[replica]] for replica in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Ray Serve when a replica has taken a request: perhaps not the first of the ranks."""
        self._give(pending_request, replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Ray Serve when a request has ended, however it did."""
        self._outstanding.end(internal_request_id)

    def _give(self, request: PendingRequest, replica: ReplicaID) -> None:
        steps = sum(spec.image_steps for spec in request.args if isinstance(spec, ImageSpec))
        if steps:  # else a question that costs no step
            self._outstanding.give(request.metadata.internal_request_id, replica, steps)
