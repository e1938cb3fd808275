"""Whether the settings of remote storage are known to work in this process; knows no storage.

A wrong setting shall be said within seconds, an outage waited for. What tells them apart is whether a request
has ever succeeded with these settings, here or in the process that has started this one.
"""

import os

Environment = tuple[tuple[str, str], ...]

_proven: set[Environment] = set()
_trusted = False


def environment(*, anonymous: bool = False) -> Environment:
    """What decides where requests go and who makes them: nobody in particular where they are anonymous."""
    names = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return (*names, ("anonymous", "")) if anonymous else tuple(names)


def note_success(*, anonymous: bool = False) -> None:
    """A request has succeeded with these settings; an anonymous one says nothing of credentials."""
    _proven.add(environment(anonymous=anonymous))


def trust_settings() -> None:
    """Called where a worker begins: the driver has used the same storage, so what fails here is an outage."""
    global _trusted
    _trusted = True


def is_proven(*, anonymous: bool = False) -> bool:
    """Whether a request has ever succeeded with these settings."""
    return _trusted or environment(anonymous=anonymous) in _proven
