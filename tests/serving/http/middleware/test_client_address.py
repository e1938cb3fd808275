"""Whose request it is, behind proxies that are trusted and those that are not."""

import pytest

from ray_dit.serving.http.middleware.client_address import client_address, networks

TRUSTED = networks(["10.0.0.0/8", "::1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the first was sent by the client itself
        ("10.0.0.1", ["203.0.113.9, 10.0.0.7"], "203.0.113.9"),  # two proxies
        ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),  # anyone may send the header
        ("testclient", ["10.0.0.1"], "testclient"),
    ],
)
def test_the_header_is_believed_as_far_as_proxies_are_trusted(peer, forwarded, client):
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert client_address({"client": (peer, 1), "headers": headers}, TRUSTED) == client
    assert client_address({"client": (peer, 1), "headers": headers}, ()) == peer


def test_a_server_that_knows_no_peer_says_none():
    assert client_address({"client": None, "headers": [(b"x-forwarded-for", b"10.0.0.1")]}, TRUSTED) is None
