"""What pydantic refuses, as one sentence that names the option; knows error types, never printed text."""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ray_dit.cli.near import near
from ray_dit.cli.settings import Path, Setting

WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of a size that is possible",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "byte_size": "a size, as 200GB or 12GiB",
    "byte_size_unit": "a size, as 200GB or 12GiB",
}
"""What a value should have been, by pydantic's type of error."""


def refusal(error: ValidationError, settings: Sequence[Setting], places: Mapping[Path, str]) -> str:
    """The first complaint as a sentence.

    ``places``: the file a setting comes from, where it was not an option.
    """
    errors = error.errors()
    setting = _setting_of(errors[0], settings)
    if setting is None:  # a check of settings against each other, in a section or in the whole
        section, message = ".".join(map(str, errors[0]["loc"])), _message(errors[0])
        return f"these {section} settings do not fit together: {message}" if section else message
    ours = [other for other in errors if _setting_of(other, settings) is setting]
    where = f", in {places[setting.path]}" if setting.path in places else ""
    return f"{setting.option}: {_complaint(ours, setting)}{where}"


def _setting_of(error: ErrorDetails, settings: Sequence[Setting]) -> Setting | None:
    return next((each for each in settings if error["loc"][: len(each.path)] == each.path), None)


def _complaint(errors: Sequence[ErrorDetails], setting: Setting) -> str:
    """What is wrong with one value.

    A value of several kinds has a complaint from each: those that went deepest count.
    """
    deepest = max(len(error["loc"]) for error in errors)
    told = [error for error in errors if len(error["loc"]) == deepest and error["type"] != "tuple_type"]
    told = told or [*errors]
    value = told[0]["input"]
    if told[0]["type"] == "literal_error" and len(told) == 1:
        choices = sorted(map(str, setting.choices))
        return f"{value!r} is none of {', '.join(choices)}{near(str(value), choices)}"
    wanted = [_wanted(error, setting) for error in told]
    if any(each is None for each in wanted):
        return _message(next(error for error in told if _wanted(error, setting) is None))
    if len(wanted) == 1:
        return f"{value!r} is not {wanted[0]}"
    return f"{value!r} is neither {' nor '.join(map(str, wanted))}"


def _wanted(error: ErrorDetails, setting: Setting) -> str | None:
    if error["type"] == "literal_error":
        return " or ".join(map(str, setting.choices))
    return WANTED.get(error["type"])


def _message(error: ErrorDetails) -> str:
    """What one of our own checks raised, or pydantic's words for one of its."""
    return str(error["ctx"]["error"]) if error["type"] == "value_error" and "ctx" in error else error["msg"]
