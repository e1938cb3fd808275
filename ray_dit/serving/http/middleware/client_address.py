"""Whose request it is by its address: the peer's, or what proxies that are trusted say of it.

Anyone may send X-Forwarded-For; it says something only as far as those are trusted who added to it.
"""

import ipaddress
from collections.abc import Sequence

from starlette.types import Scope

from ray_dit.serving.http.middleware.scope import headers_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MOST_HOPS = 20
"""Addresses of a header that are looked at."""


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks (10.0.0.0/8) as written in the settings; ValueError for one that is none."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def client_address(scope: Scope, trusted: Sequence[Network]) -> str | None:
    """The address of the client, None where the server knows none.

    A proxy adds the address of its own peer at the end of X-Forwarded-For. So from the end on, what a trusted
    one has added is believed, up to the first address that is not trusted: that is the client.
    """
    peer = scope.get("client")
    if not peer:
        return None
    address = str(peer[0])
    said = b",".join(headers_of(scope).get(b"x-forwarded-for", [])).decode("latin-1")
    hops = [hop.strip() for hop in said.split(",") if hop.strip()][-MOST_HOPS:]
    while hops and _within(address, trusted):
        hop = hops.pop()
        if _parsed(hop) is None:
            break  # not an address: what stands before it was not added by whom we trust either
        address = hop
    return address


def _within(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in trusted)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
