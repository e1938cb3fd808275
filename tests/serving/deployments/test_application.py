"""The Serve application and the Serve config file, without a Ray."""

from pathlib import Path

import pytest
import yaml

from ray_dit.config.serve import ServeConfig
from ray_dit.serving.deployments.application import application

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> ServeConfig:
    return ServeConfig(model=("first=demo/model",))


def test_hashes_of_keys_travel_to_the_cluster(config, monkeypatch):
    def environment() -> object:
        options = application(config, {})._bound_deployment.ray_actor_options
        return options.get("runtime_env", {}).get("env_vars")

    assert environment() is None
    monkeypatch.setenv("RAY_DIT_API_KEYS", "anna:" + 64 * "0")
    assert environment() == {"RAY_DIT_API_KEYS": "anna:" + 64 * "0"}


def test_the_config_file_is_one_of_serve_and_of_ours():
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    assert set(document) <= set(ServeDeploySchema.model_fields)  # Serve itself lets unknown keys pass
    assert schema.applications[0].import_path == "ray_dit.serving.deployments.application:build"
    assert document["http_options"]["host"] == "127.0.0.1"
    ServeConfig(**document["applications"][0]["args"])
