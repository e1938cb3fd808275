"""The words of a command line as settings: hands over only what was given.

Knows settings classes, and no command.

An option is a setting with the sections it lies in (``--images.size 32``); a YAML file has a section per
command, with the same names. Both become one nested dict, options over YAML, which pydantic checks: what the
user set is then ``model_fields_set``. Every refusal is a `UserError` of one sentence.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from ray_dit.cli.near import near
from ray_dit.cli.recipe import read_recipe
from ray_dit.cli.refusals import refusal
from ray_dit.cli.settings import Path, Setting, settings_of
from ray_dit.config import Config
from ray_dit.config.base import over_defaults
from ray_dit.errors import UserError

C = TypeVar("C", bound=Config)
SWITCH_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None}
"""What may follow a switch."""


def parse(name: str, config: type[C], arguments: Sequence[str], sections: Collection[str]) -> C:
    """The settings of the command ``name`` from ``--config FILE`` and options; options win.

    ``sections``: those a YAML file may have. UserError for whatever is wrong, with the near match.
    """
    words = list(arguments)
    file = take_option(words, "--config")
    settings = list(settings_of(config))
    from_file = read_recipe(file, name, config, sections) if file else {}
    see = f"see `ray-dit {name} --help`"
    try:
        from_words = read_options(settings, words)
    except UserError as error:
        raise UserError(f"{error}; {see}") from error
    given = from_file | from_words
    missing = [setting.option for setting in settings if setting.required and setting.path not in given]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; {see}")
    try:
        return config.model_validate(over_defaults(config, _nested(settings, given)))
    except ValidationError as error:
        places = {path: str(file) for path in from_file.keys() - from_words.keys()}
        raise UserError(f"{refusal(error, settings, places)}; {see}") from error


def take_option(words: list[str], name: str, *, wants: str = "a file: `--config run.yaml`") -> str | None:
    """Removes an option that is no setting from the words; its value, None where it is not given."""
    for index, word in enumerate(words):
        if word.startswith(name + "="):
            return words.pop(index).partition("=")[2]
        if word == name:
            if index + 1 == len(words):
                raise UserError(f"{name} needs {wants}")
            words.pop(index)
            return words.pop(index)
    return None


def read_options(settings: Sequence[Setting], words: Sequence[str]) -> dict[Path, Any]:
    """What the words set, by path; values as words where pydantic reads them.

    A list given twice grows, other settings change.

    UserError for a word that is no option of these settings and no value of the option before it.
    """
    options = {setting.option: setting for setting in settings}
    negated = {setting.negated: setting for setting in settings if setting.is_switch}
    given: dict[Path, Any] = {}
    rest, before = list(words), None
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option in negated and not equals:
            given[negated[option].path] = False
            continue
        setting = options.get(option)
        if setting is None:
            raise _no_option(name, before, [*options, *negated])
        values = ([value] if equals else []) + _values_after(setting, rest, taken=1 if equals else 0)
        given[setting.path] = _grown(setting, given.get(setting.path), _read(setting, values))
        before = setting
    return given


def _values_after(setting: Setting, rest: list[str], *, taken: int) -> list[str]:
    """Takes the setting's values from the front of the words, up to the next option or as many as it has."""
    values: list[str] = []
    while rest and _is_value(rest[0]) and (setting.length is None or taken + len(values) < setting.length):
        if setting.is_switch and rest[0] not in SWITCH_WORDS:
            break
        values.append(rest.pop(0))
    return values


def _is_value(word: str) -> bool:
    """A number may be negative; another word that begins with a dash is an option.

    (``--name=-word`` gives it as a value.)
    """
    return not word.startswith("-") or _is_number(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _no_option(name: str, before: Setting | None, known: Sequence[str]) -> UserError:
    if name.startswith("-"):
        return UserError(f"unknown option {name}{near(name, known)}")
    if before is None:
        return UserError(f"{name!r} belongs to no option")
    takes = "one value" if before.length == 1 else f"{before.length} values"
    takes = "True, False or no value" if before.is_switch else takes
    return UserError(f"{name!r} belongs to no option: {before.option} takes {takes}")


def _read(setting: Setting, words: Sequence[str]) -> Any:
    """The value these words stand for, not yet checked."""
    if setting.is_switch:
        word = words[0] if words else "True"
        if word not in SWITCH_WORDS or (word == "None" and not setting.takes_none):
            raise UserError(f"{setting.option}: {word!r} is neither True nor False")
        return SWITCH_WORDS[word]
    if [*words] == ["None"] and setting.takes_none:
        return None
    choices = {str(choice): choice for choice in setting.choices}
    values = [choices.get(word, word) for word in words]
    if setting.length == 1 or (len(values) == 1 and setting.takes_one):
        if not values:
            raise UserError(f"{setting.option} needs a value")
        return values[0]
    if setting.length is not None and len(values) != setting.length:
        raise UserError(f"{setting.option}: {setting.length} values are wanted, not {len(values)}")
    return values


def _grown(setting: Setting, before: Any, value: Any) -> Any:
    if setting.length is not None or before is None or value is None:
        return value
    return [item for part in (before, value) for item in (part if isinstance(part, list) else [part])]


def _nested(settings: Sequence[Setting], given: Mapping[Path, Any]) -> dict[str, Any]:
    """Values by path as sections in sections. None leaves out what stands over a value found elsewhere."""
    nested: dict[str, Any] = {}
    for setting in settings:
        if setting.path not in given or (setting.over is not None and given[setting.path] is None):
            continue
        *sections, name = setting.path
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = given[setting.path]
    return nested
