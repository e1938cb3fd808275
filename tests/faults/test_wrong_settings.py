"""A wrong setting is said in a sentence within seconds, whatever it is."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_dit import cli
from tests.faults import wrong_settings
from tests.faults.wrong_settings import SECONDS, Places

pytestmark = pytest.mark.s3

NAMES = [case.what for case in wrong_settings.cases(Places("s3", "silent", "web", "closed"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    wrong_settings.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def places(folder: Path) -> Iterator[Places]:
    with wrong_settings.started_places(folder) as places:
        yield places


@pytest.mark.parametrize("name", NAMES)
def test_it_is_said_within_seconds(
    name: str,
    folder: Path,
    places: Places,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (case,) = (case for case in wrong_settings.cases(places) if case.what == name)
    wanted = wrong_settings.environment_of(case, places, folder)
    for variable in {*os.environ} - {*wanted}:
        monkeypatch.delenv(variable)
    for variable, value in wanted.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(folder)
    begun = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        cli.main(case.command)
    assert time.monotonic() - begun < SECONDS
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (1, 1), said
    assert re.search(case.said, said), said
