"""What a job leaves, as types: the facts of a stage in the envelopes of the ledger; knows no stage's facts.

A stored object is one flat JSON: the envelope's fields and the facts side by side. Fields that are not known
here come from another version of ray-dit; they are kept, and written again as they were. Markers and
manifests are sealed (``stored_json``), but for those of earlier versions, which lack ``name`` and ``plain``.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ray_dit.errors import Damaged, UserError, first_message
from ray_dit.ledger.stored_json import SEAL, Json, canonical, sealed
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

    def expected(self, parts: Mapping[str, Json], objects: Iterable[Mapping[str, Json]]) -> dict[str, Json]:
        """What those of these facts must be that follow from the job's parts and its objects, for ``verify``.

        ``objects``: their facts as stored, streamed, in the order of the listing.
        """
        return {}


F = TypeVar("F", bound=Facts)
R = TypeVar("R", bound=Result)


class Marker(BaseModel, Generic[F]):
    """One object of a job: where it lies, what it must be, and the facts its maker added."""

    model_config = ConfigDict(frozen=True)

    key: Key
    bytes: int
    """Of all objects it stands for."""
    sha256: str
    fingerprint: str | None = None
    """The maker's own, where it went on with a job of other library versions."""
    name: str | None = None
    """What the marker is found by; None in those of earlier versions."""
    files: int | None = None
    """How many more objects the marker stands for: the object at ``key`` is JSON whose list ``files`` tells
    ``key`` and ``sha256`` of each. None where it stands for one object."""
    facts: F

    def to_json(self) -> dict[str, Json]:
        """The marker as it is stored."""
        own = self.model_dump(mode="json", include=self.model_fields_set - {"facts"})
        stored = self.facts.to_json() | own
        return stored if self.name is None else sealed(stored)


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
    plain: tuple[Listing, ...] = ()
    """As ``listings``, of the objects without facts; none in manifests of earlier versions."""
    extends: str | None = None
    """``sha256`` of the manifest before, in a later generation."""
    accepted: tuple[str, ...] = ()
    """Fingerprints with other library versions under which some of the objects were made."""
    facts: F
    sha256: str
    """Hash of the manifest as it is stored, which stands for every byte of the job in its consumers'
    fingerprints."""

    @property
    def generation(self) -> int:
        """0 for what a job made first, 1 for its first extension."""
        return len(self.listings) - 1


MANIFEST_FIELDS = (frozenset(Manifest.model_fields) | {SEAL}) - {"facts", "sha256"}
"""The stored ones, which are no facts."""
MARKER_FIELDS = (frozenset(Marker.model_fields) | {SEAL}) - {"facts"}
"""The stored ones, which are no facts."""


def parse_marker(stored: Mapping[str, Json], facts: type[F], where: str) -> Marker[F]:
    """The inverse of ``Marker.to_json``.

    UserError, naming ``where`` it is stored, if it is not such a marker.
    """
    own, others = _split(stored, MARKER_FIELDS)
    return _parse(Marker[F], {**own, "facts": _parse(facts, others, where)}, where, Damaged)


def parse_manifest(stored: Mapping[str, Json], facts: type[F], where: str) -> Manifest[F]:
    """A stored manifest; UserError, naming ``where`` it is stored, if it is not one with such facts."""
    own, others = _split(stored, MANIFEST_FIELDS)
    # Of what is stored, not of what was understood of it: a number read as another type would be another
    # hash.
    sha256 = hashlib.sha256(canonical(stored)).hexdigest()
    stored = {**own, "sha256": sha256, "facts": _parse(facts, others, where)}
    return _parse(Manifest[F], stored, where, Damaged)


M = TypeVar("M", bound=BaseModel)


def _split(stored: Mapping[str, Json], own: frozenset[str]) -> tuple[dict[str, Json], dict[str, Json]]:
    """The envelope's fields without the seal, and the facts."""
    return (
        {name: value for name, value in stored.items() if name in own and name != SEAL},
        {name: value for name, value in stored.items() if name not in own},
    )


def _parse(
    kind: type[M], stored: Mapping[str, Json], where: str, error_kind: type[UserError] = UserError
) -> M:
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        raise error_kind(
            f"{where} can't be read ({first_message(error)}): it is damaged, or of another version of "
            "ray-dit; delete it and run its stage again, or restore it from a copy"
        ) from error
