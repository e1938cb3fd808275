"""Images loaded by threads: what comes out is that of one after the other, in bounded memory, in order."""

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_dit.config import ImagesConfig
from ray_dit.core.media import PLAIN, DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding
from ray_dit.errors import Conflict, StoreFailure
from ray_dit.folders import loading
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.loading import Loader, Room
from ray_dit.folders.reading import load_images
from ray_dit.formats.registry import FORMATS
from ray_dit.formats.rows import Place, Source
from tests.support.input_formats import ReadAlone

COUNT = 24


@pytest.fixture
def plan(tmp_path: Path) -> ImagePlan:
    """Images of several kinds, some bad, one gone and one changed."""
    modes = ("RGB", "L", "P", "CMYK")
    for number in range(COUNT):
        path = tmp_path / f"class-{number % 2}" / f"{number:02d}.{'jpg' if number % 4 == 3 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        sink = io.BytesIO()
        image = Image.new("RGB", (9 + number, 12), (number, 2 * number, 200))
        image.convert(modes[number % 4]).save(sink, "JPEG" if number % 4 == 3 else "PNG")
        path.write_bytes(sink.getvalue()[: 60 if number % 7 == 5 else None])
    found = plan_images(ImagesConfig(uri=str(tmp_path), size=8))
    (tmp_path / "class-0/08.png").unlink()
    (tmp_path / "class-1/01.png").write_bytes(b"another")
    return found


@pytest.fixture
def loader() -> Iterator[Loader]:
    made = Loader(3, decode=unsteady)
    yield made
    made.close()


def unsteady(data: bytes, size: int | None = None, decoding: Decoding = PLAIN) -> DecodedImage:
    """Takes longer for some images than for others, so that threads overtake each other."""
    time.sleep(random.Random(data).uniform(0, 0.01))
    return decode_image(data, size, decoding)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(plan: ImagePlan, threads: int) -> None:
    rows = [*range(COUNT)][::-1]
    images, kept, bad = load_images(plan, rows)
    files = [(Path(plan.uri) / plan.keys[row]).read_bytes() for row in kept]
    converted = Counter(name for data in files for name in decode_image(data).conversions)
    assert {*converted} == {"cmyk", "grey", "palette"}
    loader = Loader(threads, decode=unsteady)
    for _ in range(2):
        loaded = loader.load(plan, rows)
        assert np.array_equal(loaded.images, images)
        assert np.array_equal(loaded.kept, kept)
        assert loaded.bad == bad
        assert loaded.conversions == converted
    loader.close()
    assert {"gone", "changed"} < {entry.code for entry in bad}


def test_no_rows_are_no_images(plan: ImagePlan, loader: Loader) -> None:
    assert loader.load(plan, []).images.shape == (0, 8, 8, 3)


def test_several_shards_at_once_are_each_their_own(plan: ImagePlan, loader: Loader) -> None:
    shards = [range(0, 8), range(8, 16), range(16, 24)]
    found: dict[int, np.ndarray] = {}

    def load(number: int) -> None:
        found[number] = loader.load(plan, shards[number]).images

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rows in enumerate(shards):
        assert np.array_equal(found[number], load_images(plan, rows)[0])


class Waiting(ReadAlone):
    """Reads through a test's own function."""

    def __init__(self, read: "object") -> None:
        self._read = read

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        return self._read(source.get(key), key)  # type: ignore[operator]


def of_format(monkeypatch: pytest.MonkeyPatch, plan: ImagePlan, read: object) -> ImagePlan:
    monkeypatch.setitem(FORMATS, "waiting", Waiting(read))
    return replace(plan, format="waiting", places={})


def good(plan: ImagePlan) -> list[int]:
    return load_images(plan, range(COUNT))[1].tolist()


def test_many_are_read_at_once_while_one_is_decoded(plan: ImagePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)

    def read(data: bytes, key: str) -> bytes:
        together.wait(20)  # broken, and raised, where fewer than eight are under way
        return data

    loader = Loader(1)
    assert len(loader.load(of_format(monkeypatch, plan, read), good(plan)[:16]).images) == 16
    loader.close()


def test_what_is_read_ahead_is_bounded(plan: ImagePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", 300)  # about four of these images
    under_way, most, lock = 0, 0, threading.Lock()

    def read(data: bytes, key: str) -> bytes:
        nonlocal under_way, most
        with lock:
            under_way += len(data)
            most = max(most, under_way)
        return data

    def decode(data: bytes, size: int | None = None, decoding: Decoding = PLAIN) -> DecodedImage:
        nonlocal under_way
        time.sleep(0.002)
        with lock:
            under_way -= len(data)
        return decode_image(data, size, decoding)

    loader = Loader(1, decode=decode)
    planned = of_format(monkeypatch, plan, read)
    largest = max(planned.sizes[good(plan)].tolist())  # type: ignore[index]
    loader.load(planned, good(plan))
    loader.close()
    assert 0 < most <= max(300, largest)


def test_one_larger_than_all_the_room_gets_it() -> None:
    room = Room(10)
    room.take(25)
    blocked = threading.Thread(target=room.take, args=(1,), daemon=True)
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    room.change(-25)
    blocked.join(10)
    assert not blocked.is_alive()


@pytest.mark.parametrize("error", [StoreFailure("no answer"), Conflict("not as planned")])
def test_an_error_of_storage_is_raised_and_the_next_load_works(
    plan: ImagePlan, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", 300)
    broken = True

    def read(data: bytes, key: str) -> bytes:
        if broken and key.endswith("14.png"):
            raise error
        return data

    loader, planned = Loader(2), of_format(monkeypatch, plan, read)
    for _ in range(3):
        with pytest.raises(type(error), match=str(error)):
            loader.load(planned, good(plan))
    broken = False
    assert len(loader.load(planned, good(plan)).images) == len(good(plan))
    loader.close()
