"""What `ray-dit serve` says of where things are."""

import socket

import pytest

from ray_dit.config.serve import ServeConfig
from ray_dit.errors import UserError
from ray_dit.serving.deployments.launcher import metrics_url, serve


def node(address: str, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "NodeManagerAddress": address, "MetricsExportPort": 9000}


def test_where_metrics_are():
    assert metrics_url([node("10.0.0.3", alive=False), node("10.0.0.1")]) == "http://10.0.0.1:9000/metrics"
    assert metrics_url([node("10.0.0.1"), node("10.0.0.2"), node("10.0.0.3")]) == (
        "http://10.0.0.1:9000/metrics and 2 more nodes"
    )


def test_a_port_of_metrics_that_cannot_be_is_told(model_uri):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServeConfig(model=(model_uri,), port=1024, metrics_port=taken.getsockname()[1])
        with pytest.raises(UserError, match="give another --metrics-port"):
            serve(config)
    with pytest.raises(UserError, match="a private Ray's"):
        serve(ServeConfig(model=(model_uri,), metrics_port=9000, address="auto"))
