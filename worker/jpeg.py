"""What a JPEG's own structure says: its size, how often it is walked, and the memory that takes.

Reads markers and lengths only (ISO/IEC 10918-1, annex B). Must never decode a coefficient.
"""

import re
import struct
from dataclasses import dataclass

from models.outcomes import Reason
from worker.errors import PictureError

SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
ONE_PASS = frozenset({0xC0, 0xC1, 0xC9})
EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1
EXIF_MARK = b"Exif\0\0"
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


@dataclass(frozen=True, slots=True)
class JpegSegments:
    """What stands before the first scan. ``frame`` is (marker, height, width, components); sizes in pixels.

    ``scan`` is where the header of that scan begins, ``exif`` the first EXIF block, empty if there is none.
    """

    frame: tuple[int, int, int, int]
    sampling: bytes
    exif: bytes
    scan: int


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Width and height in pixels. ``decoding_bytes`` is what the decoder keeps between scans."""

    width: int
    height: int
    scans: int
    decoding_bytes: int
    segments: JpegSegments


def read_jpeg_segments(body: bytes, *, parts_max: int) -> JpegSegments:
    """Walk the segments to the first scan.

    Raises PictureError (CORRUPT) for a file without a frame or with more segments and filling than ``parts_max``;
    struct.error or IndexError for one that is cut.
    """
    position, parts, frame, sampling, exif = 2, 0, None, b"", b""
    while True:
        marker, start = _next_marker(_MARKER, body, position)
        parts += 1 + start - 2 - position
        if parts > parts_max:
            raise PictureError(Reason.CORRUPT, f"a JPEG of more than {parts_max} parts")
        if marker == EOI:
            raise PictureError(Reason.CORRUPT, "a JPEG without a scan")
        if marker == SOS:
            break
        end = start + int.from_bytes(body[start : start + 2], "big")
        if marker in SOF:
            frame = (marker, *struct.unpack_from(">HHB", body, start + 3))
            sampling = body[start + 8 : start + 8 + 3 * frame[3]]
        elif marker == APP1 and not exif and body.startswith(EXIF_MARK, start + 2):
            exif = body[start + 2 : end]
        position = start if marker in ALONE else end
    if frame is None:
        raise PictureError(Reason.CORRUPT, "a JPEG without a frame header")
    return JpegSegments(frame, sampling, exif, start)


def read_jpeg_header(body: bytes, *, parts_max: int, scans_max: int) -> JpegHeader:
    """Walk to the first scan and, where the decoder keeps the whole image, from scan to scan.

    Counting stops behind ``scans_max``. Raises what ``read_jpeg_segments`` does.
    """
    segments = read_jpeg_segments(body, parts_max=parts_max)
    kind, height, width, components = segments.frame
    if kind in ONE_PASS and body[segments.scan + 2] == components:
        return JpegHeader(width, height, 1, 0, segments)
    scans = _count_scans(body, segments.scan, scans_max)
    decoding_bytes = _coefficient_bytes(width, height, segments.sampling)
    return JpegHeader(width, height, scans, decoding_bytes, segments)


def _next_marker(pattern: re.Pattern[bytes], body: bytes, position: int) -> tuple[int, int]:
    """Return a marker's second byte and the position behind it."""
    found = pattern.search(body, position)
    if found is None:
        raise PictureError(Reason.CORRUPT, "the file ends before the image does")
    return body[found.end() - 1], found.end()


def _count_scans(body: bytes, position: int, scans_max: int) -> int:
    """Count the scans of the first image in the file, beginning in the header of its first."""
    scans = 1
    position += int.from_bytes(body[position : position + 2], "big")
    while scans <= scans_max:
        marker, position = _next_marker(_MARKER_IN_SCAN, body, position)
        if marker == EOI:
            break
        scans += marker == SOS
        if marker not in ALONE:
            position += int.from_bytes(body[position : position + 2], "big")
    return scans


def _coefficient_bytes(width: int, height: int, sampling: bytes) -> int:
    """Two bytes for each coefficient of each component: libjpeg keeps them all until the last scan."""
    factors = [(byte >> 4 or 1, byte & 15 or 1) for byte in sampling[1::3]]
    across = max((wide for wide, _ in factors), default=1)
    down = max((high for _, high in factors), default=1)
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return 128 * units * sum(wide * high for wide, high in factors)
