"""A YAML file with a section per command as settings: values keep their types.

Knows settings classes, and no command.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from ray_dit.cli.near import near
from ray_dit.cli.settings import Path, Setting, settings_of
from ray_dit.config import Config
from ray_dit.errors import UserError, first_message


def read_recipe(file: str, section: str, config: type[Config], sections: Collection[str]) -> dict[Path, Any]:
    """What a file's section sets, by path; UserError for unknown sections and keys, with the near match."""
    document = _load(file)
    if not isinstance(document, dict):
        raise UserError(f"the configuration {file} must have a section per stage, such as `{section}:`")
    for key in cast("dict[Any, Any]", document):
        if key not in sections:
            raise UserError(
                f"unknown section {key!r} in {file}{near(str(key), sections)}; sections are named as commands"
            )
    return dict(_Section(file, section, config).read(document.get(section) or {}))


LONGEST = 50_000
"""Letters of a file; PyYAML reads about 100,000 per second."""
MOST_VALUES = 20_000
"""Values in a file, those of an alias counted wherever it stands."""


def _load(file: str) -> Any:
    import yaml

    try:
        with open(file, encoding="utf-8") as source:
            text = source.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise UserError(f"the configuration {file} has more than {LONGEST} letters: check --config")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_size(root)  # before an alias is followed
        return {} if root is None else loader.construct_document(root) or {}
    except OSError as error:
        raise UserError(
            f"the configuration {file} cannot be read ({error.strerror}): check --config"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the configuration {file} is not a text in UTF-8: check --config") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"the configuration {file} is not valid YAML{line}: fix it there") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # PyYAML's own
        reason = first_message(error)[:200]
        raise UserError(f"the configuration {file} is not valid YAML ({reason}): fix it there") from error
    except RecursionError as error:
        raise UserError(f"the configuration {file} is nested too deeply: check --config") from error


def _check_size(root: Any) -> None:
    """ValueError where aliases make much of little: a few lines can stand for billions of values."""
    waiting, seen = [root], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
        inside: Any = getattr(node, "value", None)
        if isinstance(inside, list):
            for item in cast("list[Any]", inside):
                waiting.extend(cast("tuple[Any, ...]", item) if isinstance(item, tuple) else (item,))


class _Section:
    """A command's section of a file."""

    def __init__(self, file: str, name: str, config: type[Config]) -> None:
        self._file, self._name = file, name
        self._settings = {setting.path: setting for setting in settings_of(config)}
        self._sections = {path[:end] for path in self._settings for end in range(len(path))}

    def read(self, values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
        """Settings and values of the section at ``path``, and of those in it."""
        where = ".".join((self._name, *path))
        if not isinstance(values, Mapping):
            raise UserError(f"{where} in {self._file} must hold settings, a `key: value` per line")
        for key, value in cast("Mapping[Any, Any]", values).items():
            inner = (*path, str(key))
            if inner in self._sections:
                yield from self.read(value, inner)
            elif inner in self._settings:
                yield inner, self._value(self._settings[inner], value, f"{where}.{key} in {self._file}")
            else:
                known = {other[len(path)] for other in self._settings if other[: len(path)] == path}
                raise UserError(
                    f"unknown key {key!r} in section {where} of {self._file}{near(str(key), sorted(known))}; "
                    f"see `ray-dit {self._name} --help`"
                )

    def _value(self, setting: Setting, value: Any, where: str) -> Any:
        """The value as pydantic shall see it.

        It is a list where the setting is one, and text where a bare word looks like a number or a date.
        """
        if setting.is_switch and not isinstance(value, bool) and not (value is None and setting.takes_none):
            raise UserError(f"{where} must be true or false, not {value!r}")
        if isinstance(value, Mapping):
            raise UserError(f"{where} must be a value, not settings of its own")
        if value is None and not setting.takes_none:
            raise UserError(f"{where} needs a value")
        if value is None or setting.is_switch:
            return value
        values: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, bool):
                quotes = f": put {str(item).lower()} in quotes" if setting.is_text else ""
                raise UserError(f"{where} cannot be {str(item).lower()}{quotes}")
        if setting.is_text:
            values = [item if isinstance(item, list) else str(item) for item in values]
        if setting.length is not None and setting.length > 1 and len(values) != setting.length:
            raise UserError(f"{where}: {setting.length} values are wanted, not {len(values)}")
        return values[0] if not isinstance(value, list) and setting.takes_one else values
