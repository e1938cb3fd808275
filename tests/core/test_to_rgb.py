"""Images of every kind as people keep them: what their pixels become, and which conversion is reported."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ray_dit.core.media import DecodedImage, UnreadableImage, center_crop, decode, decode_image
from ray_dit.core.to_rgb import Decoding

RAMP = np.add.outer(np.arange(32), np.arange(48)) / 78.0
"""Grey from 0 to 1."""
GREY = (RAMP * 255).round().astype(np.uint8)[..., None].repeat(3, axis=2)
MAGENTA, BLACK = (255, 0, 255), (0, 0, 0)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def grey(values: np.ndarray, kind: str = "TIFF", **options: Any) -> bytes:
    return encoded(PIL.Image.fromarray(values), kind, **options)


def near(found: DecodedImage, wanted: np.ndarray, *conversions: str) -> None:
    assert found.pixels.dtype == np.uint8
    assert abs(found.pixels.astype(int) - wanted).max() <= 1
    assert found.conversions == conversions


def png_of(depth: int, color: int, rows: list[bytes], size: tuple[int, int], *chunks: bytes) -> bytes:
    """A PNG of a depth that Pillow does not write, with chunks before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    more = b"".join(chunk(data[:4], data[4:]) for data in chunks)
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + more + body + chunk(b"IEND", b"")


def test_greys_of_16_bits_are_scaled() -> None:
    full = (RAMP * 65535).round().astype(np.uint16)
    near(decode_image(grey(full, "PNG")), GREY, "grey16")
    near(decode_image(grey(full)), GREY, "grey16")
    big_endian = full.astype(">u2")
    near(decode_image(encoded(PIL.Image.fromarray(big_endian), "TIFF")), GREY, "grey16")


def test_a_grey_of_16_bits_that_may_be_one_of_fewer_is_refused_until_told() -> None:
    twelve = (RAMP * 4095).round().astype(np.uint16)
    with pytest.raises(UnreadableImage, match=r"end at 4095.*--images.white-level \(65535 for 16 bits, 4095"):
        decode(grey(twelve, "PNG"))
    near(decode_image(grey(twelve, "PNG"), decoding=Decoding(white_level=4095.0)), GREY, "grey16")
    assert decode(grey(twelve), decoding=Decoding(white_level=65535.0)).max() == round(4095 / 257)
    assert decode(grey(np.zeros((8, 8), np.uint16))).max() == 0


def test_a_tiff_of_12_bits_has_their_range() -> None:
    values = np.array([[0, 4095], [2048, 1024]], np.uint16)
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist()
    )  # two values in three bytes
    directory = ImageFileDirectory_v2()
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 277: 1, 278: 2, 279: len(packed)}
    for tag, value in tags.items():
        directory[tag] = value
    directory[273] = 0  # right behind the directory
    data = b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + packed
    wanted = (values[..., None] / 4095 * 255).round()
    near(decode_image(data), wanted, "grey16")


def test_a_tiff_whose_zero_is_white_is_inverted() -> None:
    full = (RAMP * 65535).round().astype(np.uint16)
    near(decode_image(grey(65535 - full, tiffinfo={262: 0})), GREY, "grey16")
    near(decode_image(grey((1 - RAMP).astype(np.float32), tiffinfo={262: 0})), GREY, "float")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (RAMP.astype(np.float32), "float"),
        ((RAMP * 255).astype(np.float32), "float"),
        ((RAMP * 2 - 1).astype(np.float32), "float"),
        ((RAMP * 1e6).astype(np.float32), "float"),
        ((RAMP * 255).round().astype(np.int32), "grey32"),
        ((RAMP * 65535).round().astype(np.int32), "grey32"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "grey32"),
        ((RAMP * 4000 - 1000).astype(np.int32), "grey32"),
    ],
)
def test_deep_greys_are_levels_or_scaled_by_their_range(values: np.ndarray, name: str) -> None:
    near(decode_image(grey(values)), GREY, name)


