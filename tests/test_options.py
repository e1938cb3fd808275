"""What words and YAML files become: only what was given, in its type."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest

from ray_dit.cli.help import command_help
from ray_dit.cli.options import parse
from ray_dit.config import Config, Over, SamplerConfig
from ray_dit.errors import UserError


class Inner(Config):
    flag: bool = True
    pair: tuple[float, float] = (1.0, 2.0)
    maybe: int | None = 3


class Some(Config):
    """Settings of every kind."""

    name: str
    many: tuple[str, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    inner: Inner = Inner(maybe=4)
    sampler: Annotated[SamplerConfig, Over("the model's own")] = SamplerConfig()
    count: int = 1


def read(*words: str) -> Some:
    return parse("some", Some, ["--name", "n", *words], ["some"])


def read_yaml(text: str, folder: Path, *words: str) -> Some:
    (folder / "run.yaml").write_text(text)
    return parse("some", Some, ["--config", str(folder / "run.yaml"), *words], ["some"])


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        read(*words)
    assert str(error.value).endswith("; see `ray-dit some --help`")
    return str(error.value).removesuffix("; see `ray-dit some --help`")


def test_only_what_was_given_is_set() -> None:
    assert read().model_fields_set == {"name"}
    given = read("--inner.no-flag", "--sampler.order", "1")
    assert given.model_fields_set == {"name", "inner", "sampler"}
    assert given.sampler.model_fields_set == {"order"}
    assert given.inner == Inner(flag=False, maybe=4)  # what the section has by default here stays


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--many", "a", "b", "c"], ("a", "b", "c")),
        (["--many", "a", "--many", "b", "c"], ("a", "b", "c")),
        (["--many=a", "--many=b"], ("a", "b")),
        (["--many"], ()),
        (["--many", "None"], None),
        (["--many", "-3", "4"], ("-3", "4")),
    ],
)
def test_lists(words: list[str], value: Any) -> None:
    assert read(*words).many == value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--scale", "2"], 2.0),
        (["--scale=-0.5"], -0.5),
        (["--scale", "-1e-3", "2"], (-0.001, 2.0)),
        (["--scale", "2", "--scale", "3"], (2.0, 3.0)),
        (["--scale", "None"], None),
    ],
)
def test_one_number_or_a_list(words: list[str], value: Any) -> None:
    assert read(*words).scale == value


def test_switches_pairs_and_repeated_settings() -> None:
    assert read("--inner.flag").inner.flag
    assert not read("--inner.flag", "False").inner.flag
    assert not read("--inner.flag", "--inner.no_flag").inner.flag
    assert read("--inner.pair", "0.5", "-2", "--count", "3").inner.pair == (0.5, -2.0)
    assert read("--inner.pair=0.5", "1", "--inner.pair", "3", "4").inner.pair == (3.0, 4.0)
    assert read("--count", "3", "--count", "4").count == 4
    assert read("--inner.maybe", "None").inner.maybe is None


def test_none_leaves_what_a_setting_stands_over() -> None:
    assert (
        read("--sampler.order", "None", "--sampler.guidance-interval", "None").sampler.model_fields_set
        == set()
    )


def test_refusals() -> None:
    assert refused("--count", "None") == "--count: 'None' is not a whole number"
    assert refused("--inner.flag", "None") == "--inner.flag: 'None' is neither True nor False"
    assert refused("--inner.flag", "yes") == (
        "'yes' belongs to no option: --inner.flag takes True, False or no value"
    )
    assert refused("--inner.flag=maybe") == "--inner.flag: 'maybe' is neither True nor False"
    assert refused("--inner.pair", "1") == "--inner.pair: 2 values are wanted, not 1"
    assert refused("--inner.pair", "1", "x") == "--inner.pair: 'x' is not a number"
    assert refused("--scale", "1", "x") == refused("--scale", "x") == "--scale: 'x' is not a number"
    assert refused("--count") == refused("--count", "--many") == "--count needs a value"
    assert refused("--count", "-x") == "--count needs a value"
    assert refused("-x") == "unknown option -x"
    assert refused("--inner.no-maybe") == "unknown option --inner.no-maybe (did you mean '--inner.maybe'?)"
    assert refused("--sampler.timesteps", "1", "2") == (
        "these sampler settings do not fit together: timesteps must be a falling list of numbers of at least "
        "0"
    )  # fmt: skip


def test_yaml_keeps_its_types(tmp_path: Path) -> None:
    text = "some: {name: 2026-11-24, many: [1, a], scale: 1e-3, inner: {pair: [1, 2]}, count: '7'}"
    some = read_yaml(text, tmp_path)
    assert (some.name, some.many, some.scale) == ("2026-11-24", ("1", "a"), 0.001)
    assert (some.inner, some.count) == (Inner(maybe=4), 7)
    assert some.inner.model_fields_set == {"pair", "maybe"}
    assert read_yaml("some: {name: n, many: cat}", tmp_path).many == ("cat",)


def test_options_win_over_yaml_value_by_value(tmp_path: Path) -> None:
    text = "some: {name: n, many: [a, b], sampler: {order: 3, eta: 0.5}, inner: {maybe: null}}"
    some = read_yaml(text, tmp_path, "--many", "c", "--sampler.order", "None")
    assert some.many == ("c",)
    assert some.sampler.model_fields_set == {"eta"}
    assert some.inner.maybe is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: true}", "some.name in .*run.yaml cannot be true: put true in quotes"),
        ("{name: n, count: true}", "some.count in .*run.yaml cannot be true$"),
        ("{name: null}", "some.name in .*run.yaml needs a value"),
        ("{name: n, count: 1.5}", "--count: 1.5 is not a whole number, in .*run.yaml; see"),
        ("{name: n, count: [1, 2]}", r"--count: \[1, 2\] is not a whole number, in .*run.yaml; see"),
        ("{name: n, inner: {pair: 3}}", "some.inner.pair in .*run.yaml: 2 values are wanted, not 1"),
        ("{name: n, inner: null}", "some.inner in .*run.yaml must hold settings"),
        ("{name: n, innr: {}}", r"unknown key 'innr' in section some of .*\(did you mean 'inner'\?\); see"),
    ],
)
def test_yaml_refusals(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_yaml(f"some: {text}", tmp_path)


def test_help_names_every_kind_of_value() -> None:
    said = command_help("some", Some, "name")
    assert "usage: ray-dit some NAME [--config FILE] [options]" in said
    for line in (
        "--many [TEXT ...]",
        "--scale FLOAT|[FLOAT ...]",
        "--inner.pair FLOAT FLOAT",
        "--inner.flag, --inner.no-flag",
    ):
        assert f"  {line}\n" in said
    assert "(default: 1.0 2.0)" in said
    assert "--inner.maybe INT\n      (default: 4)" in said
    assert "--sampler.name {ddpm,ddim,dpmpp,unipc}" in said
    assert " ".join(said.split()).count("(default: the model's own)") == len(SamplerConfig.model_fields)


def test_help_takes_less_than_half_a_second() -> None:
    """Of a processor's time: the tests' machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "from ray_dit import cli; cli.main(['--help'])"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
