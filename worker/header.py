"""What the header of a complete file says: size, frames and EXIF orientation, as its decoder would. Pure.

Goes by structure only, and must never decode a pixel. ``worker.container`` has walked the file before: it is whole.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.outcomes import ImageFormat, Reason
from worker.container import (
    GIF_EXTENSION,
    GIF_IMAGE,
    JPEG_END,
    Container,
    gif_table_bytes,
    skip_gif_data,
)
from worker.errors import PictureError
from worker.jpeg import EXIF_MARK

EXIF_ORIENTATION = 0x0112

PNG_FRAMES_MAX = 0x80000000
WEBP_HAS_EXIF = 0x08
AVIF_ENTRIES_MAX = 10_000
"""Of what stands before the pixels: no real file comes near it, and a hostile one could keep a decoder busy for
minutes.
"""

# EXIF's word for a rotation (quarters, anticlockwise) and then a mirror: none, top to bottom, left to right.
AVIF_ORIENTATION = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}

Place = tuple[int, int]
"""Where something begins in the file, and where it ends."""


@dataclass(frozen=True, slots=True)
class Header:
    """Stored pixels, before ``orientation`` (EXIF, 1 to 8) is applied; ``frames`` is at least 1."""

    width: int
    height: int
    frames: int
    orientation: int


def read_header(body: bytes, container: Container) -> Header:
    """Read the header of a file that ``container`` was read from. Raises PictureError, CORRUPT, if it has none."""
    try:
        header = READERS[container.format](body, container)
    except (struct.error, LookupError, StopIteration, ValueError):
        raise PictureError(Reason.CORRUPT, "the file ends before the image does") from None
    if not header.width or not header.height:
        raise PictureError(Reason.CORRUPT, f"the {container.format} does not say its size")
    return header


def exif_orientation(exif: bytes) -> int:
    """Orientation in the first directory of an EXIF block (EXIF 2.32, 4.6.2), or 1.

    Broken metadata does not make a picture corrupt. Pillow's own reader costs a quarter of a JPEG's decode.
    """
    start = len(EXIF_MARK) if exif.startswith(EXIF_MARK) else 0
    order = "<" if exif.startswith(b"II", start) else ">"
    try:
        position = start + struct.unpack_from(order + "I", exif, start + 4)[0]
        entries = struct.unpack_from(order + "H", exif, position)[0]
        for entry in range(position + 2, position + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == EXIF_ORIENTATION:
                return value if value in range(1, 9) else 1
    except struct.error:
        pass
    return 1


def _jpeg(body: bytes, container: Container) -> Header:
    """The image's own end must come behind its first scan: a thumbnail's stands before."""
    scan = container.scan
    body.rindex(JPEG_END, scan + int.from_bytes(body[scan : scan + 2], "big"))
    return Header(container.width, container.height, 1, exif_orientation(container.exif))


def _png(body: bytes, container: Container) -> Header:
    """``acTL`` counts the frames; the still image is one of them if a frame's header stands before it. One that
    counts nothing, or a second one, makes a still image of it, as in the decoder.
    """
    frames, still, exif, before_data, position, kind = 0, 1, b"", True, 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", body, position)
        if kind == b"acTL" and before_data:
            (count,) = struct.unpack_from(">I", body, position + 8)
            frames = count if not frames and count <= PNG_FRAMES_MAX else 0
        elif kind == b"fcTL" and before_data:
            still = 0
        elif kind == b"eXIf":
            exif = body[position + 8 : position + 8 + length]
        before_data = before_data and kind != b"IDAT"
        position += 12 + length
    orientation = exif_orientation(exif)
    return Header(container.width, container.height, frames + still if frames else 1, orientation)


def _webp(body: bytes, container: Container) -> Header:
    """Only an extended file has metadata, and only if its flags say so (RFC 9649, section 2.7)."""
    exif = b""
    if body[12:16] == b"VP8X" and body[20] & WEBP_HAS_EXIF:
        position = 12
        while not exif and position + 8 <= len(body):
            kind, length = struct.unpack_from("<4sI", body, position)
            if kind == b"EXIF":
                exif = body[position + 8 : position + 8 + length]
            position += 8 + length + (length & 1)
    return Header(container.width, container.height, container.frames, exif_orientation(exif))


def _gif(body: bytes, container: Container) -> Header:
    """The screen, or the first frame where that reaches over its edge."""
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    position = 13 + gif_table_bytes(flags)
    while (block := body[position]) != GIF_IMAGE:
        position = skip_gif_data(body, position + 2) if block == GIF_EXTENSION else position + 1
    left, top, wide, high = struct.unpack_from("<4H", body, position + 1)
    return Header(max(width, left + wide), max(height, top + high), container.frames, 1)


def _avif(body: bytes, _: Container) -> Header:
    """A sequence is described by its track, any other file by the properties of its primary item."""
    top = dict(_boxes(body, (0, len(body))))
    if b"mdat" not in top and b"idat" not in dict(_boxes(body, _skip(top[b"meta"], 4))):
        raise IndexError
    if body[8:12] == b"avis" and b"moov" in top:
        return _avif_track(body, top[b"moov"])
    meta = dict(_boxes(body, _skip(top[b"meta"], 4)))
    _check_extents(body, meta[b"iloc"][0])
    properties = _properties(body, meta)
    width, height = struct.unpack_from(">II", body, properties[b"ispe"][0] + 4)
    return Header(width, height, 1, _avif_orientation(body, properties))


def _check_extents(body: bytes, start: int) -> None:
    """Every item's bytes must lie inside the file (ISO/IEC 14496-12, 8.11.3). Raises IndexError."""
    version, sizes = body[start], int.from_bytes(body[start + 4 : start + 6], "big")
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    id_bytes = 4 if version == 2 else 2
    position, entries = start + 6 + id_bytes, 0
    for _ in range(_number(body, start + 6, id_bytes)):
        position += id_bytes
        in_file = not version or not body[position + 1] & 15
        position += 4 if version else 2
        base = _number(body, position, base_bytes)
        position += base_bytes + 2
        extents = _number(body, position - 2, 2)
        entries += 1 + extents
        if position > len(body) or entries > AVIF_ENTRIES_MAX:
            raise IndexError(position)
        for _ in range(extents):
            offset = base + _number(body, position + index_bytes, offset_bytes)
            length = _number(body, position + index_bytes + offset_bytes, length_bytes)
            if in_file and offset + length > len(body):
                raise IndexError(offset)
            position += index_bytes + offset_bytes + length_bytes


