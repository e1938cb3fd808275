"""What all settings share.

These are frozen models, the decision each field carries, and laying what was asked for over what is there.

A field decides bytes (`Content`) or only when and where work happens (`Placement`); a class of which every
field decides bytes says so once (`ContentConfig`). A test walks all stages and fails for a field that says
neither. Knows no stage; imports neither torch nor ray.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(gt=0)]
Precision = Literal["float32", "bfloat16"]


def _number_or_range(value: Any) -> Any:
    """A number from 1 on, or a range as text; ValueError for anything else."""
    text = str(value).strip()
    match = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", text)
    if isinstance(value, bool) or not match or int(match[1]) < 1:
        raise ValueError(f"{value!r} is neither a number, from 1 on, nor a range such as 2..8")
    if match[2] is None:
        return int(match[1])
    if int(match[2]) < int(match[1]):
        raise ValueError(f"{text} is no range: its end is below its beginning")
    return text


NumberOrRange = Annotated[int | str, BeforeValidator(_number_or_range)]
"""How many there may be: a number, or a range such as ``2..8``."""


def range_of(asked: int | str) -> tuple[int, int]:
    """The fewest and the most of a ``NumberOrRange``; the same number twice where it is fixed."""
    fewest, _, most = str(asked).partition("..")
    return int(fewest), int(most or fewest)


_SCHEMES = "s3|s3a|gs|gcs|az|abfs|abfss|hdfs|http|https|file|local|memory|ftp|sftp"
_MISSPELT = re.compile(rf"({_SCHEMES})(:/?(?!/)|//)(.*)", re.IGNORECASE)


def absolute(uri: str) -> str:
    """A local path made absolute where it is given: Ray's workers have working folders of their own.

    ValueError for what would be a path by a typing error alone, such as ``s3:/bucket``.
    """
    wrong = _MISSPELT.fullmatch(uri)
    if wrong and not os.path.exists(uri):
        scheme, root = wrong[1].lower(), "/" if wrong[1].lower() in ("file", "local") else ""
        raise ValueError(
            f"{uri!r} is neither a path nor a URI: give {scheme}://{root}{wrong[3]}, or ./{uri} for a folder "
            "of that name"
        )
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _folder_or_hub_id(source: str) -> str:
    path = absolute(source)
    return source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(path) else path


Uri = Annotated[str, AfterValidator(absolute)]
VaeSource = Annotated[str, AfterValidator(_folder_or_hub_id)]


@dataclass(frozen=True)
class Decides:
    """Mark of a field: whether its value decides bytes."""

    content: bool


@dataclass(frozen=True)
class Over:
    """Mark of a section that stands over settings found elsewhere: only what was given in it counts."""

    base: str
    """What a setting is where it is not given, in words for `--help`."""


_T = TypeVar("_T")
Content = Annotated[_T, Decides(content=True)]
"""A setting that decides bytes: part of the fingerprint."""
Placement = Annotated[_T, Decides(content=False)]
"""A setting that decides when and where, never what: outside the fingerprint, free to change between runs."""


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def content(self) -> dict[str, Any]:
        """The settings that decide bytes, as JSON data, sections likewise.

        In a section that stands over settings found elsewhere (`Over`), what was not given is None.
        """
        plain = self.model_dump(mode="json")
        return {
            name: (
                _section_content(value, field)
                if isinstance(value := getattr(self, name), Config)
                else plain[name]
            )
            for name, field in type(self).model_fields.items()
            if not is_placement(field)
        }  # fmt: skip


class ContentConfig(Config):
    """Settings of which every one decides bytes."""


def _section_content(section: Config, field: FieldInfo) -> dict[str, Any]:
    content = section.content()
    if over_of(field) is None:
        return content
    return {name: value if name in section.model_fields_set else None for name, value in content.items()}


def section_of(field: FieldInfo) -> type[Config] | None:
    """The class of a field that holds settings of its own, None for a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


def over_of(field: FieldInfo) -> Over | None:
    """The mark of a section that stands over settings found elsewhere."""
    return next((mark for mark in field.metadata if isinstance(mark, Over)), None)


def is_placement(field: FieldInfo) -> bool:
    """Whether the setting may change between runs of the same job."""
    return any(isinstance(mark, Decides) and not mark.content for mark in field.metadata)


def undecided(config: type[Config]) -> Iterator[str]:
    """Dotted names of the settings that neither decide bytes nor are placement."""
    for name, field in config.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield from (f"{name}.{inner}" for inner in undecided(section))
        elif not issubclass(config, ContentConfig) and not any(
            isinstance(mark, Decides) for mark in field.metadata
        ):
            yield name


def placement_names(config: type[Config]) -> Iterator[str]:
    """Dotted names of the settings that may change between runs."""
    for name, field in config.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield from (f"{name}.{inner}" for inner in placement_names(section))
        elif is_placement(field):
            yield name


def content_defaults(config: type[Config]) -> dict[str, Any]:
    """What ``content()`` holds of the settings nobody gives, nested; those that must be given are missing."""
    values: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        section = section_of(field)
        if is_placement(field):
            continue
        if section is not None and field.is_required():
            values[name] = content_defaults(section)
        elif section is not None:
            values[name] = _section_content(field.get_default(), field)
        elif not field.is_required():
            values[name] = to_jsonable_python(field.get_default())
    return values


def over_defaults(config: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, nested, over what the sections' own defaults set.

    A stage may have other defaults for a section than the section's class; giving one setting of it keeps the
    others.
    """
    laid: dict[str, Any] = dict(given)
    for name, field in config.model_fields.items():
        section = section_of(field)
        if section is None or name not in given:
            continue
        inner = over_defaults(section, given[name])
        default: dict[str, Any] = (
            {} if field.is_required() else field.get_default().model_dump(exclude_unset=True)
        )
        laid[name] = default | inner
    return laid
