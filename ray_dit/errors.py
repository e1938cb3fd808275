"""The errors a user can meet; knows nothing else of the package.

* UserError            one sentence: what, where, what to do
  x NotFound           an object or folder that should be there is not
  x Conflict           something else is there already
  x Damaged            an object does not hold what was written there
  x StoreFailure       storage stayed unreachable or broken past the deadline
  x CredentialsExpired the credentials for storage have expired, and no fresh ones came

The command line prints a ``UserError``'s message and exits with 1, without a traceback unless ``--debug``.
Every other exception is a defect of ours.
"""

from typing import Any, cast


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one sentence."""


class NotFound(UserError):
    """An object or folder that should be there is not."""


class Conflict(UserError):
    """The place already holds something else."""


class Damaged(UserError):
    """An object does not hold what was written there."""


class StoreFailure(UserError):
    """Object storage stayed unreachable or answered wrongly until the deadline."""


class CredentialsExpired(UserError):
    """The credentials for storage have expired and no fresh ones came: all that is left would fail."""


def first_message(error: Exception) -> str:
    """The first complaint in one line: a ValidationError's field and message, else the first line."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        first = cast(list[dict[str, Any]], errors())[0]
        where = ".".join(str(part) for part in cast(tuple[Any, ...], first["loc"]))
        what = str(first["msg"]).removeprefix("Value error, ")
        return f"{where}: {what}" if where else what
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
