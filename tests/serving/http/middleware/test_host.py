"""Hosts: forged ones and this machine's."""

import pytest

from tests.serving.http.client import ask


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1:80:80", "[::1", "a b", "localhost/"]
)
def test_forged_hosts(host):
    answer = ask(method="GET", path="/v1/models", headers={"host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_hosts_of_this_machine(host):
    assert ask(method="GET", path="/health", headers={"host": host}).status_code == 200
