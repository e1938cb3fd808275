"""Settings of the endpoint."""

import pytest

from ray_dit.config.serve import ServeConfig


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
