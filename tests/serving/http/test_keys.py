"""Keys files and hashes."""

import asyncio
import logging
import os

import pytest

from ray_dit.errors import UserError
from ray_dit.serving.http.keys import CHECK_SECONDS, VARIABLE, Keys, new_key
from tests.serving.http.client import app_client


def test_hashes_are_no_keys_and_files_are_checked(tmp_path, monkeypatch):
    key, line = new_key("anna")
    monkeypatch.setenv(VARIABLE, f"{line},{new_key('bert')[1]}")
    keys = Keys.load(None)
    assert len(keys) == 2
    assert keys.owner(f"Bearer {key}") == "anna"
    assert keys.owner(f"Bearer {line.split(':')[1]}") is None
    monkeypatch.delenv(VARIABLE)
    for content in (key, f"{line}\n{line}", "anna:123", ""):
        (tmp_path / "keys").write_text(content)
        with pytest.raises(UserError) as caught:
            Keys.load(str(tmp_path / "keys"))
        assert key not in str(caught.value)
    with pytest.raises(UserError, match="can't be read"):
        Keys.load(str(tmp_path / "other"))


class Following:
    """Keys of a file that follow it, on a clock of their own."""

    def __init__(self, path, *lines: str, variable: tuple[str, ...] = ()) -> None:
        self.path, self.now, self.reads = path, 0.0, 0
        self.write(*lines)
        self.keys = Keys(variable, str(path), clock=lambda: self.now)

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(lines))

    def owner(self, key: str, after: float = CHECK_SECONDS) -> str | None:
        self.now += after
        return self.keys.owner(f"Bearer {key}")


def test_keys_follow_their_file(tmp_path):
    (anna, anna_line), (bert, bert_line), (carl, carl_line) = (new_key(n) for n in ("anna", "bert", "carl"))
    following = Following(tmp_path / "keys", anna_line, bert_line, variable=(carl_line,))
    assert following.owner(bert) == "bert"
    following.write(anna_line)
    assert following.owner(bert, after=CHECK_SECONDS / 2) == "bert"  # not looked at again so soon
    assert following.owner(bert) is None
    following.write(anna_line, bert_line.replace("bert", "dora"))
    assert [following.owner(key) for key in (anna, bert, carl)] == ["anna", "dora", "carl"]
    other = tmp_path / "other"
    other.write_text(f"{bert_line}\n{anna_line.replace('anna', 'emil')}")
    other.rename(following.path)
    assert [following.owner(key) for key in (anna, bert)] == ["emil", "bert"]


def test_a_key_changed_for_one_of_the_same_length_and_time_is_seen(tmp_path):
    (anna, line), (other, _) = new_key("anna"), new_key("anna")
    following = Following(tmp_path / "keys", line)
    times = os.stat(following.path)
    following.write(new_key("anna")[1])
    os.utime(following.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert following.owner(anna) is None
    assert following.owner(other) is None


@pytest.mark.parametrize("bad", ["anna", "{line}\n{line}", "{line}\nbert:123", None, b"\xff\xfe"])
def test_a_bad_file_keeps_the_keys_and_is_logged_once(tmp_path, caplog, bad):
    anna, line = new_key("anna")
    following = Following(tmp_path / "keys", line)
    if bad is None:
        following.path.unlink()
    elif isinstance(bad, bytes):
        following.path.write_bytes(bad)
    else:
        following.write(bad.format(line=line))
    with caplog.at_level(logging.ERROR, "ray_dit.serving.http.keys"):
        assert [following.owner(anna) for _ in range(5)] == ["anna"] * 5
    assert len(caplog.records) == 1
    assert "stay in force" in caplog.text
    assert line.split(":")[1] not in caplog.text
    following.write("")
    assert following.owner(anna) is None


def test_when_the_last_key_is_gone_nobody_gets_in(tmp_path):
    anna, line = new_key("anna")
    following = Following(tmp_path / "keys", line)
    following.write("# nobody")
    assert following.owner(anna) is None
    assert following.keys.wanted
    following.write(line)
    assert following.owner(anna) == "anna"


def test_a_key_taken_away_is_refused_by_the_server_that_runs(keyed):
    config, key = keyed

    async def statuses() -> list[int]:
        async with app_client(config=config) as client:
            headers = {"Authorization": f"Bearer {key}"}
            first = await client.get("/v1/models", headers=headers)
            with open(config.keys_file, "w") as file:
                file.write(new_key("bert")[1])
            await asyncio.sleep(1.1 * CHECK_SECONDS)
            second = await client.get("/v1/models", headers=headers)
            return [first.status_code, second.status_code]

    assert asyncio.run(statuses()) == [200, 401]
