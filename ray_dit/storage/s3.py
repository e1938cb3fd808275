"""S3 and what speaks it as a store: conditional requests, one retry of ours, deadlines.

Knows nothing of jobs.

Requests go through the client s3fs makes (``s3_client.py``), not through s3fs's own methods: those retry five
times above botocore's retries and hide which condition failed.
"""

import asyncio
import base64
import hashlib
import itertools
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, BinaryIO, TypeGuard, TypeVar, cast

import fsspec.asyn  # pyright: ignore[reportMissingTypeStubs]

from ray_dit.errors import Conflict, Damaged, NotFound, StoreFailure, UserError
from ray_dit.storage.proven import is_proven, note_success
from ray_dit.storage.range_file import range_file
from ray_dit.storage.retry import (
    Incomplete,
    Patience,
    attempts,
    code_of,
    kind_of,
    said,
    says_nothing,
    unsupported,
    with_fresh_credentials,
)
from ray_dit.storage.s3_client import ask_why, renew, shared_client, shared_pace
from ray_dit.storage.store import CHUNK, FileBytes, ObjectInfo, Store, ahead, checked_key, sha256_of

T = TypeVar("T")
Reply = dict[str, Any]

ONE_PUT = 1 << 30
"""Larger objects go up in parts; a PUT could hold five times as much, but one failure would repeat all of
it."""
PART = 128 << 20
FILE_PART = 32 << 20
"""That of a file, which takes twice as much memory while it is sent."""
READS = 3
"""How often an object is read whose bytes do not have the hash stored with it."""
ANONYMOUS = "anonymous@"
"""Before the bucket's name in a URI: ask without credentials, as one may ask a public bucket."""
PROBES = "_check/"
"""Where the trial of a target puts its objects, by the second they were made."""

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """The condition of a request did not hold (412)."""


