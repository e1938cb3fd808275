"""What `ray-dit --help` and `ray-dit COMMAND --help` print: plain text from the settings' explanations."""

import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ray_dit.cli.settings import Setting, members, settings_of
from ray_dit.config import Config

INDENT = "      "
NO_OPTIONS: Mapping[str, str] = {}
NAMES = {int: "INT", float: "FLOAT", str: "TEXT"}


def overview(summaries: Mapping[str, str]) -> str:
    """All commands, a line each."""
    width = max(map(len, summaries))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        [
            "ray-dit: train diffusion transformers and make labelled images with them, on Ray.",
            "",
            "usage: ray-dit COMMAND [--config run.yaml] [options]      ray-dit COMMAND --help",
            "",
            *lines,
            "",
            "Every command can be killed and run again: it goes on where it stopped. --debug shows "
            "tracebacks, --version the version.",
        ]
    )


def command_help(
    name: str, config: type[Config], positional: str | None, *, more: Mapping[str, str] = NO_OPTIONS
) -> str:
    """A command's settings, section by section, with what each means and is by default, then ``more``."""
    width = max(40, min(shutil.get_terminal_size((110, 24)).columns, 120))
    settings = list(settings_of(config))
    lines = _wrapped(_usage(name, settings, positional), width, after=INDENT)
    for paragraph in inspect.cleandoc(config.__doc__ or "").split("\n\n"):
        lines += ["", *_wrapped(paragraph, width)]
    in_file = (
        f"Settings can also stand in a YAML file, in a section `{name}:`, given by --config FILE; "
        "options win."
    )
    lines += ["", *_wrapped(in_file, width)]
    sections = dict.fromkeys(setting.path[:-1] for setting in settings)
    for section in sorted(sections, key=bool):  # the command's own settings first
        lines += ["", f"{'.'.join(section) or 'options'}:"]
        for setting in settings:
            lines += _explained(setting, width) if setting.path[:-1] == section else []
    for option, text in more.items():
        lines += ["", f"  {option}", *_wrapped(text, width, INDENT, INDENT)]
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str = "", after: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=after,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _usage(name: str, settings: list[Setting], positional: str | None) -> str:
    required = [
        positional.upper()
        if positional and setting.path == (positional,)
        else f"{setting.option} {_metavar(setting)}"
        for setting in settings
        if setting.required
    ]
    return " ".join([f"usage: ray-dit {name}", *required, "[--config FILE] [options]"])


def _explained(setting: Setting, width: int) -> Iterator[str]:
    switch = f"  {setting.option}, {setting.negated}"
    yield switch if setting.is_switch else f"  {setting.option} {_metavar(setting)}"
    text = " ".join(f"{setting.field.description or ''} {_default(setting)}".split())
    yield from _wrapped(text, width, INDENT, INDENT)


def _default(setting: Setting) -> str:
    if setting.required:
        return "(required)"
    if setting.over is not None:
        return f"(default: {setting.over.base})"
    value = setting.default
    if value is None:
        return ""
    return f"(default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def _metavar(setting: Setting) -> str:
    kinds = [_kind(kind) for kind in setting.kinds if kind is not NoneType]
    return "|".join(dict.fromkeys(kinds))


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is tuple:
        items = [_kind(next(members(item))) for item in get_args(kind) if item is not Ellipsis]
        return f"[{items[0]} ...]" if get_args(kind)[-1] is Ellipsis else " ".join(items)
    return NAMES.get(kind, "VALUE")
