"""An API with a key."""

from pathlib import Path

import pytest

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.http.keys import new_key


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[ApiConfig, str]:
    key, line = new_key("anna")
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{line}\n{new_key('bert')[1]}\n")
    return ApiConfig(keys_file=str(path)), key
