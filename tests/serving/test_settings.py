"""Settings of the endpoint."""

import pytest

from ray_dit.config.serve import ApiConfig, ServeConfig


def test_models_are_named_by_their_place_unless_told():
    config = ServeConfig(model=("runs/model/", "big=s3://models/xl?endpoint=x", "s3://b/other"))
    assert config.models() == [
        ("runs", "runs/model/"),
        ("big", "s3://models/xl?endpoint=x"),
        ("other", "s3://b/other"),
    ]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("demo/run/model", "run"),
        ("s3://bucket/run/model?endpoint=x", "run"),
        ("s3://bucket/model", "bucket"),
        ("file:///models/digits/model/", "digits"),
        ("model", "model"),
        ("./model", "model"),
        ("../model", "model"),
        ("/model", "model"),
        ("demo/model-2", "model-2"),
        ("models/digits", "digits"),
    ],
)
def test_a_folder_called_model_is_named_by_the_one_it_lies_in(uri, name):
    assert ServeConfig(model=(uri,)).models() == [(name, uri)]


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        (("dall-e-3=imagenet",), "no model 'imagenet' is served, only digits, faces"),
        (("faces=digits",), "would hide the model"),
        (("dall-e-3",), "is not ALIAS=MODEL"),
        (("=digits",), "is not ALIAS=MODEL"),
        (("dall-e-3=",), "is not ALIAS=MODEL"),
        (("a=digits", "a=faces"), "given twice"),
        (("a=digits", "b=a"), "no model 'a' is served"),
    ],
)
def test_wrong_aliases_are_refused(aliases, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(model=("digits=m", "faces=n"), api=ApiConfig(aliases=aliases))


def test_aliases_stand_for_served_models():
    api = ApiConfig(aliases=("dall-e-3=digits", "dall-e-2=digits"))
    config = ServeConfig(model=("digits=m", "faces=n"), api=api)
    assert config.api.models_by_alias(["digits", "faces"]) == {"dall-e-3": "digits", "dall-e-2": "digits"}


def test_trusted_proxies_are_addresses_or_networks():
    assert ApiConfig(trusted_proxies=("10.0.0.0/8", "::1")).trusted_proxies == ("10.0.0.0/8", "::1")
    with pytest.raises(ValueError, match=r"'proxy.example' .*: give an address or a network"):
        ApiConfig(trusted_proxies=("proxy.example",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ()}, "at least one"),
        ({"model": ("a/m", "b/m")}, "same name"),
        ({"model": ("a/m/model", "b/m")}, "same name"),
        ({"model": ("m",), "replicas": 3, "max_replicas": 2}, "less than replicas"),
        ({"model": ("m",), "prot": 8000}, "prot"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(**fields)
