"""Every kind of store keeps the same contract; what is special to a folder and to S3 below."""

import errno
import hashlib
import io
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    InvalidRegionError,
    NoCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

import ray_dit.storage.s3 as s3
from ray_dit.errors import Conflict, Damaged, NotFound, StoreFailure, UserError
from ray_dit.storage.local import TEMP, LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.other import FsspecStore
from ray_dit.storage.retry import Incomplete, Patience, attempts, kind_of, said
from ray_dit.storage.store import CHUNK, FileBytes, Store, ahead, sha256_of
from tests.support import seaweed

QUICK = Patience(deadline=2.0, attempt=0.5, bytes_per_second=20e6, first_pause=0.02, longest_pause=0.1)


# The contract


def test_what_is_put_is_read_back(store: Store):
    data = bytes(range(256)) * 40
    assert store.put("a/b.bin", data) is True
    assert store.get("a/b.bin") == data
    assert store.get_range("a/b.bin", 250, 10) == data[250:260]
    assert store.get_range("a/b.bin", len(data) - 3, 10) == data[-3:]
    assert store.get_range("a/b.bin", len(data) + 3, 10) == b""
    info = store.head("a/b.bin")
    assert info is not None
    assert (info.key, info.size) == ("a/b.bin", len(data))
    assert info.etag
    assert store.sha256("a/b.bin") == hashlib.sha256(data).hexdigest()
    with store.open_file("a/b.bin") as file:
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]


def test_what_is_read_says_which_version_it_is_of(store: Store):
    data = bytes(range(256))
    store.put("a/b.bin", data)
    there = store.head("a/b.bin")
    listed = {info.key: info for info in store.list()}["a/b.bin"]
    assert there is not None
    for span, expected in ((None, data), ((250, 3), data[250:253]), ((250, 99), data[250:]), ((999, 1), b"")):
        found, info = store.get_version("a/b.bin", span)
        assert found == expected
        assert (
            (info.key, info.size, info.etag)
            == ("a/b.bin", 256, there.etag)
            == (listed.key, listed.size, listed.etag)
        )
    store.replace("a/b.bin", b"other", if_match=there.etag or "")
    found, info = store.get_version("a/b.bin")
    assert (found, info.size) == (b"other", 5)
    assert info.etag != there.etag
    for span in (None, (0, 1)):
        with pytest.raises(NotFound, match="nix"):
            store.get_version("nix", span)


def test_an_empty_object_is_an_object(store: Store):
    assert store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").size == 0  # pyright: ignore[reportOptionalMemberAccess]
    assert [info.key for info in store.list()] == ["empty"]


def test_what_is_absent_is_said_so(store: Store):
    assert store.head("nix") is None
    assert list(store.list()) == []
    assert list(store.list("nix/")) == []
    store.delete("nix")
    for read in (store.get, store.sha256, store.open_file, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(NotFound, match="nix"):
            read("nix")


def test_put_never_overwrites(store: Store):
    assert store.put("key", b"first") is True
    assert store.put("key", b"first") is False
    with pytest.raises(Conflict, match="key already holds other bytes"):
        store.put("key", b"other")
    assert store.get("key") == b"first"


def test_a_file_is_put_as_its_bytes_are(store: Store, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    with one.open("rb") as file, two.open("rb") as other:
        file.seek(1)  # all of it counts, wherever it is read
        assert store.put_file("a", file) is True
        assert store.put_file("a", file) is False
        with pytest.raises(Conflict):
            store.put_file("a", other)
    assert store.put("a", b"one") is False
    assert store.get("a") == b"one"


def test_a_file_larger_than_a_chunk_is_stored_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_dit.storage.store.LARGE", CHUNK)
    data = os.urandom(CHUNK + 5)
    path = tmp_path / "lines"
    path.write_bytes(data)
    store = LocalStore(str(tmp_path / "store"))
    with path.open("rb") as file:
        assert store.put_file("a", file)
        assert sha256_of(FileBytes(file)) == hashlib.sha256(data).hexdigest()
    assert store.get("a") == data


def test_replace_needs_the_version_that_is_there(store: Store):
    store.put("key", b"one")
    first = store.head("key")
    assert first is not None
    assert first.etag
    store.replace("key", b"two", if_match=first.etag)
    assert store.get("key") == b"two"
    with pytest.raises(Conflict, match="changed by another writer"):
        store.replace("key", b"three", if_match=first.etag)
    with pytest.raises(Conflict):
        store.replace("absent", b"three", if_match=first.etag)
    assert store.get("key") == b"two"
    assert store.head("absent") is None


def test_a_deleted_key_is_free_again(store: Store):
    store.put("a/key", b"one")
    store.delete("a/key")
    assert store.head("a/key") is None
    assert store.put("a/key", b"two") is True


def test_listing_has_every_key_once_by_prefix(store: Store):
    keys = [f"data/{number:02d}" for number in range(12)] + ["data-x", "markers/0"]
    for key in keys:
        store.put(key, b"x")
    assert sorted(info.key for info in store.list()) == sorted(keys)
    assert [info.key for info in store.list("data/")] == keys[:12]
    assert [info.key for info in store.list("data/1")] == ["data/10", "data/11"]
    assert [(info.key, info.size) for info in store.child("markers").list()] == [("0", 1)]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b"])
def test_a_key_cannot_leave_its_store(store: Store, key: str):
    with pytest.raises(ValueError, match="not an object key"):
        store.put(key, b"x")


def test_a_store_travels_to_other_processes(store: Store):
    store.put("a/b", b"x")
    there = pickle.loads(pickle.dumps(store.child("a")))
    assert there.get("b") == b"x"
    assert there == store.child("a")


def assert_one_winner(store: Store, writers: int = 16) -> None:
    """Of writers of one key with different bytes, exactly one writes and its bytes stay.

    All others are refused.
    """
    start = Barrier(writers)

    def write(number: int) -> bool:
        start.wait()
        try:
            return store.put("race", bytes([number]) * 1000)
        except Conflict:
            return False

    with ThreadPoolExecutor(writers) as pool:
        won = [number for number, wrote in enumerate(pool.map(write, range(writers))) if wrote]
    assert len(won) == 1
    assert store.get("race") == bytes(won) * 1000


@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.s3)], indirect=True)
def test_of_many_writers_one_wins(store: Store):
    for round_ in range(3 if store.uri.startswith("s3:") else 20):  # SeaweedFS lets losers wait up to 5 s
        assert_one_winner(store.child(str(round_)))


