"""Pictures that only decoding tells from good ones: by its time, where many pixels are accepted, or its failure."""

import io
import struct
import zlib

from PIL import Image

from worker.container import JPEG_SCANS_MAX

PIXELS_MAX = 2_000_000_000
"""With the default of image_pixels_max, such a picture is refused from its header."""


def slow_jpeg(side: int = 2880) -> bytes:
    """A progressive JPEG of under 100 kB whose last scan is repeated as often as is accepted: 3 s at 2880.

    It is as large as one may be that a child decodes itself.
    """
    buffer = io.BytesIO()
    Image.new("L", (side, side), 90).save(buffer, "JPEG", progressive=True)
    body = buffer.getvalue()
    start, end = body.rindex(b"\xff\xda"), body.rindex(b"\xff\xd9")
    scans = body.count(b"\xff\xda")
    return body[:end] + body[start:end] * (JPEG_SCANS_MAX - scans) + body[end:]


def garbled_png(number: int) -> bytes:
    """A PNG whose chunks are whole and whose pixels do not decode."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0)),
        (b"IDAT", b"no pixels %d" % number),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(data)) + kind + data + _checksum(kind + data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _checksum(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))
