"""API keys: who asks, known by a hash only. Knows no HTTP beyond the Authorization header.

A key is 32 random bytes, so one round of SHA-256 keeps it: there is nothing to guess. `python -m
ray_dit.serving.http.keys NAME` makes one and prints the line for the keys file.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable

from ray_dit.errors import UserError

VARIABLE = "RAY_DIT_API_KEYS"
LINE = re.compile(r"(?P<name>[\w@][\w.@-]{0,63}):(?P<hash>[0-9a-fA-F]{64})")


CHECK_SECONDS = 1.0
"""How often the keys file is looked at, at most."""
logger = logging.getLogger(__name__)


class Keys:
    """Hashes of keys by the names of their owners; those of a file follow it when it changes."""

    def __init__(
        self,
        variable: Iterable[str] = (),
        path: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._variable, self._path, self._clock = list(variable), path, clock
        self._seen: tuple[int, ...] | None = None
        """What the file's state was when it was last read, or found missing (None)."""
        self._checked = clock()
        self._hashes = self._read()
        if path is not None and not self._hashes:
            raise UserError(f"{path} holds no key: make one by `python -m ray_dit.serving.http.keys NAME`")
        self.wanted = bool(self._hashes)
        """Whether everyone must show a key: if there were any at the start, also when all are gone since."""

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def load(cls, path: str | None) -> "Keys":
        """Those of the file and of the variable RAY_DIT_API_KEYS; UserError for a line that is none."""
        return cls(os.environ.get(VARIABLE, "").replace(",", "\n").splitlines(), path)

    def owner(self, authorization: str | None) -> str | None:
        """Whose key the header holds, as `Bearer KEY` or as the password of `Basic`; None if nobody's.

        The time it takes does not depend on how much of a hash agrees.
        """
        self._follow()
        hashed = hashlib.sha256(_presented(authorization or "")).digest()
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(hashed, known):
                found = name
        return found

    def _follow(self) -> None:
        """Reads the file again if it has changed. One that can't be used keeps the keys there were."""
        now = self._clock()
        if self._path is None or now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        if _state(self._path) == self._seen:
            return
        try:
            self._hashes = self._read()
        except UserError as error:
            logger.error("%s; the keys there were stay in force", error)
            return
        logger.info("read the keys file again: %d keys", len(self._hashes))

    def _read(self) -> dict[str, bytes]:
        lines = list(self._variable)
        if self._path is not None:
            self._seen = _state(self._path)  # before reading: a change meanwhile is seen the next time
            try:
                with open(self._path, encoding="utf-8") as file:
                    lines += file.read().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
                message = f"the keys file {self._path} can't be read ({reason}): check keys_file"
                raise UserError(message) from error
        return {name: bytes.fromhex(value) for name, value in _parse(lines).items()}


def _state(path: str) -> tuple[int, ...] | None:
    """What is different when the file is; None if it is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino


def new_key(name: str) -> tuple[str, str]:
    """A new key and the line `name:hash` for the file."""
    key = "rd-" + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def _parse(lines: Iterable[str]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for line in lines:
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None or match["name"] in hashes:
            # The line itself is not shown: someone may have put a key there.
            raise UserError(
                "a line of the API keys is not `name:sha256` with a name of its own; fix or remove it"
            )
        hashes[match["name"]] = match["hash"]
    return hashes


def _presented(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":  # so that browsers can ask for the key themselves
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def main(arguments: list[str]) -> None:
    """Prints a new key for the name given."""
    if len(arguments) != 1 or LINE.fullmatch(f"{arguments[0]}:{'0' * 64}") is None:
        print("usage: python -m ray_dit.serving.http.keys NAME", file=sys.stderr)
        sys.exit(2)
    key, line = new_key(arguments[0])
    print(f"key, for the client:          {key}")
    print(f"line, for the keys file:      {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
