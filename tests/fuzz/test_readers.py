"""Damaged and hostile bytes: our own errors only, in bounded time and memory, whatever is read."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.bytes_of import damaged, odd_json
from tests.fuzz.readers import READERS
from tests.fuzz.sandbox import Sandbox, Verdict


@pytest.fixture(scope="module", params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sandbox(name: str) -> Iterator[Sandbox]:
    reader = READERS[name]
    reader.good()  # once, before the fork: the process has it ready
    with Sandbox(reader.read, reader.allowed) as made:
        yield made


def assert_ours(name: str, verdict: Verdict) -> None:
    assert verdict.kind in ("read", "refused"), f"{name}: {verdict.kind}: {verdict.text}"
    assert verdict.megabytes < READERS[name].megabytes, f"{name} took {verdict.megabytes:.0f} MB"
    assert len(verdict.text) < 2000, f"{name}: an error of {len(verdict.text)} letters"


def test_good_bytes_are_read(name: str, sandbox: Sandbox) -> None:
    for data in READERS[name].good():
        verdict = sandbox.read(data)
        assert_ours(name, verdict)
        assert verdict.kind == "read" or not READERS[name].good_is_read, verdict.text


def test_damaged_bytes_are_read_or_refused(name: str, sandbox: Sandbox) -> None:
    reader = READERS[name]

    @given((odd_json if reader.is_json else damaged)(reader.good()))
    def check(data: bytes) -> None:
        assert_ours(name, sandbox.read(data))

    check()


def test_any_bytes_are_read_or_refused(name: str, sandbox: Sandbox) -> None:
    @given(
        st.one_of(
            st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
        )
    )
    def check(data: bytes) -> None:
        assert_ours(name, sandbox.read(data))

    check()


@pytest.mark.parametrize(
    "data", [b"[" * 200_000, b'{"a":' * 100_000, b"[" * 2000 + b"]" * 2000, b"9" * 10_000]
)
def test_nesting_without_end_is_refused(name: str, sandbox: Sandbox, data: bytes) -> None:
    assert_ours(name, sandbox.read(data))