def _avif_track(body: bytes, moov: Place) -> Header:
    """The first track: its size in pixels (16.16 fixed point), its samples, which are the frames."""
    track = dict(_boxes(body, dict(_boxes(body, moov))[b"trak"]))
    width, height = struct.unpack_from(">II", body, track[b"tkhd"][1] - 8)
    table = track[b"mdia"]
    for kind in (b"minf", b"stbl"):
        table = dict(_boxes(body, table))[kind]
    samples = dict(_boxes(body, table))
    (frames,) = struct.unpack_from(">I", body, samples[b"stsz"][0] + 8)
    entry = next(iter(_boxes(body, _skip(samples[b"stsd"], 8))))[1]
    properties = dict(_boxes(body, _skip(entry, 78)))
    return Header(width >> 16, height >> 16, max(1, frames), _avif_orientation(body, properties))


def _properties(body: bytes, meta: dict[bytes, Place]) -> dict[bytes, Place]:
    """The primary item's properties by kind (ISO/IEC 23008-12, 9.3)."""
    primary = _number(body, meta[b"pitm"][0] + 4, 4 if body[meta[b"pitm"][0]] else 2)
    iprp = dict(_boxes(body, meta[b"iprp"]))
    known = list(_boxes(body, iprp[b"ipco"]))
    start = iprp[b"ipma"][0]
    id_bytes, index_bytes = (4 if body[start] else 2), (2 if body[start + 3] & 1 else 1)
    position = start + 8
    for _ in range(min(AVIF_ENTRIES_MAX, _number(body, start + 4, 4))):
        item, count = _number(body, position, id_bytes), body[position + id_bytes]
        position += id_bytes + 1
        if item == primary:
            # The highest bit says that a reader must understand the property.
            mask = (1 << 8 * index_bytes - 1) - 1
            places = range(position, position + count * index_bytes, index_bytes)
            return dict(known[(_number(body, place, index_bytes) & mask) - 1] for place in places)
        position += count * index_bytes
    raise IndexError(primary)


def _avif_orientation(body: bytes, properties: dict[bytes, Place]) -> int:
    quarters = body[properties[b"irot"][0]] & 3 if b"irot" in properties else 0
    mirror = 1 + (body[properties[b"imir"][0]] & 1) if b"imir" in properties else 0
    return AVIF_ORIENTATION[quarters][mirror]


def _boxes(body: bytes, place: Place) -> Iterator[tuple[bytes, Place]]:
    """Boxes of length, kind and content (ISO/IEC 14496-12, 4.2) in a part of the file."""
    position, end = place
    for _ in range(AVIF_ENTRIES_MAX):
        if position + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", body, position)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", body, position + 8), 16
        box_end = end if length == 0 else min(end, position + length)
        if box_end < position + head:
            return
        yield kind, (position + head, box_end)
        position = box_end


def _skip(place: Place, size: int) -> Place:
    return place[0] + size, place[1]


def _number(body: bytes, start: int, size: int) -> int:
    return int.from_bytes(body[start : start + size], "big")


READERS: dict[ImageFormat, Callable[[bytes, Container], Header]] = {
    ImageFormat.JPEG: _jpeg,
    ImageFormat.PNG: _png,
    ImageFormat.WEBP: _webp,
    ImageFormat.GIF: _gif,
    ImageFormat.AVIF: _avif,
}