class OverwritingStore(LocalStore):
    """The mistake the contract is there to find: a put that overwrites."""

    def put(self, key: str, data: bytes) -> bool:
        path = Path(self.uri, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True


class LookingStore(LocalStore):
    """The other mistake: looking first, then writing."""

    def put(self, key: str, data: bytes) -> bool:
        if self.head(key) is not None:
            return self._same_or_conflict(key, data)
        time.sleep(0.01)
        return OverwritingStore(self.uri).put(key, data)


@pytest.mark.parametrize("mistaken", [OverwritingStore, LookingStore])
def test_the_race_finds_a_store_that_overwrites(tmp_path: Path, mistaken: type[LocalStore]):
    with pytest.raises(AssertionError):
        assert_one_winner(mistaken(str(tmp_path)))


def test_work_ahead_keeps_order_and_is_bounded():
    taken = 0

    def numbers():
        nonlocal taken
        while taken < 1000:
            yield taken
            taken += 1

    results = ahead(lambda number: number * 2, numbers(), threads=4)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert taken < 20
    assert list(results) == [2 * number for number in range(3, 1000)]


# A folder


def test_uris_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    same = {
        open_store("out"),
        open_store(str(tmp_path / "out")),
        open_store(f"file://{tmp_path}/out/"),
        open_store("~/out"),
    }
    assert same == {LocalStore(str(tmp_path / "out"))}
    assert open_store("out").local_path("a/b") == tmp_path / "out/a/b"
    assert isinstance(open_store("memory://x"), FsspecStore)
    assert open_store("memory://x").local_path("a") is None


def test_temp_files_are_never_listed_and_cleaned_when_old(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("data/0", b"x")
    left = tmp_path / "data" / f"{TEMP}abc"
    left.write_bytes(b"half")
    assert [info.key for info in store.list()] == ["data/0"]
    assert list(store.clean(3600)) == []
    assert left.exists()
    assert list(store.clean(-1)) == [str(left)]
    assert not left.exists()
    assert store.get("data/0") == b"x"


def test_without_hard_links_content_stays_whole_and_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    store = open_store(str(tmp_path))
    assert store.put("key", b"one") is True
    assert store.put("key", b"one") is False
    with pytest.raises(Conflict):
        store.put("key", b"two")
    assert_one_winner(store)
    assert sorted(os.listdir(tmp_path)) == ["key", "race"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EACCES, "is not permitted to this user"),
        (errno.EROFS, "is not permitted to this user"),
        (errno.ENOSPC, "does not fit on its disk"),
        (errno.EIO, "could not be read or written"),
    ],
)
def test_what_a_file_system_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=sentence):
        open_store(str(tmp_path)).put("a", b"x")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_a_sentence(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("a", b"x")
    with pytest.raises(UserError, match="/a cannot be made"):
        store.put("a/b", b"x")
    with pytest.raises(Conflict, match="a folder has that name"):
        store.child("c").put("d", b"x") and store.put("c", b"x")
    assert store.head("c") is None
    assert store.head("a/b") is None


# S3


def client_error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error("PreconditionFailed", 412), "exists"),
        (client_error("412", 412), "exists"),
        (client_error("InvalidState", 412), "exists"),
        (client_error("ConditionalRequestConflict", 409), "retry"),
        (client_error("SlowDown", 503), "retry"),
        (client_error("Unheard", 599), "retry"),
        (client_error("NoSuchKey", 404), "absent"),
        (client_error("NoSuchBucket", 404), "user"),
        (client_error("AccessDenied", 403), "user"),
        (client_error("MalformedXML", 400), "broken"),
        (client_error("NotImplemented", 501), "broken"),
        (client_error("ExpiredToken", 400), "expired"),
        (TokenRetrievalError(provider="sso", error_msg="log in"), "expired"),
        (NoCredentialsError(), "user"),
        (ProfileNotFound(profile="nobody"), "user"),
        (InvalidRegionError(region_name="eu west"), "user"),
        (EndpointConnectionError(endpoint_url="http://x"), "retry"),
        (TimeoutError(), "retry"),
        (Incomplete("no ETag"), "retry"),
        (KeyError("ours"), "broken"),
    ],
)
def test_errors_are_of_four_kinds_by_their_code(error: Exception, kind: str):
    assert kind_of(error) == kind


