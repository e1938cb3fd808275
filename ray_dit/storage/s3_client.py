"""This process's client of S3: how it is made, its first contact with the service, fresh credentials.

Knows nothing of objects. The client is the one s3fs makes, which finds credentials, profiles and
``AWS_ENDPOINT_URL`` the usual ways; there is one per event loop and environment, and another one for requests
without credentials.

A wrong setting fails at the first contact, within seconds. Once a request has succeeded, the settings are
right, and what fails later is an outage that is worth waiting for (``proven.py``).
"""

import asyncio
import atexit
import os
from contextlib import suppress
from typing import Any, cast

import fsspec.asyn  # pyright: ignore[reportMissingTypeStubs]
from botocore.exceptions import ClientError  # pyright: ignore[reportMissingTypeStubs]

from ray_dit.errors import StoreFailure, UserError
from ray_dit.storage.pace import Pace
from ray_dit.storage.proven import Environment, environment, is_proven
from ray_dit.storage.retry import Patience, attempts, code_of, kind_of, said

CLOSE_AFTER = 120.0
"""Seconds until a client that was given up is closed: others may still be using it."""

_clients: dict[tuple[int, Environment], "asyncio.Task[Any]"] = {}
_given_up: set[Any] = set()
_paces: dict[tuple[int, Environment], Pace] = {}


def shared_pace(*, anonymous: bool = False) -> Pace:
    """The pace of all requests of this process, loop and environment."""
    loop = asyncio.get_running_loop()
    return _paces.setdefault((id(loop), environment(anonymous=anonymous)), Pace(loop.time))


async def shared_client(bucket: str, patience: Patience, *, anonymous: bool = False) -> Any:
    """The client of this process, loop and environment (who changes ``AWS_*`` gets another).

    An ``anonymous`` one looks for no credentials and signs nothing.

    UserError if it cannot be made, StoreFailure if nothing answers at its endpoint.
    """
    loop = asyncio.get_running_loop()
    key = (id(loop), environment(anonymous=anonymous))
    task = _clients.get(key)
    if task is None or task.done() and (task.cancelled() or task.exception()):
        task = _clients[key] = loop.create_task(_connect(loop, bucket, patience, anonymous))
    return await asyncio.shield(task)


def renew(client: Any) -> None:
    """Gives up the client, so that the next one looks for credentials anew."""
    loop = asyncio.get_running_loop()
    for key, task in [*_clients.items()]:
        if task.done() and not task.cancelled() and task.exception() is None and task.result() is client:
            del _clients[key]
            _given_up.add(client)
            loop.call_later(CLOSE_AFTER, lambda: loop.create_task(_close(client)))


async def _close(client: Any) -> None:
    if client in _given_up:
        _given_up.remove(client)
        await client.close()


async def ask_why(client: Any, bucket: str) -> None:
    """Raises the refusal that a reply without a body (to HEAD) has hidden: a listing's reply has one."""
    await client.list_objects_v2(Bucket=bucket, MaxKeys=1)


async def _connect(loop: asyncio.AbstractEventLoop, bucket: str, patience: Patience, anonymous: bool) -> Any:
    import s3fs  # pyright: ignore[reportMissingTypeStubs]

    config = {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        "s3": {"payload_signing_enabled": True},  # the server then checks the body against its signed sha256
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    options: Any = {"anon": anonymous, "config_kwargs": config, "skip_instance_cache": True}
    files = cast(Any, s3fs.S3FileSystem(asynchronous=True, loop=loop, **options))
    try:
        client = await files.set_session()
    except ValueError as error:  # InvalidRegionError is one too, and has a sentence of its own
        if code_of(error) != "ValueError":
            raise
        setting, _ = _endpoint_setting()
        raise UserError(f"s3://{bucket} cannot be asked: {error}; check {setting}") from error
    try:
        if not is_proven(anonymous=anonymous):
            await _contact(client, bucket, patience)
    except BaseException:
        await client.close()
        raise
    return client


async def _contact(client: Any, bucket: str, patience: Patience) -> None:
    """The first request: any answer of S3 will do; StoreFailure if there is none."""

    async def ask() -> None:
        try:
            await ask_why(client, bucket)
        except ClientError as error:
            if code_of(error).isdigit():  # S3 gives a code of its own to all but HEAD
                raise

    # One try may take all of it: where the first of two name servers is dead, a look-up takes five seconds.
    seconds = min(patience.contact, patience.deadline)
    quick = Patience(deadline=seconds, attempt=seconds)
    try:
        await attempts(ask, where=f"s3://{bucket}", patience=quick)
    except Exception as error:
        if kind_of(error) in ("user", "expired") and not isinstance(error, ClientError):
            raise said(f"s3://{bucket}", error) from error
        cause = error.__cause__ if isinstance(error, StoreFailure) else error
        setting, else_set = _endpoint_setting()
        raise StoreFailure(
            f"s3://{bucket} cannot be reached, as no S3 service answers at {client.meta.endpoint_url} "
            f"({_reason(cause)}): check {setting} and the network{else_set}"
        ) from error


def _reason(error: BaseException | None) -> str:
    """Why there was no answer: what the operating system says, else the first line of the error."""
    reason = "no reply"
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if str(error) and reason == "no reply":
            reason = str(error).splitlines()[0]
        error = error.__cause__ or error.__context__
    return reason


def _endpoint_setting() -> tuple[str, str]:
    """The setting that the endpoint comes from, and what else to say of it."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            return name, ""
    elsewhere = ", or set AWS_ENDPOINT_URL where the bucket is not Amazon's"
    return "AWS_DEFAULT_REGION, the region and endpoint_url of your AWS profile", elsewhere


@atexit.register
def _close_clients() -> None:
    """Closes connections while the loop's thread still runs; aiohttp complains of open ones otherwise."""

    async def close() -> None:
        for task in _clients.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().close()
        for client in [*_given_up]:
            await _close(client)

    with suppress(Exception):
        asyncio.run_coroutine_threadsafe(close(), fsspec.asyn.get_loop()).result(2)