@dataclass(frozen=True)
class S3Store(Store):
    """Objects under ``s3://bucket/prefix``; those of ``s3://anonymous@bucket/prefix`` are only read."""

    patience: Patience = field(default=Patience(), kw_only=True)
    conditional: bool = field(default=True, kw_only=True)
    """Whether the service obeys If-None-Match and If-Match; without, the weaker mode looks, writes and looks
    again."""

    def get(self, key: str) -> bytes:
        return self.get_version(key)[0]

    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        if span is not None:
            return self._read(key, *span)
        for _ in range(READS):  # a bit may flip on the way: only what is wrong each time is wrong in storage
            chunks, info = self._chunks(key)
            data = b"".join(chunks)  # of a single chunk this is no copy
            if not info.sha256 or hashlib.sha256(data).hexdigest() == info.sha256:
                return data, info
        raise Damaged(f"{self.where(key)} is damaged: its bytes are not those its writer stored; repair it")

    def sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for chunk in self._chunks(key)[0]:
            digest.update(chunk)
        return digest.hexdigest()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._read(key, start, length)[0] if length > 0 else b""

    def open_file(self, key: str) -> BinaryIO:
        info = _info(key, self._head(key))
        return range_file(lambda start, length: self._read(key, start, length, info.etag)[0], info.size)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            return _info(key, self._head(key))
        except NotFound:
            return None

    def put(self, key: str, data: bytes) -> bool:
        return self._put(key, data)

    def _put_large(self, key: str, data: FileBytes) -> bool:
        return self._put(key, data)

    def _put(self, key: str, data: bytes | FileBytes) -> bool:
        if not _in_one(data) and self.head(key) is not None:
            return self._same_or_conflict(key, data)  # without sending it all to be refused
        token = uuid.uuid4().hex
        try:
            self._write(key, data, token, IfNoneMatch="*")
        except (_Refused, NotFound):
            return self._wrote(key, token) or self._same_or_conflict(key, data)
        return True

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        token = uuid.uuid4().hex
        try:
            self._write(key, data, token, IfMatch=if_match)
        except (_Refused, NotFound) as error:
            if not self._wrote(key, token):
                raise Conflict(
                    f"{self.where(key)} was changed by another writer; look again before replacing it"
                ) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        root = f"{self._prefix}/" if self._prefix else ""
        page: Reply = {"NextContinuationToken": None}
        while (token := page.get("NextContinuationToken")) or page.keys() == {"NextContinuationToken"}:
            more = {"ContinuationToken": token} if token else {}
            page = self._ask("list_objects_v2", prefix, needs="IsTruncated", Prefix=root + prefix, **more)
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield ObjectInfo(entry["Key"].removeprefix(root), entry["Size"], entry["ETag"], None)

    def delete(self, key: str) -> None:
        with suppress(NotFound):
            self._ask("delete_object", key, Key=self._key(key))

    def refuse_read_only(self) -> None:
        if self._is_anonymous:
            raise UserError(
                f"{self.uri} can be read but not written, as {ANONYMOUS} stands for nobody: give "
                f"s3://{self._bucket}/... and credentials"
            )

    @property
    def _bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0].removeprefix(ANONYMOUS)

    @property
    def _is_anonymous(self) -> bool:
        return self.uri.startswith(f"s3://{ANONYMOUS}")

    @property
    def _prefix(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[2]

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{checked_key(key)}".lstrip("/")

    def _head(self, key: str) -> Reply:
        return self._ask("head_object", key, needs="ETag", Key=self._key(key))

    def _wrote(self, key: str, token: str) -> bool:
        """Whether the object that is there came from this very call.

        That is so where an attempt succeeded and its reply was lost.
        """
        try:
            return self._head(key)["Metadata"].get("writer") == token
        except NotFound:
            return False

    def _read(self, key: str, start: int, length: int, etag: str | None = None) -> tuple[bytes, ObjectInfo]:
        async def once(client: Any) -> tuple[bytes, Reply]:
            span = {"Range": f"bytes={start}-{start + length - 1}"} | ({"IfMatch": etag} if etag else {})
            try:
                reply = await client.get_object(Bucket=self._bucket, Key=self._key(key), **span)
            except Exception as error:
                if code_of(error) not in ("InvalidRange", "416"):
                    raise
                return b"", cast(Reply, await client.head_object(Bucket=self._bucket, Key=self._key(key)))
            async with reply["Body"] as body:
                data = cast(bytes, await body.read())
            if "ETag" not in reply or len(data) != _promised(reply):
                raise Incomplete(f"{len(data)} bytes and no whole reply")
            return (data if "ContentRange" in reply else data[start : start + length]), reply

        try:
            data, reply = self._run(once, key, size=length)
        except _Refused as error:
            raise Conflict(f"{self.where(key)} was replaced while it was read; read it again") from error
        return data, _info(key, reply)

    def _chunks(self, key: str) -> tuple[Iterator[bytes], ObjectInfo]:
        """One version of the object as chunks, in one request if it is small, and what came with it."""
        first, info = self._read(key, 0, CHUNK)
        rest = (self._read(key, start, CHUNK, info.etag)[0] for start in range(CHUNK, info.size, CHUNK))
        return itertools.chain([first], rest), info

    def _write(self, key: str, data: bytes | FileBytes, token: str, **condition: str) -> None:
        """Writes under the condition, or raises _Refused.

        The token tells our object from another writer's.
        """
        if not self.conditional:
            self._look(key, condition)
        metadata = {"sha256": sha256_of(data), "writer": token}
        headers = condition if self.conditional else {}
        if _in_one(data):
            self._ask(
                "put_object",
                key,
                needs="ETag",
                Key=self._key(key),
                **_body(data),
                Metadata=metadata,
                **headers,
            )
        else:
            self._write_parts(key, data, metadata, headers)
        if not (_in_one(data) and self.conditional) and not self._wrote(key, token):
            raise _Refused

    def _look(self, key: str, condition: dict[str, str]) -> None:
        """The weaker mode's condition: true a moment ago."""
        info = self.head(key)
        if (info.etag if info else None) != condition.get("IfMatch"):
            raise _Refused

    def _write_parts(
        self, key: str, data: bytes | FileBytes, metadata: dict[str, str], condition: dict[str, str]
    ) -> None:
        """A multipart upload whose completion carries the condition.

        SeaweedFS 4.48 checks that condition and completes in two steps, so that of uploads that end in the
        same instant several may succeed; hence the look afterwards.
        """
        name = self._key(key)
        size, threads = (PART, 4) if isinstance(data, bytes) else (FILE_PART, 1)
        upload = self._ask("create_multipart_upload", key, needs="UploadId", Key=name, Metadata=metadata)[
            "UploadId"
        ]

        def part(number: int) -> Reply:
            body = _body(data[(number - 1) * size : number * size])
            reply = self._ask(
                "upload_part", key, needs="ETag", Key=name, UploadId=upload, PartNumber=number, **body
            )
            return {"PartNumber": number, "ETag": reply["ETag"]}

        # then no upload of this key can succeed any more: one whose reply was lost, or another writer's
        taken = False
        try:
            parts = {"Parts": list(ahead(part, range(1, -(-len(data) // size) + 1), threads=threads))}
            self._ask(
                "complete_multipart_upload", key, needs="ETag",
                Key=name, UploadId=upload, MultipartUpload=parts, **condition,
            )  # fmt: skip
            taken = True
        except _Refused:
            taken = "IfNoneMatch" in condition
            raise
        finally:
            with suppress(UserError):
                for left in self._uploads(key):
                    if left["Key"] == name and (taken or left["UploadId"] == upload):
                        self._abort(left)

    def _uploads(self, prefix: str) -> Sequence[Reply]:
        name = f"{self._prefix}/{prefix}".lstrip("/")
        return self._ask("list_multipart_uploads", prefix, needs="IsTruncated", Prefix=name).get(
            "Uploads", []
        )

    def _abort(self, upload: Reply) -> None:
        with suppress(NotFound):
            self._ask("abort_multipart_upload", upload["Key"], Key=upload["Key"], UploadId=upload["UploadId"])

    def clean(self, older_than: float) -> Iterator[str]:
        latest = time.time() - older_than
        while old := [left for left in self._uploads("") if left["Initiated"].timestamp() < latest]:
            for upload in old:
                self._abort(upload)
                yield f"unfinished upload of s3://{self._bucket}/{upload['Key']}"

    def checked(self) -> "S3Store":
        if self.conditional and not _obeys_conditions(self):
            _log.warning("%s ignores conditional writes; the weaker mode of docs/store.md is used", self.uri)
            return replace(self, conditional=False)
        return self

    def obeys(self, key: str, data: bytes, **condition: str) -> bool:
        """Whether the service refuses to write the object under a condition that does not hold."""
        try:
            self._write(key, data, uuid.uuid4().hex, **condition)
        except (_Refused, NotFound):
            return True
        except StoreFailure as error:
            if not unsupported(error.__cause__):
                raise
        return False

    def _ask(self, operation: str, key: str, *, needs: str | None = None, **arguments: Any) -> Reply:
        """One request; a success that lacks the field ``needs`` counts as a failure of the service."""

        async def once(client: Any) -> Reply:
            reply = await getattr(client, operation)(Bucket=self._bucket, **arguments)
            if needs and needs not in reply:
                raise Incomplete(f"the reply to {operation} has no {needs}")
            return reply

        return self._run(once, key, size=len(arguments.get("Body", b"")))

    def _run(self, once: Callable[[Any], Awaitable[T]], key: str, *, size: int) -> T:
        """Runs a request with retries in the process's I/O loop and raises what a caller can understand."""

        used: Any = None

        async def call() -> T:
            nonlocal used
            used = await shared_client(self._bucket, self.patience, anonymous=self._is_anonymous)
            try:
                return await once(used)
            except Exception as error:
                if says_nothing(error):
                    await ask_why(used, self._bucket)
                raise

        async def called() -> T:
            pace = shared_pace(anonymous=self._is_anonymous)
            return await attempts(call, where=where, patience=self.patience, size=size, pace=pace)

        where = self.where(key).rstrip("/")
        if is_proven(anonymous=self._is_anonymous):
            work = with_fresh_credentials(called, lambda: renew(used), where=where, patience=self.patience)
        else:  # credentials that have never worked are not waited for
            work = called()
        future = asyncio.run_coroutine_threadsafe(work, fsspec.asyn.get_loop())
        try:
            result = future.result()
            note_success(anonymous=self._is_anonymous)
            return result
        except UserError:
            raise
        except Exception as error:
            if kind_of(error) == "exists":
                raise _Refused from error
            raise said(where, error, anonymous=self._is_anonymous) from error
        finally:
            future.cancel()  # where the caller was interrupted


@lru_cache(maxsize=256)
def _obeys_conditions(store: S3Store) -> bool:
    """Tries both conditions and reading back on a probe object, once per process and place."""
    probe = f"{PROBES}{int(time.time())}-{uuid.uuid4().hex}"
    try:
        if not store.obeys(
            probe, b"", IfMatch='"0"'
        ):  # also where the target refuses writing altogether: it says so
            return False
        store.put(probe, b"1")
        if store.get(probe) != b"1":
            raise StoreFailure(
                f"{store.uri} does not return what was just written: take storage that is consistent"
            )
        return store.obeys(probe, b"2", IfNoneMatch="*") and store.obeys(probe, b"3", IfMatch='"0"')
    finally:
        store.delete(probe)


def _in_one(data: bytes | FileBytes) -> TypeGuard[bytes]:
    """Whether it goes up in a single PUT, from memory."""
    return isinstance(data, bytes) and len(data) <= ONE_PUT


def _body(data: bytes) -> Reply:
    """Bytes to store, and a hash for the service to check them by.

    A service that checks signatures has one already; one that takes anybody's credentials, as SeaweedFS does
    without accounts, would store what a flipped bit made of them.
    """
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(md5).decode()}


def _promised(reply: Reply) -> int:
    """How many bytes a reply must have: those of the range it names, which a wrong length cannot shorten."""
    span = re.match(r"bytes (\d+)-(\d+)/", reply.get("ContentRange", ""))
    return int(span[2]) - int(span[1]) + 1 if span else reply["ContentLength"]


def _info(key: str, reply: Reply) -> ObjectInfo:
    span = reply.get("ContentRange")
    size = int(span.rpartition("/")[2]) if span else reply["ContentLength"]
    return ObjectInfo(key, size, reply["ETag"], reply.get("Metadata", {}).get("sha256"))
