"""HTTP messages of S3 with other bytes in them: cut, flipped, or asking for less; knows no connections.

What is changed is a function of the message and the fault alone.
"""

import hashlib
import re


def request(message: bytes, fault: str | None) -> bytes:
    """What is forwarded instead of the client's request."""
    if fault == "flip" and message.startswith(b"PUT "):
        head, body = _split(message)
        return head + flipped(body)
    if fault == "short_page":
        # SeaweedFS without accounts checks no signature, so that the query may be changed.
        first, rest = message.split(b"\r\n", 1)
        query = re.sub(rb"&?max-keys=\d+", b"", first)
        return query.replace(b"list-type=2", b"list-type=2&max-keys=2", 1) + b"\r\n" + rest
    return message


def response(message: bytes, fault: str | None) -> bytes:
    """What the client gets instead of the service's reply; errors stay as they are."""
    head, body = _split(message)
    if not re.match(rb"HTTP/1\.[01] 20[06]", head) or not body:
        return message
    match fault:
        case "flip":
            return head + flipped(body)
        case "cut_body" | "cut_listing":
            half = body[: len(body) // 2]
            return _with_length(head, len(half)) + half
        case _:
            return message


def flipped(body: bytes) -> bytes:
    """One bit of it flipped, which one its content decides; nothing of nothing."""
    if not body:
        return body
    place = int.from_bytes(hashlib.sha256(body).digest()[:8], "big") % (8 * len(body))
    changed = bytearray(body)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _split(message: bytes) -> tuple[bytes, bytes]:
    head, end, body = message.partition(b"\r\n\r\n")
    return head + end, body


def _with_length(head: bytes, length: int) -> bytes:
    lengthless = re.sub(rb"(?i)\r\n(content-length|transfer-encoding):[^\r]*", b"", head)
    return lengthless.removesuffix(b"\r\n") + b"Content-Length: %d\r\n\r\n" % length
