"""The command that gives a configuration.

It has options for what differs from the defaults. Knows no files and no stages.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ray_dit.config import Config, content_defaults


def command(
    stage: str, config: type[Config], content: Mapping[str, Any], placement: Mapping[str, str]
) -> str:
    """`ray-dit STAGE ...` for the content of a fingerprint.

    Args:
        stage: the subcommand.
        config: its configuration class, whose defaults need no option.
        content: what ``config.content()`` gave, nested.
        placement: dotted names of the settings outside the content (where inputs and output are), and their
            values.
    """
    words = ["ray-dit", stage]
    for name, value in placement.items():
        words += [_option(name), value]
    return shlex.join([*words, *_options(content, content_defaults(config), "")])


def _options(content: Mapping[str, Any], usual: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _options(value, usual.get(name) or {}, f"{prefix}{name}.")
        elif value is not None and (name not in usual or value != usual[name]):
            yield from _words(prefix + name, value, isinstance(usual.get(name), bool))


def _words(name: str, value: Any, is_switch: bool) -> list[str]:
    if is_switch:
        head, dot, last = name.rpartition(".")
        return [_option(name if value else f"{head}{dot}no_{last}")]
    if isinstance(value, list):
        return [_option(name), *map(str, value)]
    return [_option(name), str(value)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
