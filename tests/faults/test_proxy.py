"""The proxy's faults are a function of the seed, bounded, and each is met.

What each looks like to an honest client.
"""

import http.client
from urllib.parse import urlsplit

import pytest

from tests.support.proxy import FAULTS, Fault, FaultProxy, Seen, fault_for
from tests.support.seaweed import BUCKET

pytestmark = pytest.mark.s3


def ask(
    proxy: FaultProxy, method: str, key: str, body: bytes | None = None, timeout: float = 5.0
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=timeout)
    try:
        connection.request(method, f"/{BUCKET}/{key}", body=body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_faults_are_a_function_of_the_seed():
    asked = [("PUT", f"/b/{key}", attempt) for key in range(500) for attempt in range(4)]
    first, again, other = ([fault_for(seed, *one, 0.2, FAULTS) for one in asked] for seed in (1, 1, 2))
    assert first == again != other
    assert 0.18 < sum(fault is not None for fault in first) / len(asked) < 0.22
    assert set(first) == {None, *FAULTS}


def test_without_faults_it_is_transparent(upstream: str):
    with FaultProxy(upstream) as proxy:
        assert ask(proxy, "PUT", "proxy/a", b"content")[0] == 200
        assert ask(proxy, "GET", "proxy/a") == (200, b"content")
        assert ask(proxy, "GET", "proxy/nix")[0] == 404
    assert proxy.requests == {"PUT": 1, "GET": 2}
    assert not proxy.hits


@pytest.mark.parametrize(
    ("fault", "written", "seen"),
    [
        ("error_500", False, 500),
        ("slow_down", False, 503),
        ("error_in_200", False, 200),
        ("stall", False, TimeoutError),
        ("stall_after", True, TimeoutError),
        ("reset_before", False, ConnectionResetError),
        ("reset_after", True, ConnectionResetError),
        ("short_body", True, 200),  # Python's own client takes half a head for a whole one
        ("duplicate", True, 200),
        ("latency", True, 200),
        ("slow_body", True, 200),
        ("flip", True, 200),  # this client sends no hash of the body
    ],
)
def test_each_fault_does_what_its_name_says(
    upstream: str, fault: Fault, written: bool, seen: int | type[Exception]
):
    key = f"proxy/{fault}"
    with FaultProxy(upstream, rate=1.0, kinds=(fault,), per_target=1, stall_seconds=2) as proxy:
        if isinstance(seen, int):
            assert ask(proxy, "PUT", key, b"content")[0] == seen
        else:
            with pytest.raises(seen):
                ask(proxy, "PUT", key, b"content", timeout=0.5)
        proxy.quiesce()
    assert proxy.hits == {fault: 1}
    with FaultProxy(upstream) as honest:
        assert (ask(honest, "GET", key)[0] == 200) is written


def test_faults_are_bounded_for_each_target(upstream: str):
    with FaultProxy(upstream, rate=1.0, kinds=("slow_down",), per_target=2) as proxy:
        assert [ask(proxy, "PUT", "proxy/bounded", b"x")[0] for _ in range(4)] == [503, 503, 200, 200]
        assert ask(proxy, "GET", "proxy/bounded")[0] == 503


def test_the_watcher_sees_each_request_before_and_after(upstream: str):
    events: list[Seen] = []
    with FaultProxy(upstream, watch=events.append) as proxy:
        ask(proxy, "PUT", "proxy/w1", b"x")
        ask(proxy, "PUT", "proxy/w2", b"x")
    assert [(seen.number, seen.forwarded) for seen in events] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]


def test_a_short_body_is_shorter_than_it_says(upstream: str):
    with FaultProxy(upstream) as honest:
        ask(honest, "PUT", "proxy/long", bytes(5000))
    with (
        FaultProxy(upstream, rate=1.0, kinds=("short_body",)) as proxy,
        pytest.raises(http.client.IncompleteRead),
    ):
        ask(proxy, "GET", "proxy/long")


def test_what_only_the_content_shows(upstream: str):
    data = bytes(range(256)) * 8
    with FaultProxy(upstream) as honest:
        for key in ("proxy/lies/a", "proxy/lies/b", "proxy/lies/c"):
            ask(honest, "PUT", key, data)
    seen: dict[str, bytes] = {}
    for fault, key in (
        ("flip", "proxy/lies/a"),
        ("cut_body", "proxy/lies/a"),
        ("cut_listing", "?list-type=2&prefix=proxy/lies/"),
        ("short_page", "?list-type=2&prefix=proxy/lies/"),
    ):
        with FaultProxy(upstream, rate=1.0, kinds=(fault,)) as proxy:
            status, seen[fault] = ask(proxy, "GET", key)
        assert status == 200
        assert proxy.hits == {fault: 1}
    assert sum((a ^ b).bit_count() for a, b in zip(data, seen["flip"], strict=True)) == 1
    assert seen["cut_body"] == data[: len(data) // 2]
    assert b"</ListBucketResult>" not in seen["cut_listing"]
    assert seen["short_page"].count(b"<Contents>") == 2
    assert b"<IsTruncated>true" in seen["short_page"]


def test_a_new_beginning_is_as_the_first(upstream: str):
    with FaultProxy(upstream, seed=3, rate=0.5, stall_seconds=0.1, kinds=("error_500", "slow_down")) as proxy:

        def answers() -> list[int]:
            return [ask(proxy, "PUT", f"proxy/begin{number}", b"x")[0] for number in range(20)]

        first = answers()
        proxy.begin(3, 0.5)
        assert answers() == first
        proxy.begin(4, 0.5)
        assert answers() != first


def test_a_delayed_duplicate_undoes_a_later_write_that_nothing_guards(upstream: str):
    with FaultProxy(upstream, rate=1.0, kinds=("duplicate",), per_target=1, duplicate_after=0.2) as proxy:
        ask(proxy, "PUT", "proxy/late", b"old")
        ask(proxy, "PUT", "proxy/late", b"new")
        proxy.quiesce()
    assert proxy.hits == {"duplicate": 1}
    with FaultProxy(upstream) as honest:
        assert ask(honest, "GET", "proxy/late")[1] == b"old"
