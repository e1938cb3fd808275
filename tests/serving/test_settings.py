"""Settings, scaling, and the Serve config file."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ray_dit.config.serve import ServeConfig
from ray_dit.serving.scaling import ImagesPolicy

ROOT = Path(__file__).parents[2]


def test_models_are_named_by_their_place_unless_told():
    config = ServeConfig(model=("runs/model/", "big=s3://models/xl?endpoint=x", "s3://b/other"))
    assert config.models() == [
        ("model", "runs/model/"),
        ("big", "s3://models/xl?endpoint=x"),
        ("other", "s3://b/other"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ()}, "at least one"),
        ({"model": ("a/m", "b/m")}, "same name"),
        ({"model": ("m",), "replicas": 3, "max_replicas": 2}, "less than replicas"),
        ({"model": ("m",), "prot": 8000}, "prot"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(**fields)


def test_replicas_follow_the_images_on_their_way_and_waiting():
    def replicas(images: list[float], queued: float = 0) -> int:
        context = SimpleNamespace(
            aggregated_metrics={"images": dict(enumerate(images))}, total_queued_requests=queued
        )
        return ImagesPolicy(images_per_replica=10)(context)[0]

    assert [replicas([0]), replicas([10]), replicas([11]), replicas([30, 30]), replicas([5], 20)] == [
        1,
        1,
        2,
        6,
        3,
    ]
    assert replicas([]) == 1


def test_the_config_file_is_one_of_serve_and_of_ours():
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    assert set(document) <= set(ServeDeploySchema.model_fields)  # Serve itself lets unknown keys pass
    assert schema.applications[0].import_path == "ray_dit.serving.app:build"
    assert document["http_options"]["host"] == "127.0.0.1"
    ServeConfig(**document["applications"][0]["args"])