def test_unsigned_greys_of_32_bits_are_not_taken_for_signed_ones() -> None:
    data = bytearray(grey((RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)))
    place = data.find(struct.pack("<HHI", 339, 3, 1)) + 8  # the sample format, which Pillow writes as signed
    data[place : place + 2] = struct.pack("<H", 1)
    near(decode_image(bytes(data)), GREY, "grey32")


def test_dark_floats_stay_dark_and_values_without_meaning_are_refused() -> None:
    assert decode(grey((RAMP / 10).astype(np.float32))).max() in (25, 26)
    with pytest.raises(UnreadableImage, match="no finite numbers"):
        decode(grey(np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32)))
    with pytest.raises(UnreadableImage, match="all its values are 7000"):
        decode(grey(np.full((8, 8), 7000, np.int32)))


def test_plain_kinds_are_what_pillow_makes_of_them() -> None:
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for mode, name in {"L": "grey", "1": "bilevel", "P": "palette", "YCbCr": "ycbcr", "CMYK": "cmyk"}.items():
        data = encoded(picture.convert(mode), "PNG" if mode in ("L", "1", "P") else "TIFF")
        wanted = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        found = decode_image(data)
        np.testing.assert_array_equal(found.pixels, wanted)
        assert found.conversions == (name,)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_ordinary_image_keeps_every_pixel(kind: str) -> None:
    data = encoded(
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)), kind
    )
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(picture))
    np.testing.assert_array_equal(decode(data, 16), center_crop(picture, 16))
    if kind != "GIF":
        assert decode_image(data).conversions == ()


def clear_with_square(mode: str) -> PIL.Image.Image:
    """A black square on clear, under which magenta hides."""
    picture = PIL.Image.new("RGBA", (32, 32), (*MAGENTA, 0))
    picture.paste((*BLACK, 255), (8, 8, 24, 24))
    return picture.convert(mode)


def square_on(color: str) -> np.ndarray:
    wanted = PIL.Image.new("RGB", (32, 32), color)
    wanted.paste(BLACK, (8, 8, 24, 24))
    return np.asarray(wanted).astype(int)


def transparent_images() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    palette = PIL.Image.new("P", (32, 32), 1)
    palette.putpalette([*BLACK, *MAGENTA])
    palette.paste(0, (8, 8, 24, 24))
    rgb = PIL.Image.new("RGB", (32, 32), MAGENTA)
    rgb.paste(BLACK, (8, 8, 24, 24))
    light = PIL.Image.new("L", (32, 32), 200)
    light.paste(0, (8, 8, 24, 24))
    deep = np.full((32, 32), 51_400, np.uint16)
    deep[8:24, 8:24] = 0
    bilevel = light.convert("1", dither=PIL.Image.Dither.NONE)
    return {
        "RGBA": (encoded(clear_with_square("RGBA")), ()),
        "LA": (encoded(clear_with_square("LA")), ("grey",)),
        "RGBA WebP": (encoded(clear_with_square("RGBA"), "WEBP", lossless=True), ()),
        "RGBA TIFF": (encoded(clear_with_square("RGBA"), "TIFF"), ()),
        "RGBA AVIF": (encoded(clear_with_square("RGBA"), "AVIF", quality=100, subsampling="4:4:4"), ()),
        "P tRNS": (encoded(palette, transparency=1), ("palette",)),
        "P tRNS table": (encoded(palette, transparency=bytes([255, 0])), ("palette",)),
        "GIF": (encoded(palette, "GIF", transparency=1), ("palette",)),
        "RGB tRNS": (encoded(rgb, transparency=MAGENTA), ()),
        "L tRNS": (encoded(light, transparency=200), ("grey",)),
        "1 tRNS": (encoded(bilevel, transparency=1), ("bilevel",)),
        "I;16 tRNS": (grey_with_trns(deep, 51_400), ("grey16",)),
    }


