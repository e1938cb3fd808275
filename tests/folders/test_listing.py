"""Listing in pieces: one plan whoever lists them, and what a killed planning found is not listed again."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_dit.config import ImagesConfig
from ray_dit.errors import StoreFailure, UserError
from ray_dit.folders.images import plan_images
from ray_dit.folders.listing import (
    FEW,
    KEPT,
    TRIES,
    Listed,
    ListedBy,
    ListPiece,
    Numbered,
    forget_rows,
    in_threads,
)
from ray_dit.formats.image_format import Piece
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.layouts import tar_bytes
from tests.support.tiny import SIZE, flip_bit

COUNT = FEW + 4


class Killed(BaseException):
    """What ends a planning in midst."""


def tar(folder: Path, number: int, *images: str) -> None:
    files = {name: name.encode() for name in images or (f"{number}.png", f"{number}b.png")}
    path = folder / f"n{number:02d}.tar"
    path.unlink(missing_ok=True)
    path.write_bytes(tar_bytes(files))


@pytest.fixture
def images(tmp_path: Path) -> ImagesConfig:
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        tar(tmp_path / "images", number)
    return ImagesConfig(uri=str(tmp_path / "images"), size=SIZE)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "latents"))


def kept(output: Store) -> list[str]:
    return sorted(info.key for info in output.list(KEPT))


def one_by_one(work: ListPiece, items: Sequence[Numbered]) -> Iterator[Listed]:
    return map(work, items)


def backwards(work: ListPiece, items: Sequence[Numbered]) -> Iterator[Listed]:
    return map(work, reversed(items))


def killed_after(count: int) -> Callable[[ListPiece, Sequence[Numbered]], Iterator[Listed]]:
    def over(work: ListPiece, items: Sequence[Numbered]) -> Iterator[Listed]:
        yield from map(work, items[:count])
        raise Killed

    return over


def make_unreadable(path: Path) -> None:
    """Whoever lists it again fails; storage says that it is what it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(2 * 512)  # after the first entry
        file.write(b"x" * (before.st_size - 2 * 512))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("over", [in_threads, one_by_one, backwards])
def test_the_plan_is_the_same_whoever_lists_the_pieces(
    over: Callable[[ListPiece, Sequence[Numbered]], Iterator[Listed]], images: ImagesConfig, output: Store
) -> None:
    wanted = plan_images(images)
    assert wanted.classes == tuple(f"n{number:02d}" for number in range(COUNT))
    assert plan_images(images, ListedBy(over)).to_bytes() == wanted.to_bytes()
    assert plan_images(images, ListedBy(over, output)).to_bytes() == wanted.to_bytes()
    assert len(kept(output)) == COUNT
    forget_rows(output)
    assert kept(output) == []


def test_a_planning_that_was_killed_lists_only_the_rest(images: ImagesConfig, output: Store) -> None:
    wanted = plan_images(images)
    with pytest.raises(Killed):
        plan_images(images, ListedBy(killed_after(5), output))
    assert len(kept(output)) == 5
    for number in range(1, 5):  # the first tells the format
        make_unreadable(Path(images.uri, f"n{number:02d}.tar"))
    with pytest.raises(UserError, match=r"n01.tar is no tar that can be read"):
        plan_images(images, ListedBy(in_threads))
    assert plan_images(images, ListedBy(in_threads, output)).to_bytes() == wanted.to_bytes()


def test_a_piece_that_changed_in_between_is_listed_anew(images: ImagesConfig, output: Store) -> None:
    with pytest.raises(Killed):
        plan_images(images, ListedBy(killed_after(5), output))
    tar(Path(images.uri), 3, "new.png", "6.png")
    found = plan_images(images, ListedBy(in_threads, output))
    assert "n03/new.png" in found.keys.tolist()
    assert found.to_bytes() == plan_images(images).to_bytes()
    tar(Path(images.uri), 4, "4.png", "4c.png")  # of the same size
    found = plan_images(images, ListedBy(in_threads, output))
    assert found.to_bytes() == plan_images(images).to_bytes()


def test_rows_that_were_damaged_where_they_are_kept_are_listed_anew(
    images: ImagesConfig, output: Store
) -> None:
    wanted = plan_images(images, ListedBy(in_threads, output)).to_bytes()
    before = {key: output.get(key) for key in kept(output)}
    for number, key in enumerate(before):
        if number % 2:
            flip_bit(Path(output.uri, key))
        else:
            Path(output.uri, key).write_bytes(b"")
    assert plan_images(images, ListedBy(in_threads, output)).to_bytes() == wanted
    assert {key: output.get(key) for key in kept(output)} == before


def test_few_pieces_are_listed_here_and_not_kept(images: ImagesConfig, output: Store) -> None:
    for number in range(FEW, COUNT):
        Path(images.uri, f"n{number:02d}.tar").unlink()

    def refuse(work: ListPiece, items: Sequence[Numbered]) -> Iterator[Listed]:
        raise AssertionError

    assert plan_images(images, ListedBy(refuse, output)).count == 2 * FEW
    assert kept(output) == []


def test_one_tar_of_tars_is_listed_by_its_inner_tars(images: ImagesConfig, output: Store) -> None:
    inner = {path.name: path.read_bytes() for path in Path(images.uri).iterdir()}
    outer = Path(images.uri).parent / "outer/all.tar"
    outer.parent.mkdir()
    outer.write_bytes(tar_bytes(inner))
    config = images.model_copy(update={"uri": str(outer)})
    found = plan_images(config, ListedBy(backwards, output))
    assert len(kept(output)) == COUNT
    assert found.keys == plan_images(images).keys
    assert found.to_bytes() == plan_images(config).to_bytes()


@dataclass(frozen=True)
class Failing(ListPiece):
    """Storage that fails some times."""

    failures: list[int]

    def _once(self, piece: object) -> bytes:
        self.failures[0] -= 1
        if self.failures[0] >= 0:
            raise StoreFailure("storage stays unreachable")
        return b"rows"


def test_a_piece_is_tried_again_where_storage_fails(images: ImagesConfig) -> None:
    item = (7, Piece("a.tar"))
    assert Failing(images.uri, "tars", None, [TRIES - 1])(item) == (7, b"rows")
    with pytest.raises(StoreFailure, match="stays unreachable"):
        Failing(images.uri, "tars", None, [TRIES])(item)
