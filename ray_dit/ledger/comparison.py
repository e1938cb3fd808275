"""Whether what a folder was begun with means the same as what is asked for now.

Knows settings by dotted name only.

The parts of a fingerprint are written in full. Another version may know more settings than the one that began
a folder, or have made one of them a matter of placement: neither changes a byte, so neither may orphan the
folder. What does change bytes for the same settings has a number, `rules`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

Json = Any

LIBRARIES = "libraries"
"""The part of a fingerprint that an accepted upgrade may change."""
RULES = "rules"
"""The part that says how a stage turns settings into bytes: a number, absent while it is 1."""


@dataclass(frozen=True)
class Comparison:
    """How parts that another version may have written are read beside ours.

    Names begin with the part: ``config.seed``.
    """

    defaults: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Values, nested like the parts, of settings that may be absent."""
    placement: frozenset[str] = frozenset()
    """Dotted names that decide no byte, though an older version wrote them."""
    rules: tuple[str, ...] = ("",)
    """What each number of the stage's rules changed, the first first."""

    def meaning(self, parts: Mapping[str, Json]) -> dict[str, Json]:
        """Every setting of these parts by dotted name.

        Absent ones are at their defaults; placement and rules are left out.
        """
        settled = flat(self.defaults) | flat(parts)
        return {
            name: value for name, value in settled.items() if name not in self.placement and name != RULES
        }

    def same(self, there: Mapping[str, Json], ours: Mapping[str, Json], *, libraries: bool = True) -> bool:
        """Whether both parts give the same bytes, rules aside.

        Other ``libraries`` do too where those do not count.
        """
        return not any(
            libraries or not name.startswith(f"{LIBRARIES}.") for name in self.differences(there, ours)
        )

    def differences(
        self, there: Mapping[str, Json], ours: Mapping[str, Json]
    ) -> dict[str, tuple[Json, Json]]:
        """What differs, by dotted name: the value there and ours, "absent" where there is none."""
        old, new = self.meaning(there), self.meaning(ours)
        names = sorted(old.keys() | new.keys())
        pairs = {name: (old.get(name, "absent"), new.get(name, "absent")) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def other_rules(self, stage: str, there: Mapping[str, Json]) -> tuple[str, str] | None:
        """What is wrong with going on under the rules it was begun with, and the way out.

        None if they are ours.
        """
        began, now = int(there.get(RULES, 1)), len(self.rules)
        if began == now:
            return None
        if began > now:
            newer = f"by a newer ray-dit (rules {began} of {stage}; this one knows {now})"
            return newer, "finish it with that one, or take another output folder"
        changes = "; ".join(self.rules[began:])
        return (
            f"under rules {began} of {stage}, and this ray-dit has rules {now}, which give other bytes: "
            f"{changes}",
            "finish it with the ray-dit that began it, or take another output folder",
        )


def flat(value: Json, name: str = "") -> dict[str, Json]:
    """Nested settings as dotted names."""
    if not isinstance(value, Mapping) or not value:
        return {name: value} if name else {}
    items = cast("Mapping[str, Json]", value).items()
    return {
        path: leaf for key, child in items for path, leaf in flat(child, f"{name}.{key}".lstrip(".")).items()
    }
