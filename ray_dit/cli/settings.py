"""A settings class as a flat list of what can be set, each with its name on the command line.

Reads no words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ray_dit.config import Config, Over
from ray_dit.config.base import over_of, section_of

Path = tuple[str, ...]
"""A setting's name after those of the sections it lies in."""


@dataclass(frozen=True)
class Setting:
    """One value among settings: a field that holds no settings of its own."""

    path: Path
    field: FieldInfo
    required: bool
    default: Any
    """What it is where nothing is given; None too where it is required."""
    over: Over | None
    """Set where it stands over a value found elsewhere: then None leaves that value as it is."""

    @property
    def option(self) -> str:
        """``--images.max-bad``."""
        return "--" + ".".join(self.path).replace("_", "-")

    @property
    def negated(self) -> str:
        """``--images.no-x``: what turns a switch off."""
        *sections, name = self.path
        return "--" + ".".join([*sections, f"no-{name}"]).replace("_", "-")

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """What its value may be: the members of its type."""
        return tuple(members(self.field.annotation))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values it is one of, where its type lists them."""
        return tuple(
            choice for kind in self.kinds if get_origin(kind) is Literal for choice in get_args(kind)
        )

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return bool in self.kinds

    @property
    def is_text(self) -> bool:
        """Whether its values are text and nothing else."""
        items = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in self.kinds]
        return all(str in members(item) for item in items if item is not NoneType)

    @property
    def takes_none(self) -> bool:
        """Whether None is a value for it, or leaves what is there."""
        return NoneType in self.kinds or self.over is not None

    @property
    def takes_one(self) -> bool:
        """Whether a single value will do: it need not be a list."""
        return any(get_origin(kind) is not tuple and kind is not NoneType for kind in self.kinds)

    @cached_property
    def length(self) -> int | None:
        """How many values it has at most: 1, or those of a tuple; None where it is a list of any length."""
        tuples = [get_args(kind) for kind in self.kinds if get_origin(kind) is tuple]
        return 1 if not tuples else None if tuples[0][-1] is Ellipsis else len(tuples[0])


def settings_of(
    config: type[Config],
    *,
    path: Path = (),
    required: bool = True,
    defaults: Config | None = None,
    over: Over | None = None,
) -> Iterator[Setting]:
    """All settings of a class and its sections, in their order.

    The other arguments are those of a section.
    """
    for name, field in config.model_fields.items():
        must = required and field.is_required()
        default = None if must else getattr(defaults, name) if defaults else field.get_default()
        section = section_of(field)
        if section is None:
            yield Setting((*path, name), field, must, default, over)
        else:
            yield from settings_of(
                section, path=(*path, name), required=must, defaults=default, over=over_of(field) or over
            )


def members(annotation: Any) -> Iterator[Any]:
    """The types a value may have, of a union each."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation
