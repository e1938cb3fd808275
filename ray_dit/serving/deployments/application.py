"""The Serve application: the API's deployment over a deployment per model.

``build`` is what a Serve config file names.
"""

import os
from collections.abc import Mapping
from typing import Any

from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from ray_dit.config.serve import ApiConfig, ServeConfig
from ray_dit.serving.deployments.replica import ModelReplica, set_up_logging
from ray_dit.serving.deployments.replica_backend import ReplicaBackend
from ray_dit.serving.http.keys import VARIABLE

ROUTER: Any = "ray_dit.serving.deployments.router:FewestStepsRouter"
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Ray Serve's own log: the API writes one line per request, which says more."""


@ray_serve.ingress()
class Api:
    """The HTTP API; holds no model."""

    def __init__(self, config: dict[str, Any], log_level: str, **models: DeploymentHandle[Any]) -> None:
        set_up_logging(log_level)
        self._config = ApiConfig(**config)
        self._backends = {name.removeprefix("model:"): ReplicaBackend(h) for name, h in models.items()}

    def __serve_build_asgi_app__(self) -> Any:
        from ray_dit.serving.deployments.metrics import RequestMetrics
        from ray_dit.serving.http.app import create_app

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
                compile=config.compile,
                vae_precision=config.vae_precision,
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
        # Without bound: the engines and the limiter refuse, and say why; Serve's own limit only makes wait.
        max_ongoing_requests=100_000,
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
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
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
            policy_function="ray_dit.serving.scaling:StepsPolicy",
            policy_kwargs={"image_steps_per_replica": config.image_steps_per_replica},
        ),
    )
