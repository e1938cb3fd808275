"""The entries of a ZIP archive in an object, by its directory, without extracting any; knows no layout.

The archive may be hostile: what the directory says is held against the bytes that are there. The directory is
read as a stream, since Python's own ``zipfile`` keeps most of a KB for each entry.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError, first_message
from ray_dit.formats.ranges import RangeFile
from ray_dit.formats.rows import Piece, Source
from ray_dit.formats.tar_members import LARGEST_IMAGE

STORED, DEFLATED = 0, 8
END, LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
"""Records of the format (PKWARE's APPNOTE, sections 4.3.7 to 4.3.16)."""
LONGEST_COMMENT = 0xFFFF
STEP = 4096
"""Bytes inflated at once, to 4 MB at most."""
ENCRYPTED, CRC_FOLLOWS = 1, 1 << 3
"""Flags of an entry."""
UNIX_LINK = 0o120000


@dataclass(frozen=True, slots=True)
class Member:
    """An entry; ``start`` is where its local header lies in the object, ``packed`` its bytes there."""

    name: str
    start: int
    packed: int
    size: int
    method: int
    special: bool
    """A link, or encrypted."""


def zip_piece(source: Source, piece: Piece) -> tuple[Iterator[Member], int]:
    """The files of an archive, and where its directory begins; UserError for a damaged one."""
    file = RangeFile(source, piece.object, 0, piece.size)
    try:
        count, start, end, shift = _directory(file, piece.size)
        members = _members(file, count, start, end, shift)
        return _saying(members, f"{source.uri}/{piece.object}"), start
    except (ValueError, struct.error) as error:
        raise _damaged(f"{source.uri}/{piece.object}", error) from error


def unpacked(data: bytes, packed: int) -> bytes:
    """The bytes of an entry from those at its place, which begin with its local header.

    UnreadableImage where they are damaged.
    """
    try:
        signature, _, flags, method, _, _, crc, _, _, name, extra = LOCAL.unpack_from(data)
        start = LOCAL.size + name + extra
        content = data[start : start + packed]
        if signature != b"PK\3\4" or len(content) < packed:
            raise ValueError("its header is not where the directory says")
        if method == DEFLATED:
            content = _inflated(content)
        if not flags & CRC_FOLLOWS and zlib.crc32(content) != crc:
            raise ValueError("its checksum is wrong")
        return content
    except (ValueError, struct.error, zlib.error) as error:
        raise UnreadableImage(f"damaged in its ZIP archive: {error}") from error


def _inflated(content: bytes) -> bytes:
    """What an entry was compressed from; zlib, asked for all at once, would hold it twice."""
    inflate, sink = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    for start in range(0, len(content), STEP):
        sink.write(inflate.decompress(content[start : start + STEP]))
        if sink.tell() > LARGEST_IMAGE:
            raise ValueError("it is larger than its directory says")
        if inflate.eof:  # zlib would collect what follows, copying all of it at each step
            return sink.getvalue()
    raise ValueError("its data have no end")


def _directory(file: RangeFile, size: int) -> tuple[int, int, int, int]:
    """Number of entries, first and last byte of the directory, and by how much all offsets are short."""
    tail_start = max(0, size - LONGEST_COMMENT - END.size)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("it has no directory at its end")
    _, disk, _, _, count, length, offset, _ = END.unpack_from(tail, at)
    if disk not in (0, 0xFFFF):
        raise ValueError("it is one part of several")
    end = tail_start + at
    locator = end - LOCATOR64.size
    if locator >= 0:
        file.seek(locator)
        signature, _, place, _ = LOCATOR64.unpack(file.read(LOCATOR64.size))
        if signature == b"PK\6\7":
            file.seek(place)
            record = END64.unpack(file.read(END64.size))
            count, length, offset, end = record[7], record[8], record[9], place
    if length > end or count > length // ENTRY.size:
        raise ValueError("its directory is larger than it can be")
    return count, end - length, end, end - length - offset


def _members(file: RangeFile, count: int, start: int, end: int, shift: int) -> Iterator[Member]:
    file.seek(start)
    for _ in range(count):
        fields = ENTRY.unpack(file.read(ENTRY.size))
        signature, made, flags, method = fields[0], fields[1], fields[3], fields[4]
        packed, size, name_length, extra_length, comment_length = fields[8:13]
        attributes, offset = fields[15], fields[16]
        rest = file.read(name_length + extra_length + comment_length)
        if signature != b"PK\1\2" or file.tell() > end:
            raise ValueError("an entry of its directory is broken")
        size, packed, offset = _wide(rest[name_length : name_length + extra_length], size, packed, offset)
        place = offset + shift
        if not 0 <= place < start or packed > start - place:
            raise ValueError("an entry lies outside of it")
        name = _name(rest[:name_length])
        is_link = made >> 8 == 3 and attributes >> 16 & 0o170000 == UNIX_LINK
        if not name.endswith("/"):
            yield Member(name, place, packed, size, method, is_link or bool(flags & ENCRYPTED))


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset of an entry, from its ZIP64 field where they do not fit into 32 bits."""
    values = [size, packed, offset]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            place = at + 4
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF and place + 8 <= at + 4 + length <= len(extra):
                    values[index] = struct.unpack_from("<Q", extra, place)[0]
                    place += 8
        at += 4 + length
    return values[0], values[1], values[2]


def _name(raw: bytes) -> str:
    """A name as text with slashes: UTF-8, which many write without saying so, else that of old PCs."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode("cp437")
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def _saying(members: Iterator[Member], where: str) -> Iterator[Member]:
    try:
        yield from members
    except (ValueError, struct.error) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(f"{where} is no ZIP archive that can be read ({first_message(error)}): make it again")
