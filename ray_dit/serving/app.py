"""The endpoint on Ray Serve: a deployment for the HTTP API, and one a model with an engine in each replica.

`build` is what a Serve config file names; `serve` runs it on this machine or a cluster and blocks. Since an image is a
function of its order, an order whose replica died is given to another one, and the client sees nothing of it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_dit.config import Precision
from ray_dit.config.serve import ApiConfig, EngineConfig, ServeConfig
from ray_dit.errors import UserError
from ray_dit.serving.keys import VARIABLE, Keys
from ray_dit.serving.scaling import IMAGES_METRIC
from ray_dit.serving.service import Accepted, Complete, Message, ModelInfo, Order, Partial, Refused
from ray_dit.session import ray_session

logger = logging.getLogger(__name__)

APP_NAME = "ray-dit"
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Ray Serve's own log: the API writes one line a request, which says more."""
INFO_AGE = 10.0
"""Seconds for which the API knows a model without asking again."""
PROXY_CALLBACK = "ray_dit.serving.guard:proxy_middlewares"
ATTEMPTS = 3
"""Replicas an order is given to before it fails."""


class ModelReplica:
    """One model with its engine; what `ReplicaBackend` talks to."""

    def __init__(
        self,
        name: str,
        uri: str,
        engine: dict[str, Any],
        *,
        threads: int,
        precision: Precision,
        log_level: str,
    ) -> None:
        import torch

        from ray_dit.pipeline import load
        from ray_dit.serving.metrics import EngineMetrics
        from ray_dit.serving.service import ModelService

        set_up_logging(log_level)
        torch.set_num_threads(threads)
        self._metrics = EngineMetrics(name)
        pipeline = load(uri, precision=precision)
        self._service = ModelService(name, pipeline, EngineConfig(**engine), self._metrics)
        engine_now = self._service.engine
        logger.info("model %s: up to %d rows a step", name, engine_now.max_step_rows)

    async def info(self) -> ModelInfo:
        """See Backend."""
        return await self._service.info()

    async def ready(self) -> bool:
        """See Backend."""
        return await self._service.ready()

    async def generate(self, order: Order) -> AsyncIterator[Message]:
        """See Backend."""
        async for message in self._service.generate(order):
            yield message

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve, for the policy."""
        return {IMAGES_METRIC: float(self._gauge())}

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        self._gauge()
        if not await self._service.ready():
            raise RuntimeError("the engine fails at every step")

    def _gauge(self) -> int:
        load = self._service.load()
        self._metrics.gauge(load)
        return load.images

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close(timeout=5)


class ReplicaBackend:
    """A model behind a handle of Ray Serve."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._info: tuple[float, ModelInfo] | None = None

    async def info(self) -> ModelInfo:
        """See Backend. Asked again after a while: an update may have put another model in its place."""
        if self._info is None or time.monotonic() - self._info[0] > INFO_AGE:
            try:
                self._info = time.monotonic(), await self._handle.info.remote()
            except (RayError, RayServeException) as error:
                if self._info is None:
                    raise TimeoutError("no replica answered") from error
        return self._info[1]

    async def ready(self) -> bool:
        """See Backend."""
        return await self._handle.ready.remote()

    async def generate(self, order: Order) -> AsyncIterator[Message]:
        """See Backend. An order whose replica died goes to another, and goes on where it was."""
        started = time.monotonic()
        seen = _Seen()
        for _ in range(ATTEMPTS):
            left = None if order.seconds is None else order.seconds - (time.monotonic() - started)
            if left is not None and left <= 0:
                break
            messages: Any = self._handle.options(stream=True).generate.remote(replace(order, seconds=left))
            try:
                async for message in messages:
                    if isinstance(message, Refused) and message.reason == "closed":
                        break  # this replica is shutting down, or its engine has stopped
                    if seen.new(message):
                        yield message
                else:
                    return
                await asyncio.sleep(0.1)
            except RayActorError:
                logger.warning("a replica died during an order; giving it to another")
                await asyncio.sleep(0.1)
            except (RayError, RayServeException):
                logger.exception("an order failed on its replica")
                yield Refused("internal", "the model failed on this request; try again")
                return
            finally:
                messages.cancel()
        yield Refused("lost", "the model is not available now; try again")


class _Seen:
    """Which messages of an order are out, so that a second attempt repeats none."""

    def __init__(self) -> None:
        self._accepted = False
        self._complete: set[int] = set()
        self._steps: dict[int, int] = {}

    def new(self, message: Message) -> bool:
        """Whether it is not out yet; it is from now on."""
        if isinstance(message, Accepted):
            known, self._accepted = self._accepted, True
            return not known
        if isinstance(message, Complete):
            known = message.index in self._complete
            self._complete.add(message.index)
            return not known
        if isinstance(message, Partial):
            if message.index in self._complete or message.step <= self._steps.get(message.index, 0):
                return False
            self._steps[message.index] = message.step
        return True


