"""API keys: who asks, known by a hash only. Knows no HTTP beyond the Authorization header.

A key is 32 random bytes, so one round of SHA-256 keeps it: there is nothing to guess. `python -m
ray_dit.serving.http.keys NAME` makes one and prints the line for the keys file.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable

from ray_dit.errors import UserError

VARIABLE = "RAY_DIT_API_KEYS"
LINE = re.compile(r"(?P<name>[\w@][\w.@-]{0,63}):(?P<hash>[0-9a-fA-F]{64})")


class Keys:
    """Hashes of keys by the names of their owners."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = {name: bytes.fromhex(value) for name, value in hashes.items()}

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def load(cls, path: str | None) -> "Keys":
        """Those of the file and of the variable RAY_DIT_API_KEYS; UserError for a line that is none."""
        lines = os.environ.get(VARIABLE, "").replace(",", "\n").splitlines()
        if path is not None:
            try:
                with open(path, encoding="utf-8") as file:
                    lines += file.read().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
                raise UserError(f"the keys file {path} can't be read ({reason}): check keys_file") from error
        keys = cls(_parse(lines))
        if path is not None and not len(keys):
            raise UserError(f"{path} holds no key: make one by `python -m ray_dit.serving.http.keys NAME`")
        return keys

    def owner(self, authorization: str | None) -> str | None:
        """Whose key the header holds, as `Bearer KEY` or as the password of `Basic`; None if nobody's.

        The time it takes does not depend on how much of a hash agrees.
        """
        hashed = hashlib.sha256(_presented(authorization or "")).digest()
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(hashed, known):
                found = name
        return found


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