def test_user_errors_say_what_to_change():
    assert "AWS_SECRET_ACCESS_KEY" in str(said("s3://b/k", client_error("SignatureDoesNotMatch", 403)))
    assert "AWS_PROFILE" in str(said("s3://b/k", NoCredentialsError()))
    assert "'nobody'" in str(said("s3://b/k", ProfileNotFound(profile="nobody")))
    assert "log in again" in str(said("s3://b/k", TokenRetrievalError(provider="sso", error_msg="late")))
    assert "AWS_DEFAULT_REGION" in str(said("s3://b/k", client_error("AuthorizationHeaderMalformed", 400)))
    assert type(said("s3://b/k", client_error("MalformedXML", 400))) is StoreFailure


@pytest.mark.s3
def test_a_missing_bucket_is_a_sentence(s3_environment: str):
    with pytest.raises(UserError, match="a bucket that does not exist"):
        list(open_store("s3://nobody-made-this/x").list())


@pytest.mark.s3
def test_the_environment_decides_where_s3_is(s3_environment: str, monkeypatch: pytest.MonkeyPatch):
    store = s3.S3Store(seaweed.fresh_uri(), patience=QUICK)
    store.put("a", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(StoreFailure, match="AWS_ENDPOINT_URL"):
        store.get("a")
    assert time.monotonic() - begin < QUICK.deadline + 1 + CHUNK / QUICK.bytes_per_second
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_environment)
    assert store.get("a") == b"x"


@pytest.mark.s3
def test_large_objects_go_up_in_parts_under_the_same_contract(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(s3, "ONE_PUT", 6 << 20)
    monkeypatch.setattr(s3, "PART", 5 << 20)
    monkeypatch.setattr(s3, "FILE_PART", 5 << 20)
    monkeypatch.setattr(s3, "CHUNK", 4 << 20)
    store = s3.S3Store(seaweed.fresh_uri())
    data = os.urandom(12 << 20)
    assert store.put("big", data) is True
    assert store.put("big", data) is False
    with pytest.raises(Conflict):
        store.put("big", data[1:])
    assert store.get("big") == data
    info = store.head("big")
    assert info is not None
    assert info.sha256 == store.sha256("big")
    store.replace("big", data[1:], if_match=info.etag or "")
    assert store.get("big") == data[1:]
    assert list(store.clean(-1)) == []
    monkeypatch.setattr("ray_dit.storage.store.LARGE", 5 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert store.put_file("file", file) is True
        assert store.put_file("file", file) is False
    assert store.get("file") == data
    info = store.head("file")
    assert info is not None
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.etag
    assert info.etag.rstrip('"').endswith("-3")  # a file larger than a part goes up in parts


@pytest.mark.s3
def test_unfinished_uploads_are_cleaned_when_old(s3_environment: str):
    store = s3.S3Store(seaweed.fresh_uri())
    store._ask("create_multipart_upload", "big", Key=store._key("big"))  # pyright: ignore[reportPrivateUsage]
    assert list(store.clean(3600)) == []
    assert len(list(store.clean(-1))) == 1
    assert list(store.clean(-1)) == []


@pytest.mark.s3
def test_damage_in_storage_is_noticed_when_read(s3_environment: str):
    store = s3.S3Store(seaweed.fresh_uri())
    wrong = {"sha256": "0" * 64}
    store._ask("put_object", "a", Key=store._key("a"), Body=b"x", Metadata=wrong)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Damaged, match="damaged"):
        store.get("a")


def test_attempts_give_up_at_the_deadline():
    import asyncio

    async def stalls() -> None:
        await asyncio.sleep(60)

    begin = time.monotonic()
    with pytest.raises(StoreFailure, match="was tried .* times in"):
        asyncio.run(attempts(stalls, where="s3://b/k", patience=Patience(deadline=0.5, attempt=0.1)))
    assert 0.1 < time.monotonic() - begin < 1.0
