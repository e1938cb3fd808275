"""Images in a process of their own: the same pixels, and what ends that process ends nothing else."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ray_dit.core.media import PLAIN, decode_image
from ray_dit.core.to_rgb import Decoding, UnreadableImage
from ray_dit.folders.careful import CRASH, ChildDecoder, SureDecoder
from ray_dit.folders.quarantine import CODES
from tests.support.deadly import ABORT, CHILD, EXIT, FILL, HANG, KILL, PRINT, RAISE, SIGN, deadly

SIZE = 8


def image(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(sink, kind)
    return sink.getvalue()


@pytest.fixture(scope="module")
def child() -> Iterator[ChildDecoder]:
    made = ChildDecoder(CHILD)
    yield made
    made.close()


def test_a_child_gives_what_decoding_here_gives() -> None:
    child = ChildDecoder()
    clear = io.BytesIO()
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(clear, "PNG")
    for data in (image(), image("L"), image("CMYK", "JPEG"), image("P", "GIF"), clear.getvalue()):
        for decoding in (PLAIN, Decoding(background="00ff00", white_level=4095.0)):
            there, here = child(data, SIZE, decoding), decode_image(data, SIZE, decoding)
            assert np.array_equal(there.pixels, here.pixels)
            assert there.conversions == here.conversions
    dark = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, np.uint16)).save(dark, "TIFF")
    for data in (b"", image()[:50], dark.getvalue()):
        with pytest.raises(UnreadableImage) as there_:
            child(data, SIZE, PLAIN)
        with pytest.raises(UnreadableImage) as here_:
            decode_image(data, SIZE, PLAIN)
        assert str(there_.value) == str(here_.value)
        assert (there_.value.code, there_.value.seen) == (here_.value.code, here_.value.seen)
    child.close()
    child.close()


@pytest.mark.parametrize("how", [ABORT, EXIT, FILL])
def test_what_ends_the_child_is_set_aside_and_the_next_is_decoded(child: ChildDecoder, how: bytes) -> None:
    with pytest.raises(UnreadableImage) as raised:
        child(image() + how, SIZE, PLAIN)
    assert (str(raised.value), raised.value.code, raised.value.seen) == (CRASH, "crash", None)
    assert "crash" in CODES
    assert child(image(), SIZE, PLAIN).pixels.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(("how", "said"), [(KILL, "ended by SIGKILL"), (RAISE, "has raised an error")])
def test_what_no_image_brings_about_is_no_bad_image(child: ChildDecoder, how: bytes, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        child(image() + how, SIZE, PLAIN)
    assert child(image() + PRINT, SIZE, PLAIN).pixels.shape == (SIZE, SIZE, 3)


def test_a_child_that_does_not_start_is_no_bad_image() -> None:
    with pytest.raises(RuntimeError, match="could be started .exit status 7"):
        ChildDecoder((sys.executable, "-c", "raise SystemExit(7)"))(image(), SIZE, PLAIN)


def test_an_image_that_finds_no_memory_here_is_decided_upon_in_a_child(child: ChildDecoder) -> None:
    def short_of_memory(data: bytes, size: int, decoding: Decoding) -> None:
        raise UnreadableImage("MemoryError: ") from MemoryError()

    plain = decode_image(image(), SIZE)
    sure = SureDecoder(short_of_memory, child)  # type: ignore[arg-type]
    assert np.array_equal(sure(image(), SIZE, PLAIN).pixels, plain.pixels)
    with pytest.raises(UnreadableImage, match="more than 4 GiB"):
        sure(image() + FILL, SIZE, PLAIN)
    with pytest.raises(UnreadableImage, match="not an image"):
        SureDecoder(deadly, child)(b"nothing", SIZE, PLAIN)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_child_that_hangs_ends_with_its_parent(tmp_path: Path) -> None:
    sign, code = tmp_path / "hangs", "from tests.folders.test_careful import hang; hang()"
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {SIGN: str(sign)})
    end = time.monotonic() + 120
    while not sign.exists() or not sign.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    child = psutil.Process(int(sign.read_text()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs([child], timeout=60)[0] == [child]


def hang() -> None:
    ChildDecoder(CHILD)(image() + HANG, SIZE, PLAIN)