@ray_serve.ingress()
class Api:
    """The HTTP API; holds no model."""

    def __init__(self, config: dict[str, Any], log_level: str, **models: DeploymentHandle[Any]) -> None:
        set_up_logging(log_level)
        self._config = ApiConfig(**config)
        self._backends = {name.removeprefix("model:"): ReplicaBackend(h) for name, h in models.items()}

    def __serve_build_asgi_app__(self) -> Any:
        from ray_dit.serving.api import create_app
        from ray_dit.serving.metrics import RequestMetrics

        # Serve's proxy answers with the request id itself.
        return create_app(self._backends, self._config, own_request_id=False, observe=RequestMetrics())


def build(config: ServeConfig) -> ray_serve.Application:
    """The Serve application of these settings; in a Serve config file they are its ``args``.

    ``host``, ``port``, ``address`` and ``num_cpus`` belong to the machine, and have no effect here.
    """
    return application(
        config,
        {
            name: deployment(name, config, ModelReplica).bind(
                name,
                uri,
                config.engine.model_dump(),
                threads=config.threads,
                precision=config.precision,
                log_level=config.log_level,
            )
            for name, uri in config.models()
        },
    )


def application(config: ServeConfig, models: Mapping[str, ray_serve.Application]) -> ray_serve.Application:
    """The API over these bound deployments, each with the methods of ``ModelReplica``."""
    # The cluster's processes do not have this one's environment; the variable holds hashes only.
    keys = {"runtime_env": {"env_vars": {VARIABLE: os.environ[VARIABLE]}}} if VARIABLE in os.environ else {}
    api: Any = ray_serve.deployment(
        Api,
        name="api",
        num_replicas=config.api_replicas,
        max_ongoing_requests=100_000,  # limits are the engines' and the keys', which answer; Serve's own only wait
        ray_actor_options={"num_cpus": 0, **keys},
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.drain_seconds,
        health_check_period_s=5,
        logging_config=QUIET,
    )
    handles: dict[str, Any] = {f"model:{name}": model for name, model in models.items()}
    return api.bind(config.api.model_dump(), config.log_level, **handles)


def deployment(name: str, config: ServeConfig, replica: type) -> Any:
    """The deployment of one model, its engine in instances of ``replica``."""
    engine = config.engine
    scaled = config.max_replicas is not None and config.max_replicas > config.replicas
    count: dict[str, Any] = (
        {"autoscaling_config": _autoscaling(config)} if scaled else {"num_replicas": config.replicas}
    )
    return ray_serve.deployment(
        replica,
        name=f"model-{name}",
        # Above what the engine takes, so that it is the engine that refuses, with the time to come again.
        max_ongoing_requests=2 * (engine.slots + engine.max_queued) + 64,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if config.use_gpu else 0},
        max_surge_percent=config.surge_percent,
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        logging_config=QUIET,
        **count,
    )


def _autoscaling(config: ServeConfig) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=config.replicas,
        max_replicas=config.max_replicas or config.replicas,
        upscale_delay_s=config.upscale_seconds,
        downscale_delay_s=config.downscale_seconds,
        metrics_interval_s=2,
        look_back_period_s=10,
        policy=AutoscalingPolicy(
            policy_function="ray_dit.serving.scaling:ImagesPolicy",
            policy_kwargs={"images_per_replica": config.images_per_replica},
        ),
    )


def serve(config: ServeConfig) -> None:
    """Serves until interrupted (Ctrl-C or SIGTERM), then lets running requests finish.

    UserError if the port is taken, a model is not there, or the cluster does not answer.
    """
    from ray_dit.storage.pretrained import read_model

    for _, uri in config.models():
        read_model(uri)  # a clear error now, instead of replicas that fail one after another
    if config.address == "local":
        Keys.load(config.api.keys_file)
    _check_port(config)
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)  # for a private Ray
    with ray_session(config, logs=True):
        _serve(config)


def _serve(config: ServeConfig) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # after Ray, which sets its own
    try:
        start(config)
        url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
        print(f"serving {', '.join(name for name, _ in config.models())} at {url}", flush=True)
        print(f"page: {url}/   API: {url}/docs   stop: Ctrl-C", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("\nfinishing running requests (once more to stop at once) ...", file=sys.stderr)
        _drain(config.drain_seconds)
    finally:
        ray_serve.shutdown()


def _drain(seconds: float) -> None:
    """Takes the application away, so that nothing new comes in, and waits for what runs."""
    latest = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        ray_serve.delete(APP_NAME, _blocking=False)
        while APP_NAME in ray_serve.status().applications and time.monotonic() < latest:
            time.sleep(0.2)


def start(config: ServeConfig) -> None:
    """Starts Serve and the application on the Ray this process is connected to; returns when it is up."""
    from ray.serve.config import ProxyLocation

    ray_serve.start(
        proxy_location=ProxyLocation.HeadOnly if config.address == "local" else ProxyLocation.EveryNode,
        http_options={"host": config.host, "port": config.port},
        logging_config=QUIET,
    )
    try:
        ray_serve.run(build(config), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise UserError(
            "the models could not be started: see the messages above, or the logs of Ray Serve"
        ) from error


def set_up_logging(level: str) -> None:
    """The package's log lines to standard error, which Ray collects: requests as JSON, one a line."""
    package = logging.getLogger("ray_dit")
    package.setLevel(level.upper())
    package.propagate = False
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _check_port(config: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"port {config.port} of {config.host} can't be used ({error.strerror}): give another --port"
            ) from error


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
