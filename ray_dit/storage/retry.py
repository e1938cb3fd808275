"""Errors of S3 in four kinds and the only retry there is; knows nothing of what is being asked.

A failure is *retry* (the service or the network will recover), *expired* (credentials, which somebody may
renew), the *user's* (permission, bucket, key, settings: said with what to change) or *broken*. It is
classified by the S3 error code of the reply, never by the class or text of an exception: SeaweedFS's 412, for
one, reaches fsspec's users as ``OSError(EINVAL)``. See docs/store.md for the table.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import aiohttp
from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs]
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    LoginError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs]
    ConnectionError as BotoConnectionError,
)

from ray_dit.errors import CredentialsExpired, NotFound, StoreFailure, UserError, first_message
from ray_dit.storage.pace import Pace

T = TypeVar("T")
_log = logging.getLogger(__name__)

_SILENCE = 10.0
"""Seconds of failing attempts after which the log says so."""
Kind = Literal["retry", "absent", "exists", "user", "expired", "broken"]


@dataclass(frozen=True)
class Patience:
    """How long one call may take, in seconds."""

    deadline: float = 300.0
    """From the first attempt to giving up."""
    attempt: float = 30.0
    """One attempt, the body's transfer not counted."""
    bytes_per_second: float = 2e6
    """Slowest transfer that is still waited for."""
    first_pause: float = 0.1
    longest_pause: float = 10.0
    contact: float = 8.0
    """The process's first contact with the service, while no request has ever succeeded."""
    renewal: float = 600.0
    """Credentials that worked and have expired, until fresh ones are there.

    It is shorter than the shortest deadline of a shard, so that it is this that ends the job.
    """
    renewal_pause: float = 5.0

    def attempt_seconds(self, size: int) -> float:
        """How long an attempt that moves ``size`` bytes may take."""
        return self.attempt + size / self.bytes_per_second

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the attempt.

        They have full jitter below a doubling bound, so that writers spread out.
        """
        return random.uniform(0.2, 1.0) * min(self.longest_pause, self.first_pause * 2 ** min(attempt, 30))


class Incomplete(Exception):
    """A reply that says it succeeded and lacks what a success has."""


_RETRY = {
    "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "Busy",
    "ConditionalRequestConflict", "Throttling", "ThrottlingException", "RequestLimitExceeded",
    "TooManyRequests", "BandwidthLimitExceeded", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch", "408", "409", "429", "500", "502", "503", "504",
}  # fmt: skip
_TOO_MANY = {
    "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded",
    "TooManyRequests", "BandwidthLimitExceeded", "429", "503",
}  # fmt: skip
"""Of these, what says that there are too many requests."""
_ABSENT = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_EXISTS = {"PreconditionFailed", "412"}
_NOT_PERMITTED = "is not permitted to these credentials: allow reading, writing, listing and deleting there"
_NOT_PUBLIC = (
    "is not open to everybody: give its URI without anonymous@, and credentials, or let everybody read and "
    "list it"
)
_USER = {
    "AccessDenied": _NOT_PERMITTED,
    "403": _NOT_PERMITTED,
    "AllAccessDisabled": "is disabled: ask the bucket's owner",
    "InvalidAccessKeyId": (
        "does not know this access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE and AWS_ENDPOINT_URL"
    ),
    "SignatureDoesNotMatch": "refuses the secret key: check AWS_SECRET_ACCESS_KEY",
    "InvalidClientTokenId": "does not know this access key: check AWS_ACCESS_KEY_ID and AWS_PROFILE",
    "InvalidToken": "refuses the session token: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "says this machine's clock is wrong: set it and run again",
    "NoSuchBucket": "is in a bucket that does not exist: create it, or check its name and AWS_ENDPOINT_URL",
    "InvalidBucketName": "is not a valid bucket name: check the URI",
    "PermanentRedirect": "is in another region: set AWS_DEFAULT_REGION to the bucket's",
    "AuthorizationHeaderMalformed": "is in another region: set AWS_DEFAULT_REGION to the bucket's",
    "301": "is in another region: set AWS_DEFAULT_REGION to the bucket's",
    "KeyTooLongError": "is too long a key: take a shorter prefix",
    "EntityTooLarge": "is larger than this storage takes: make the shards smaller",
    "QuotaExceeded": "is over its quota: free some space",
    "XMinioStorageFull": "is out of space: free some",
}


_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_NO_LOGIN = (CredentialRetrievalError, TokenRetrievalError, SSOError, LoginError)
"""Raised where the client itself asks for credentials: single sign-on, roles, programs."""


def _response(error: ClientError) -> dict[str, Any]:
    return cast(Any, error).response


def code_of(error: BaseException) -> str:
    """The S3 error code of a reply.

    It is the HTTP status where a reply has no body (HEAD), else the exception's name.
    """
    if isinstance(error, ClientError):
        response = _response(error)
        return str(response.get("Error", {}).get("Code") or response["ResponseMetadata"]["HTTPStatusCode"])
    return type(error).__name__


def unsupported(error: BaseException | None) -> bool:
    """Whether a service said that it does not know what it was asked for, such as a condition."""
    return isinstance(error, ClientError) and code_of(error) in (
        "NotImplemented",
        "501",
        "InvalidArgument",
        "400",
    )


def kind_of(error: BaseException) -> Kind:
    """What to do about a failed attempt."""
    if isinstance(error, ClientError):
        code = code_of(error)
        status = int(_response(error)["ResponseMetadata"].get("HTTPStatusCode", 0))
        if code in _EXISTS or status == 412:
            return "exists"
        if code in _EXPIRED:
            return "expired"
        if code in _USER:
            return "user"
        if code in _ABSENT:
            return "absent"
        return "retry" if code in _RETRY or status >= 500 and status != 501 else "broken"
    if isinstance(error, _NO_LOGIN):
        return "expired"
    network = (
        aiohttp.ClientError,
        Incomplete,
        TimeoutError,
        HTTPClientError,
        IncompleteReadError,
        BotoConnectionError,
        ConnectionError,
    )
    if isinstance(error, network):
        return "retry"
    return "user" if isinstance(error, BotoCoreError) else "broken"  # the rest of botocore's are of settings


def says_nothing(error: BaseException) -> bool:
    """Whether a refusal gives no reason but a status, as replies to HEAD have no body."""
    return isinstance(error, ClientError) and code_of(error) in ("301", "307", "400", "401", "403")


def said(where: str, error: BaseException, *, anonymous: bool = False) -> UserError:
    """The sentence for a failure that is not retried."""
    code = code_of(error)
    if anonymous and _USER.get(code) == _NOT_PERMITTED:
        return UserError(f"{where} {_NOT_PUBLIC} ({code})")
    if isinstance(error, BotoCoreError) and kind_of(error) in ("user", "expired"):
        return UserError(f"{where} {_said_of_settings(error)}")
    if kind_of(error) == "expired":
        return UserError(
            f"{where} says that the credentials have expired ({code}): get new ones and run the same command "
            "again"
        )
    if code in _USER:
        return UserError(f"{where} {_USER[code]} ({code})")
    if kind_of(error) == "absent":
        return NotFound(f"{where} does not exist")
    return StoreFailure(f"{where} failed in a way that is not known to pass ({code}: {error})")


def _said_of_settings(error: BotoCoreError) -> str:
    """What is wrong with settings or credentials that the client itself refuses."""
    given: dict[str, Any] = getattr(error, "kwargs", {})
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return (
                "needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a "
                "public bucket is read without, as s3://anonymous@BUCKET"
            )
        case ProfileNotFound():
            return (
                f"needs the profile {given.get('profile')!r}, which is in neither ~/.aws/config nor "
                "~/.aws/credentials: check AWS_PROFILE"
            )
        case InvalidRegionError():
            return f"cannot be in the region {given.get('region_name')!r}: check AWS_DEFAULT_REGION"
        case ParamValidationError():
            return "has a bucket or key that is not valid: check the URI"
        case _ if isinstance(error, _NO_LOGIN):
            return f"needs credentials that could not be had ({first_message(error)}): log in again"
        case _:
            return (
                f"cannot be reached with these AWS settings ({first_message(error)}): check AWS_* and ~/.aws"
            )


async def with_fresh_credentials(
    work: Callable[[], Awaitable[T]], renew: Callable[[], None], *, where: str, patience: Patience
) -> T:
    """``work``, and again with the credentials that ``renew`` finds while those it had have expired.

    CredentialsExpired if none that work are there after ``patience.renewal`` seconds.
    """
    loop = asyncio.get_running_loop()
    end: float | None = None
    while True:
        try:
            return await work()
        except Exception as error:
            if kind_of(error) != "expired":
                raise
            if end is None:
                end = loop.time() + patience.renewal
                _log.warning(
                    "%s: the credentials have expired (%s); waiting %.0f s for fresh ones in ~/.aws",
                    where, code_of(error), patience.renewal,
                )  # fmt: skip
            if loop.time() + patience.renewal_pause >= end:
                raise CredentialsExpired(
                    f"{where}: the credentials have expired and no fresh ones came in "
                    f"{patience.renewal:.0f} s: renew them and run the same command again; what is finished "
                    "stays"
                ) from error
            await asyncio.sleep(patience.renewal_pause)
            renew()


async def attempts(
    call: Callable[[], Awaitable[T]],
    *,
    where: str,
    patience: Patience,
    size: int = 0,
    pace: Pace | None = None,
) -> T:
    """Calls until it succeeds, fails for good (raising that error) or the deadline passes (StoreFailure).

    Each call waits for its turn at the ``pace`` that it shares with others.
    """
    loop = asyncio.get_running_loop()
    pace = pace or Pace(loop.time)
    begin = loop.time()
    end = begin + patience.deadline + size / patience.bytes_per_second
    attempt, warned, last = 0, False, "too many requests are refused"
    while True:
        if not await pace.turn(until=end):
            raise _given_up(where, attempt, patience, last)
        # Our own clock around the whole attempt: a PUT that stalls before any reply outlives every client
        # timeout.
        seconds, left = patience.attempt_seconds(size), max(end - loop.time(), 0.001)
        try:
            result = await asyncio.wait_for(call(), min(seconds, left))
            pace.accepted()
            return result
        except Exception as error:
            if kind_of(error) != "retry":
                pace.accepted()
                raise
            if code_of(error) in _TOO_MANY:
                pace.refused()
            pause = patience.pause(attempt)
            if not attempt or left >= seconds or not isinstance(error, TimeoutError):
                last = (
                    f"{code_of(error)}: {error}"  # what the deadline cut short says less than the one before
                )
            if loop.time() - begin > _SILENCE and not warned:
                warned = True
                _log.warning("%s: still trying after %s", where, last)
            if loop.time() + pause >= end:
                raise _given_up(where, attempt + 1, patience, last) from error
        attempt += 1
        await asyncio.sleep(pause)


def _given_up(where: str, tries: int, patience: Patience, last: str) -> StoreFailure:
    return StoreFailure(
        f"{where} was tried {tries} times in {patience.deadline:.0f} s without success ({last}): check the "
        "network, AWS_ENDPOINT_URL and the service, then run again"
    )
