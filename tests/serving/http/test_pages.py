"""The page's files are in the package and are served as they are."""

from importlib import resources

import pytest

from ray_dit.serving.http.pages import PAGE_FILES
from tests.serving.http.client import ask


def _file(name: str) -> bytes:
    return (resources.files("ray_dit.serving.http") / "page" / name).read_bytes()


@pytest.mark.parametrize("path", PAGE_FILES)
def test_each_file_of_the_page_is_served_with_its_type(path: str):
    name, media_type = PAGE_FILES[path]
    answer = ask(method="GET", path=path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    before, mark, after = _file(name).partition(b"<!-- samplers -->")
    assert answer.content.startswith(before)
    assert answer.content.endswith(after)
    assert mark or answer.content == before


def test_no_file_of_the_page_is_left_out():
    there = {file.name for file in (resources.files("ray_dit.serving.http") / "page").iterdir()}
    assert there == {name for name, _ in PAGE_FILES.values()}
