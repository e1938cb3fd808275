"""A backend behind a handle, with fake ones: attempts at other replicas, and what a model is asked again."""

import asyncio

from ray_dit.serving.backend import Complete, Ended, ImageSpec, Refused
from ray_dit.serving.deployments import replica_backend
from ray_dit.serving.deployments.replica_backend import ReplicaBackend


class FakeHandle:
    """A deployment handle: each stream is the next of those given; ``info`` counts its calls."""

    def __init__(self, *streams: list) -> None:
        self._streams, self.asked = list(streams), 0
        self.info = self.generate = self

    def options(self, **_: object) -> "FakeHandle":
        return self

    def remote(self, *spec: object) -> object:
        if not spec:
            self.asked += 1
            return asyncio.sleep(0, self.asked)
        return FakeStream(self._streams.pop(0))


class FakeStream:
    def __init__(self, messages: list) -> None:
        self._messages = iter(messages)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> object:
        for message in self._messages:
            return message
        raise StopAsyncIteration

    def cancel(self) -> None: ...


def messages_of(handle: FakeHandle) -> list:
    async def collect() -> list:
        return [message async for message in ReplicaBackend(handle).generate(ImageSpec(labels=(0,), seed=0))]

    return asyncio.run(collect())


def test_a_spec_refused_by_a_replica_that_is_closing_goes_to_another():
    closed, done = Refused("closed", "shutting down"), [Complete(0, b""), Ended(1.0, 0.0)]
    assert messages_of(FakeHandle([closed], done)) == done
    lost = messages_of(FakeHandle([closed], [closed], [closed]))
    assert [message.reason for message in lost] == ["lost"]


def test_a_model_is_asked_again_what_it_is_after_a_while(monkeypatch):
    async def twice() -> list:
        backend = ReplicaBackend(FakeHandle())
        return [await backend.info(), await backend.info()]

    assert asyncio.run(twice()) == [1, 1]
    monkeypatch.setattr(replica_backend, "INFO_AGE", -1.0)
    assert asyncio.run(twice()) == [1, 2]
