"""Ray entered and left: a private one, one that is there already, and addresses nobody answers at."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import StageConfig
from ray_dit.errors import UserError
from ray_dit.runtime import session
from ray_dit.runtime.session import (
    MIN_CPUS,
    Terminated,
    check_resources,
    cpus_for,
    interrupted_as_ever,
    largest_node,
    ray_session,
    stopped_by_sigterm,
)


class Resources:
    """As much of Ray as is asked for its resources."""

    def __init__(self, **resources: float) -> None:
        self._resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self._resources


@pytest.mark.ray
def test_a_private_ray_is_joined_by_inner_sessions_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_session(StageConfig(output="o")) as outer:
        assert outer.cluster_resources()["CPU"] == max(MIN_CPUS, os.cpu_count() or 0)
        node = outer.get_runtime_context().get_node_id()
        with ray_session(StageConfig(output="o", num_cpus=1, address="127.0.0.1:1")) as inner:
            assert inner.get_runtime_context().get_node_id() == node
        assert ray.is_initialized()
    assert not ray.is_initialized()


def test_sigterm_stops_as_an_interrupt_does_and_only_meanwhile() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, which a shell's background job would ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_sigterm_is_told_from_an_interrupt_whatever_was_raised_for_it() -> None:
    def wait_as_ray_does() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # once is enough
            raise KeyboardInterrupt from None

    with pytest.raises(Terminated), stopped_by_sigterm():
        wait_as_ray_does()
    with pytest.raises(KeyboardInterrupt) as stop, stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGINT)
    assert type(stop.value) is KeyboardInterrupt


def test_signals_are_the_main_threads_business() -> None:
    said: list[str] = []

    def work() -> None:
        with stopped_by_sigterm(), interrupted_as_ever():
            said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["done"]


def test_an_interrupt_stays_one_where_another_handler_exits() -> None:
    def train_as_ray_does() -> None:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupted_as_ever():
        train_as_ray_does()
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_that_does_not_answer_is_said_within_seconds(address: str) -> None:
    began = time.monotonic()
    with (
        pytest.raises(
            UserError, match=f"nothing answers at the Ray address '{address}' .*: check host and port"
        ),
        ray_session(StageConfig(output="o", address=address)),
    ):
        pass
    assert time.monotonic() - began < 8


def test_a_cluster_that_is_gone_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # as the file Ray keeps of the newest cluster
    began = time.monotonic()
    gone = pytest.raises(UserError, match="nothing answers at the Ray address '127.0.0.1:1'")
    with gone, ray_session(StageConfig(output="o", address="auto")):
        pass
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("where", ["GcsClient", "ensure_token_if_auth_enabled"])
def test_a_cluster_that_wants_a_token_is_said_at_once(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import ray._raylet
    import ray.exceptions
    from ray._private.authentication import authentication_token_setup

    def refuse(*_: object, **__: object) -> None:
        raise ray.exceptions.AuthenticationError("no token, or another one")

    monkeypatch.setattr(ray._raylet if where == "GcsClient" else authentication_token_setup, where, refuse)
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"127.0.0.1:{there.getsockname()[1]}"
        wanted = pytest.raises(UserError, match=f"'{address}' wants a token .*: set RAY_AUTH_MODE=token")
        with wanted, ray_session(StageConfig(output="o", address=address)):
            pass


@pytest.mark.parametrize(("given", "shown"), [(None, True), ("127.0.0.1:1", False)])
def test_a_token_is_shown_to_a_cluster_that_was_found(
    monkeypatch: pytest.MonkeyPatch, given: str | None, shown: bool
) -> None:
    """Not to an address that was given: it may be anybody's."""
    from ray._private.authentication import authentication_token_setup

    seen: list[bool] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(session, "_resolved", lambda address: "127.0.0.1:1")
    monkeypatch.setattr(session, "_check_reachable", lambda address: None)
    monkeypatch.setattr(
        authentication_token_setup,
        "maybe_enable_token_auth_if_token_available",
        lambda **_: seen.append(True),
    )

    def stop(address: str) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr(session, "_check_token", stop)
    with pytest.raises(UserError, match="far enough"), ray_session(StageConfig(output="o", address="auto")):
        pass
    assert bool(seen) is shown


ENOUGH: dict[str, Any] = {"cpus": 4, "gpus": 0}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"cpus": 5, "gpus": 0}, "5 CPUs are wanted at once and this machine's Ray has 4: .*--num-cpus 5"),
        (
            {"cpus": 1, "gpus": 2},
            "2 GPUs are wanted at once and this machine's Ray has 0: leave --use-gpu out",
        ),
    ],
)
def test_what_a_private_ray_will_never_have_is_not_waited_for(wanted: dict[str, int], message: str) -> None:
    ray = Resources(CPU=4)
    with pytest.raises(UserError, match=message):
        check_resources(ray, StageConfig(output="o"), **wanted)
    check_resources(ray, StageConfig(output="o"), **ENOUGH)
    check_resources(ray, StageConfig(output="o", address="auto"), **wanted)  # a cluster may grow


class Nodes:
    """A Ray of several machines."""

    def __init__(self, *nodes: dict[str, float], dead: int = -1) -> None:
        self._nodes = [{"Resources": each, "Alive": n != dead} for n, each in enumerate(nodes)]

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


def test_an_actor_reserves_cpus_for_its_threads_where_a_node_has_them() -> None:
    cluster = Nodes({"CPU": 2.0}, {"CPU": 8.0, "memory": 1e9}, {"CPU": 64.0}, dead=2)
    assert (largest_node(cluster, "CPU"), largest_node(cluster, "memory")) == (8.0, 1e9)
    assert cpus_for(cluster, threads=2, own_threads=4) == 6
    assert cpus_for(cluster, threads=2, own_threads=9) == 8, "it would wait for ever"
    assert cpus_for(cluster, threads=12, own_threads=9) == 12, "threads of torch are not to share"
    assert largest_node(Nodes(), "CPU") == 0.0
