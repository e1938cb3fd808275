"""What a job leaves, as types: the facts of a stage in the envelopes of the ledger; knows no stage's facts.

A stored object is one flat JSON: the envelope's fields and the facts side by side. Fields that are not known
here come from another version of ray-dit; they are kept, and written again as they were.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ray_dit.errors import UserError, first_message
from ray_dit.ledger.stored_json import Json, canonical
from ray_dit.storage.store import checked_key

Key = Annotated[str, AfterValidator(checked_key)]
"""Of an object in the job's folder: a damaged one must not lead out of it."""


class Facts(BaseModel):
    """Deterministic facts: counts, hashes, names; no clocks, hosts or paths.

    What is not set is not written.
    """

    # a number that is none is refused where it is written, where pydantic would write null
    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Json]:
        """The facts that are set, as they are stored."""
        return self.model_dump(mode="json", include=self.model_fields_set)


class Result(Facts):
    """The facts in the manifest of one stage."""

    stage_name: ClassVar[str]
    """The stage that leaves them: a job of another one is refused by ``read_manifest``."""


F = TypeVar("F", bound=Facts)
R = TypeVar("R", bound=Result)


class Marker(BaseModel, Generic[F]):
    """One object of a job: where it lies, what it must be, and the facts its maker added."""

    model_config = ConfigDict(frozen=True)

    key: Key
    bytes: int
    sha256: str
    fingerprint: str | None = None
    """The maker's own, where it went on with a job of other library versions."""
    facts: F

    def to_json(self) -> dict[str, Json]:
        """The marker as it is stored."""
        own = self.model_dump(mode="json", include=self.model_fields_set - {"facts"})
        return self.facts.to_json() | own


class Listing(BaseModel):
    """Where the markers of a generation's objects are listed; ``bytes`` are those of all its objects."""

    model_config = ConfigDict(frozen=True)

    key: Key
    sha256: str
    count: int
    bytes: int


class Manifest(BaseModel, Generic[F]):
    """A finished job: what it was, where its objects are listed, and what its stage has to say of them."""

    model_config = ConfigDict(frozen=True)

    format: int
    stage: str
    fingerprint: str
    parts: dict[str, Json]
    """What the fingerprint is of: settings, inputs, libraries."""
    listings: tuple[Listing, ...]
    """One per generation, the oldest first."""
    extends: str | None = None
    """``sha256`` of the manifest before, in a later generation."""
    accepted: tuple[str, ...] = ()
    """Fingerprints with other library versions under which some of the objects were made."""
    facts: F
    sha256: str
    """Hash of the manifest as it is stored, which stands for every byte of the job in its consumers'
    fingerprints."""


MANIFEST_FIELDS = frozenset(Manifest.model_fields) - {"facts", "sha256"}
"""The stored ones, which are no facts."""
MARKER_FIELDS = frozenset(Marker.model_fields) - {"facts"}
"""The stored ones, which are no facts."""


def parse_marker(stored: Mapping[str, Json], facts: type[F], where: str) -> Marker[F]:
    """The inverse of ``Marker.to_json``.

    UserError, naming ``where`` it is stored, if it is not such a marker.
    """
    own, others = _split(stored, MARKER_FIELDS)
    return _parse(Marker[F], {**own, "facts": _parse(facts, others, where)}, where)


def parse_manifest(stored: Mapping[str, Json], facts: type[F], where: str) -> Manifest[F]:
    """A stored manifest; UserError, naming ``where`` it is stored, if it is not one with such facts."""
    own, others = _split(stored, MANIFEST_FIELDS)
    # Of what is stored, not of what was understood of it: a number read as another type would be another
    # hash.
    sha256 = hashlib.sha256(canonical(stored)).hexdigest()
    return _parse(Manifest[F], {**own, "sha256": sha256, "facts": _parse(facts, others, where)}, where)


M = TypeVar("M", bound=BaseModel)


def _split(stored: Mapping[str, Json], own: frozenset[str]) -> tuple[dict[str, Json], dict[str, Json]]:
    """The envelope's fields, and the facts."""
    return (
        {name: value for name, value in stored.items() if name in own},
        {name: value for name, value in stored.items() if name not in own},
    )


def _parse(kind: type[M], stored: Mapping[str, Json], where: str) -> M:
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        raise UserError(
            f"{where} can't be read ({first_message(error)}): it is damaged, or of another version of "
            "ray-dit; delete it and run its stage again"
        ) from error
