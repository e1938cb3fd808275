"""The client of S3: first contact, refusals without a reason, and credentials that expire."""

import asyncio
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec.asyn
import pytest
from botocore.exceptions import ClientError

from ray_dit.errors import CredentialsExpired, StoreFailure, UserError
from ray_dit.storage.open import is_inside, open_output, open_store
from ray_dit.storage.retry import Patience, with_fresh_credentials
from ray_dit.storage.s3 import S3Store
from ray_dit.storage.s3_client import shared_pace

QUICK = Patience(deadline=60.0, contact=60.0, renewal=30.0, renewal_pause=0.05, first_pause=0.02)


@dataclass
class Service:
    """As much of S3 as it takes to read an object, for whoever has a key that is valid."""

    valid: set[str]
    refusal: str = "ExpiredToken"
    asked: list[tuple[str, str]] = field(default_factory=lambda: [])
    """Method and key of every request."""

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
                service.asked.append((self.command, key))
                status, body = 200, b"content"
                if key not in service.valid:
                    status, body = 403, f"<Error><Code>{service.refusal}</Code></Error>".encode()
                elif "list-type" in self.path:
                    body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
                self.send_response(status)
                self.send_header("ETag", '"1"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service, in the environment, with a file of credentials that names the valid key ``old``."""
    service = Service({"old"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), service.handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_key(tmp_path, "old")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield service
    server.shutdown()
    server.server_close()


def write_key(folder: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id={key}\naws_secret_access_key=x\naws_session_token=x\n"
    (folder / "new").write_text(text)
    (folder / "new").replace(folder / "credentials")


def test_fresh_credentials_are_waited_for_and_taken(service: Service, tmp_path: Path) -> None:
    store = S3Store("s3://bucket", patience=QUICK)
    assert store.get("a") == b"content"
    service.valid = {"new"}
    timer = threading.Timer(0.5, write_key, (tmp_path, "new"))
    timer.start()
    assert store.get("a") == b"content"
    assert store.head("a") is not None, "a HEAD, whose refusal says no reason"
    service.valid = {"newer"}
    write_key(tmp_path, "newer")
    assert store.head("a") is not None
    assert {key for _, key in service.asked} == {"old", "new", "newer"}


def test_when_none_come_it_is_said_what_to_do(service: Service) -> None:
    store = S3Store("s3://bucket", patience=Patience(renewal=0.3, renewal_pause=0.05))
    store.get("a")
    service.valid = set()
    with pytest.raises(CredentialsExpired, match="no fresh ones came in 0 s: renew them and run the same"):
        store.head("a")


def test_a_public_bucket_is_asked_without_credentials_and_others_with_them(service: Service) -> None:
    service.valid = {"", "old"}
    assert S3Store("s3://anonymous@public/folder", patience=QUICK).get("a") == b"content"
    assert {key for _, key in service.asked} == {""}, "nothing is signed"
    service.asked.clear()
    assert S3Store("s3://bucket", patience=QUICK).get("a") == b"content"
    assert {key for _, key in service.asked} == {"old"}


def test_all_stores_of_a_process_slow_down_together(service: Service) -> None:
    async def rate() -> float | None:
        return shared_pace().rate

    def asked() -> float | None:
        return asyncio.run_coroutine_threadsafe(rate(), fsspec.asyn.get_loop()).result()

    S3Store("s3://bucket", patience=QUICK).get("a")
    service.valid, service.refusal = set(), "SlowDown"
    patience = Patience(deadline=2.0, first_pause=0.01, longest_pause=0.02, bytes_per_second=1e9)
    assert asked() is None
    with pytest.raises(StoreFailure, match="SlowDown"):
        S3Store("s3://bucket", patience=patience).get("a")
    assert asked() is not None
    service.valid = {"old"}
    assert S3Store("s3://another", patience=QUICK).get("a") == b"content"


def test_a_bucket_that_is_not_public_says_so(service: Service) -> None:
    service.refusal = "AccessDenied"
    store = S3Store("s3://anonymous@bucket/folder", patience=QUICK)
    for ask in (store.get, store.head):
        with pytest.raises(
            UserError, match="anonymous@bucket/folder/a is not open to everybody: give its URI"
        ):
            ask("a")


def test_what_nobody_may_do_says_nothing_of_credentials(service: Service) -> None:
    """Anonymous requests that succeed do not make others wait for credentials that never worked."""
    service.valid = {""}
    S3Store("s3://anonymous@public", patience=QUICK).get("a")
    with pytest.raises(UserError, match="expired .ExpiredToken.: get new ones") as raised:
        S3Store("s3://bucket", patience=QUICK).head("a")
    assert not isinstance(raised.value, CredentialsExpired)


def test_nothing_is_written_as_nobody() -> None:
    with pytest.raises(
        UserError, match="can be read but not written, .* give s3://bucket/... and credentials"
    ):
        open_output("s3://anonymous@bucket/out")
    with pytest.raises(UserError, match="names no bucket"):
        open_store("s3://anonymous@/x")
    assert is_inside("s3://bucket/a/out", "s3://anonymous@bucket/a")


def test_credentials_that_never_worked_are_not_waited_for(service: Service) -> None:
    service.valid = set()
    begun = time.monotonic()
    with pytest.raises(UserError, match="expired .ExpiredToken.: get new ones") as raised:
        S3Store("s3://bucket", patience=QUICK).head("a")
    assert not isinstance(raised.value, CredentialsExpired)
    assert time.monotonic() - begun < QUICK.renewal


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ("InvalidAccessKeyId", "does not know this access key"),
        ("SignatureDoesNotMatch", "refuses the secret key"),
        ("AccessDenied", "is not permitted to these credentials"),
        ("RequestTimeTooSkewed", "clock is wrong"),
    ],
)
def test_a_refusal_without_a_reason_is_asked_for_it_once(
    service: Service, refusal: str, sentence: str
) -> None:
    service.valid, service.refusal = set(), refusal
    store = S3Store("s3://bucket", patience=QUICK)
    with pytest.raises(UserError, match=sentence):
        store.head("a")
    contact, *asked = [method for method, _ in service.asked]
    assert (contact, asked) == ("GET", ["HEAD", "GET"])


def test_only_the_first_contact_is_short(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has worked, here or where a store comes from, is waited for until the deadline."""
    patience = Patience(deadline=2.0, contact=0.3, first_pause=0.02, longest_pause=0.1)
    store = S3Store("s3://bucket", patience=patience)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        StoreFailure, match="no S3 service answers at http://127.0.0.1:9 .*: check AWS_ENDPOINT"
    ):
        store.head("a")
    worker = (
        "import pickle, sys\n"
        "from ray_dit.storage.proven import trust_settings\n"
        "trust_settings()\n"
        "pickle.loads(sys.stdin.buffer.read()).head('a')"
    )
    ran = subprocess.run([sys.executable, "-c", worker], input=pickle.dumps(store), capture_output=True)
    assert re.search(r"StoreFailure: .* was tried \d+ times in 2 s", ran.stderr.decode())


def test_other_errors_than_expired_ones_do_not_wait() -> None:
    async def refused() -> None:
        raise ClientError(
            {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}},  # type: ignore[typeddict-item]
            "GetObject",
        )

    with pytest.raises(ClientError):
        asyncio.run(with_fresh_credentials(refused, pytest.fail, where="s3://b", patience=QUICK))  # type: ignore[arg-type]
