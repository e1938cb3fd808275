"""Ray, entered and left: a private one on this machine or a cluster that is there."""

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from ray_dit.errors import UserError, first_message

MIN_CPUS = 4
"""Logical CPUs a local Ray declares at least: actor pools can wait for each other for ever on two."""


class Placed(Protocol):
    """Which Ray is meant: that of a stage's or the server's configuration."""

    @property
    def address(self) -> str: ...
    @property
    def num_cpus(self) -> int | None: ...


class Terminated(KeyboardInterrupt):
    """This process was sent SIGTERM, which stops it as Ctrl-C does."""


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """While it lasts SIGTERM raises ``Terminated``, so that what was begun is ended and nothing left behind.

    Only a process's main thread gets signals; elsewhere nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    _take_sigterm()
    try:
        yield
    except KeyboardInterrupt as error:
        # Where Ray waits, it raises a KeyboardInterrupt of its own in place of what the handler raised.
        if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        _give_back(signal.SIGTERM, before)


@contextlib.contextmanager
def interrupted_as_ever() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here too, and afterwards.

    Ray Train sets a handler of its own, which aborts the training and exits with status 0, and leaves it.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        _give_back(signal.SIGINT, before)


def _take_sigterm() -> None:
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _give_back(number: signal.Signals, handler: Any) -> None:
    """Sets the handler that was there before; None is one that Python can't name."""
    if _in_main_thread():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second one would disturb the ending
    raise Terminated


@contextlib.contextmanager
def ray_session(config: Placed, *, logs: bool = False, metrics_port: int | None = None) -> Iterator[Any]:
    """Connects to Ray as ``config`` says and disconnects at the end; yields the ray module.

    ``logs``: what its workers write to standard error shows here. ``metrics_port``: where a private one tells
    its metrics; else any free port. Inside an outer session (several stages in
    one process) it uses that one. UserError if the address does not answer.
    """
    if not debugging():  # Ray's C++ part warns about what Ray Data does by design
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield ray
        return
    with stopped_by_sigterm():
        try:
            with _without_greeting():
                _connect(ray, config, logs, metrics_port)
            _take_sigterm()  # again: Ray has taken it, and its C++ part would print stack traces
            yield ray
        finally:
            # A later session of this process numbers its actors alike: a handle still in some reference cycle
            # would, once collected, take the new actor of its number down with it.
            gc.collect()
            ray.shutdown()


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """Ray's C++ part says on stderr, past Python, that it took up its log level.

    Errors come as exceptions.
    """
    if debugging():
        yield
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _connect(ray: Any, config: Placed, logs: bool, metrics_port: int | None) -> None:
    try:
        _init(ray, config, logs, metrics_port)
    except SystemExit as error:  # what Ray makes of SIGTERM while it starts
        raise Terminated from error


def _init(ray: Any, config: Placed, logs: bool, metrics_port: int | None) -> None:
    common: dict[str, Any] = {
        "log_to_driver": logs or debugging(),
        "logging_level": logging.ERROR,
    }
    if config.address == "local":
        cpus = config.num_cpus or max(MIN_CPUS, os.cpu_count() or MIN_CPUS)
        common |= {} if metrics_port is None else {"_metrics_export_port": metrics_port}
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
    else:
        try:
            address = _resolved(config.address)
            _check_reachable(address)
            _take_token(found=config.address == "auto" and "RAY_ADDRESS" not in os.environ)
            _check_token(address)
            ray.init(address=address, **common)
        except ray.exceptions.AuthenticationError as error:
            raise UserError(_wants_token(config.address)) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster could be joined at {config.address!r} ({first_message(error)}): start one "
                "with `ray start --head`, or leave --address out for a private Ray on this machine"
            ) from error
    for name in ("ray.data", "ray.train"):  # the stages report progress themselves
        logging.getLogger(name).setLevel(logging.ERROR)


def check_resources(ray: Any, config: Placed, *, cpus: int, gpus: int) -> None:
    """UserError where a private Ray has less than must run at once: it would wait for ever.

    A cluster may still grow.
    """
    if config.address != "local":
        return
    there = ray.cluster_resources()
    if there.get("GPU", 0) < gpus:
        raise UserError(
            f"{gpus} GPUs are wanted at once and this machine's Ray has {there.get('GPU', 0):g}: leave "
            "--use-gpu out, or give the --address of a cluster that has them"
        )
    if there.get("CPU", 0) < cpus:
        raise UserError(
            f"{cpus} CPUs are wanted at once and this machine's Ray has {there.get('CPU', 0):g}: take fewer "
            f"workers or threads, or --num-cpus {cpus}"
        )


def largest_node(ray: Any, resource: str) -> float:
    """How much of a resource the node has that has most of it: an actor must find its own on one node."""
    nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    return max((float(node.get(resource, 0.0)) for node in nodes), default=0.0)


def cpus_for(ray: Any, *, threads: int, own_threads: int) -> int:
    """CPUs to reserve for an actor with so many torch threads, and so many others that keep a CPU busy.

    The others go without where no node has as many: they are then slower, where an actor would never start.
    """
    return max(threads, min(threads + own_threads, int(largest_node(ray, "CPU"))))


def beside_the_driver(ray: Any, kind: type, *, max_restarts: int = 0) -> Any:
    """What makes an actor of this class on the driver's machine, without a CPU of its own.

    Where that machine goes, the driver goes too. Calls that a network fault interrupts are repeated, so a
    method may run twice.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, max_restarts=max_restarts, max_task_retries=-1, scheduling_strategy=here)(
        kind
    )


def debugging() -> bool:
    """Whether the user asked for tracebacks and Ray's own words (``--debug``)."""
    return bool(os.environ.get("RAY_DIT_DEBUG"))


def _resolved(address: str) -> str:
    """For `auto` the address that Ray would take: RAY_ADDRESS, or that of the newest cluster of this machine.

    Ray writes the latter in a file that may outlive the cluster, and would wait for its answer without end.
    """
    if address != "auto":
        return address
    from ray._private.services import get_ray_address_from_environment

    return get_ray_address_from_environment("auto", None) or "auto"


def _check_reachable(address: str) -> None:
    """Fails within seconds for a host and port nobody listens at, where ray.init would wait for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at the Ray address {address!r} ({error.strerror or error}): check host and "
            "port, or leave --address out for a private Ray on this machine"
        ) from error


def _take_token(*, found: bool) -> None:
    """Shows this user's token, if there is one, to a cluster that was found on this machine, as Ray does.

    `ray start` asks for tokens by itself where the user has one. An address that was given may be anybody's.
    """
    if found:
        from ray._private.authentication import authentication_token_setup as tokens

        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_token(address: str) -> None:
    """Asks the cluster once: ray.init would ask for 20 seconds, and say nothing of tokens in the end.

    Raises Ray's AuthenticationError. What else is wrong is ray.init's to say.
    """
    if address.startswith("ray://"):
        return
    import ray._raylet
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.exceptions import AuthenticationError

    # Without any token the client below would end this process.
    tokens.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    client: Any = ray._raylet
    try:
        client.GcsClient(address=address)
    except AuthenticationError:
        raise
    except Exception:
        return


def _wants_token(address: str) -> str:
    return (
        f"the Ray cluster at {address!r} wants a token that this process does not show: set "
        "RAY_AUTH_MODE=token here, and have the cluster's token in ~/.ray/auth_token, in the file "
        "RAY_AUTH_TOKEN_PATH or in RAY_AUTH_TOKEN"
    )
