"""`ray-dit serve`: checks early, starts the application, and ends it without dropping a request."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve as ray_serve
from ray.serve.config import ProxyLocation

from ray_dit.config.serve import ServeConfig
from ray_dit.errors import UserError
from ray_dit.runtime.session import ray_session
from ray_dit.serving.deployments.application import QUIET, build
from ray_dit.serving.deployments.terminal import show_json_bare
from ray_dit.serving.http.keys import Keys

APP_NAME = "ray-dit"
PROXY_ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_dit.serving.http.middleware.proxy:proxy_middlewares",
    # uvicorn, of which the proxy is made, would believe X-Forwarded-For of everyone on this machine.
    "FORWARDED_ALLOW_IPS": "",
}
"""What Ray Serve's proxy is told by the environment."""


def serve(config: ServeConfig) -> None:
    """Serves until interrupted (Ctrl-C or SIGTERM), then lets running requests finish.

    UserError if the port is taken, a model is not there, or the cluster does not answer.
    """
    from ray_dit.folders.model import read_model

    for _, uri in config.models():
        read_model(uri)  # a clear error now, instead of replicas that fail one after another
    if config.address == "local":
        Keys.load(config.api.keys_file)
    _check_port(config.host, config.port, "--port")
    if config.metrics_port is not None:
        if config.address != "local":
            raise UserError(
                "--metrics-port is a private Ray's: a cluster's is `ray start --metrics-export-port`"
            )
        _check_port("127.0.0.1", config.metrics_port, "--metrics-port")
    for name, value in PROXY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # for a private Ray
    with ray_session(config, logs=True, metrics_port=config.metrics_port) as ray:
        show_json_bare()
        _serve(config, ray)


def start(config: ServeConfig) -> None:
    """Starts Serve and the application on the Ray this process is connected to; returns when it is up."""
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


def _serve(config: ServeConfig, ray: Any) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # after Ray, which sets its own
    try:
        start(config)
        url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
        print(f"serving {', '.join(name for name, _ in config.models())} at {url}", flush=True)
        print(f"page: {url}/   API: {url}/docs   stop: Ctrl-C", flush=True)
        print(f"metrics: {metrics_url(ray.nodes())}", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("\nfinishing running requests (once more to stop at once) ...", file=sys.stderr)
        _drain(config.drain_seconds)
    finally:
        ray_serve.shutdown()


def metrics_url(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Where Prometheus finds the metrics of a Ray with these nodes (``ray.nodes()``): each has its own."""
    there = [node for node in nodes if node.get("Alive")]
    urls = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in there]
    more = f" and {len(urls) - 1} more nodes" if len(urls) > 1 else ""
    return (urls[0] if urls else "none") + more


def _drain(seconds: float) -> None:
    """Takes the application away, so that nothing new comes in, and waits for what runs."""
    latest = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        ray_serve.delete(APP_NAME, _blocking=False)
        while APP_NAME in ray_serve.status().applications and time.monotonic() < latest:
            time.sleep(0.2)


def _check_port(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host} can't be used ({error.strerror}): give another {option}"
            ) from error


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
