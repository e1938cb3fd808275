"""Keys files and hashes."""

import pytest

from ray_dit.errors import UserError
from ray_dit.serving.http.keys import VARIABLE, Keys, new_key


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