def grey_with_trns(values: np.ndarray, clear: int) -> bytes:
    rows = [row.astype(">u2").tobytes() for row in values]
    return png_of(16, 0, rows, (values.shape[1], values.shape[0]), b"tRNS" + struct.pack(">H", clear))


@pytest.mark.parametrize("name", transparent_images())
def test_transparency_shows_the_background(name: str) -> None:
    data, others = transparent_images()[name]
    near(decode_image(data), square_on("white"), *sorted((*others, "transparent")))
    red = decode_image(data, decoding=Decoding(background="ff0000")).pixels
    assert abs(red.astype(int) - square_on("red")).max() <= 1


def test_transparent_colours_of_other_depths_are_found() -> None:
    four = png_of(4, 0, [bytes([0xF0])] * 2, (2, 2), b"tRNS" + struct.pack(">H", 15))
    assert decode(four, decoding=Decoding(background="red"))[0].tolist() == [[255, 0, 0], [0, 0, 0]]
    pixel = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    sixteen = png_of(16, 2, [pixel + bytes(6)], (2, 1), b"tRNS" + pixel)
    assert decode(sixteen)[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_half_transparent_pixels_are_mixed_and_opaque_ones_kept() -> None:
    half = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    near(decode_image(encoded(half)), np.full((4, 4, 3), 127), "transparent")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    found = decode_image(encoded(PIL.Image.fromarray(pixels)))
    np.testing.assert_array_equal(found.pixels, pixels[..., :3])
    assert found.conversions == ()


def test_cmyk_is_inverted_where_adobes_marker_says_so() -> None:
    light = encoded(PIL.Image.new("CMYK", (16, 16), (0, 25, 0, 0)), "JPEG", quality=100)
    near(decode_image(light), np.full((16, 16, 3), (255, 230, 255)), "cmyk")
    turned = encoded(PIL.Image.new("CMYK", (16, 16), (255, 230, 255, 255)), "JPEG", quality=100)
    start = turned.index(b"\xff\xee")
    plain = turned[:start] + turned[start + 2 + int.from_bytes(turned[start + 2 : start + 4], "big") :]
    near(decode_image(plain), np.full((16, 16, 3), (255, 230, 255)), "cmyk")


def test_exif_orientation_is_applied_where_asked_for() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        data = encoded(PIL.Image.fromarray(pixels), "PNG", exif=exif)
        np.testing.assert_array_equal(decode(data), pixels)
        found = decode_image(data, decoding=Decoding(exif_orientation=True))
        wanted = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(found.pixels, np.asarray(wanted))
        assert found.conversions == (() if orientation == 1 else ("turned",))
    broken = encoded(PIL.Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    np.testing.assert_array_equal(decode(broken, decoding=Decoding(exif_orientation=True)), pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = decode_image(data)
    assert abs(found.pixels.astype(int) - (255, 0, 0)).max() <= 3  # AVIF rounds colours
    assert "first-frame" in found.conversions


def test_what_is_no_image_is_refused() -> None:
    good = encoded(PIL.Image.fromarray(GREY))
    for data in (b"", b"<!DOCTYPE html><html></html>", b"\xff\xd8\xff", good[:-30], b"\0" * 512):
        with pytest.raises(UnreadableImage):
            decode(data, 16)


@pytest.mark.parametrize(
    "shape", [(17, 400), (400, 17), (9, 4000), (1, 6000), (6000, 1), (70, 1300), (600, 33)]
)
@pytest.mark.parametrize("size", [16, 23, 64])
def test_a_strip_is_cropped_as_if_all_of_it_were_resized(
    shape: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    strip = PIL.Image.fromarray(smooth)
    found = center_crop(strip, size)
    monkeypatch.setattr("ray_dit.core.media.STRIP", 1 << 30)
    assert abs(found.astype(int) - center_crop(strip, size)).max() <= 1
