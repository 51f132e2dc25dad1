"""What an image file's own structure says: its format, its bounds, and whether it is all there.

Reads lengths and trailers only. Must never decode a pixel or allocate by a number that the file claims.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from models.outcomes import WEB_PAGE, ImageFormat, Reason
from worker.errors import PictureError
from worker.jpeg import read_jpeg_header

# Segments, chunks, blocks and boxes of one file. Pillow makes objects of each, so a file of millions of empty ones
# costs hundreds of megabytes; the largest honest ones have a few thousand.
PARTS_MAX = 100_000
# Each scan of a JPEG walks the whole image again and can cost four bytes. Cameras and encoders use ten.
JPEG_SCANS_MAX = 500
# What decoding was measured to take for each pixel: decoder, Pillow's copy, and the frames that are kept between.
WEBP_BYTES = {b"VP8 ": 0, b"VP8L": 5, b"ALPH": 3, b"ANMF": 20}
WEBP_WIDTH_BYTES = 96
AVIF_BYTES, AVIF_ANIMATION_BYTES = 16, 22
ANIMATION_BYTES = 17
PNG_LENGTHS = {b"acTL": 8, b"fcTL": 26, b"fdAT": 4}
"""What makes frames of a PNG, and has so many bytes at the least (PNG specification, 11.3.6)."""
PNG_BYTES = {
    0: 2,
    3: 2,
}  # By colour type: grey and palette. A picture in colours takes four, its hash the rest.
PNG_DEEP_GREY_BYTES, PNG_COLOUR_BYTES = 4, 5
# A PNG may be one pixel wide and fifty million high. Each row is an allocation; some are held several times.
PNG_WIDTH_BYTES, PNG_HEIGHT_BYTES = 16, 20
GIF_BYTES = 3

JPEG_END = b"\xff\xd9"
AVIF_BRANDS = frozenset({b"avif", b"avis"})
GIF_EXTENSION, GIF_IMAGE, GIF_TRAILER = 0x21, 0x2C, 0x3B

# A server that fails half way often appends its error page to a picture it had already sent. Other tails are
# harmless and common: the video of a motion photo, further pictures, zero padding.
MARKUP = re.compile(rb"<(?:!doctype\s|html|head|body|script|\?php|br\s?/?>|b>)", re.IGNORECASE)
MARKUP_BYTES = 512

OTHER_KINDS = (
    (b"BM", "a BMP image, a format that is not stored"),
    (b"II*\0", "a TIFF image, a format that is not stored"),
    (b"MM\0*", "a TIFF image, a format that is not stored"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon, a format that is not stored"),
    (b"\xff\x0a", "a JPEG XL image, a format that is not stored"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, a format that is not stored"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image, a format that is not stored"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"{", "JSON text"),
)


@dataclass(frozen=True, slots=True)
class Container:
    """A complete file. Width, height (pixels) and frames are 0 where only the decoder can say.

    ``decoding_bytes`` is the memory that decoding takes besides the file: exactly so much at most, or only by what
    the file says where ``may_lie``. ``shrinks``: its decoder can make it small as it goes. ``scans``: how often it
    walks the image; ``scan``: where a JPEG's first scan has its header; ``exif``: a JPEG's EXIF block.
    """

    format: ImageFormat
    width: int
    height: int
    frames: int
    decoding_bytes: int
    may_lie: bool = False
    shrinks: bool = False
    scans: int = 1
    scan: int = 0
    exif: bytes = b""


def read_container(body: bytes) -> Container:
    """Tell the format from the first bytes and walk the file to its trailer.

    Raises PictureError: NOT_AN_IMAGE for anything but the five stored formats, CORRUPT for a file that ends
    too early or goes on as a web page.
    """
    try:
        return READERS[tell_format(body)](body)
    except (struct.error, IndexError):
        raise _cut() from None


def tell_format(body: bytes) -> ImageFormat:
    """Tell the format from the first bytes. Raises PictureError, NOT_AN_IMAGE."""
    if body.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if body.startswith((b"GIF87a", b"GIF89a")):
        return ImageFormat.GIF
    if body[4:8] == b"ftyp" and AVIF_BRANDS & _brands(body):
        return ImageFormat.AVIF
    raise PictureError(Reason.NOT_AN_IMAGE, _describe(body))


def _read_jpeg(body: bytes) -> Container:
    """Behind the header, look only at what follows the last end marker: the decoder finds the image's own end."""
    end = len(body) if body.endswith(JPEG_END) else body.rfind(JPEG_END) + 2
    if end < 2:
        raise _cut()
    _check_tail(body, end)
    header = read_jpeg_header(body, parts_max=PARTS_MAX, scans_max=JPEG_SCANS_MAX)
    return Container(
        ImageFormat.JPEG,
        header.width,
        header.height,
        1,
        header.decoding_bytes,
        shrinks=True,
        scans=header.scans,
        scan=header.segments.scan,
        exif=header.segments.exif,
    )


def _read_png(body: bytes) -> Container:
    """Chunks of length, kind, data and CRC, from IHDR to IEND (PNG specification, 5.3).

    Frames are left to the decoder, which knows whether the still image is one of them.
    """
    view = memoryview(body)
    length, kind, width, height, depth, colours = struct.unpack_from(">I4sIIBB", body, 8)
    if kind != b"IHDR" or length != 13:
        raise PictureError(Reason.CORRUPT, "a PNG without its header")
    position, parts, pixel_bytes = 8, 0, _png_pixel_bytes(depth, colours)
    while kind != b"IEND":
        parts = _count(parts)
        length, kind = struct.unpack_from(">I4s", body, position)
        end = position + 12 + length
        if end > len(body):
            raise _cut()
        if kind == b"IHDR" and position > 8:
            raise PictureError(Reason.CORRUPT, "a PNG with two headers")
        if kind == b"acTL":
            pixel_bytes = ANIMATION_BYTES
        if length < PNG_LENGTHS.get(kind, 0):
            raise PictureError(Reason.CORRUPT, f"the PNG's {kind.decode()} chunk is too short")
        # Viewers ignore a wrong checksum in ancillary chunks (lower-case names), and so do we, except in those that
        # make frames.
        checked = kind[0] < 0x60 or kind in PNG_LENGTHS
        if checked and zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") != view[end - 4 : end]:
            name = kind.decode("ascii", "replace")
            raise PictureError(Reason.CORRUPT, f"wrong checksum in the PNG's {name} chunk")
        position = end
    _check_tail(body, position)
    decoding_bytes = width * height * pixel_bytes + width * PNG_WIDTH_BYTES + height * PNG_HEIGHT_BYTES
    return Container(ImageFormat.PNG, width, height, 0, decoding_bytes)


def _png_pixel_bytes(depth: int, colours: int) -> int:
    if colours == 0 and depth == 16:
        return PNG_DEEP_GREY_BYTES
    return PNG_BYTES.get(colours, PNG_COLOUR_BYTES)


def _read_webp(body: bytes) -> Container:
    """RIFF chunks of kind, length, data and padding (RFC 9649, section 2)."""
    file_end = 8 + int(struct.unpack_from("<I", body, 4)[0])
    if file_end > len(body):
        raise _cut()
    position, width, height, frames, parts, pixel_bytes = 12, 0, 0, 0, 0, 0
    while position + 8 <= file_end:
        parts = _count(parts)
        kind, length = struct.unpack_from("<4sI", body, position)
        if position + 8 + length > file_end:
            raise _cut()
        size = _webp_size(body, kind, position + 8)
        width, height = max(width, size[0]), max(height, size[1])
        frames += kind == b"ANMF"
        pixel_bytes = max(pixel_bytes, WEBP_BYTES.get(kind, 0))
        position += 8 + length + (length & 1)
    _check_tail(body, file_end)
    return Container(
        ImageFormat.WEBP,
        width,
        height,
        frames or 1,
        width * height * pixel_bytes + width * WEBP_WIDTH_BYTES,
        # What is lossless may have tens of thousands of code tables, of five kilobytes each.
        may_lie=pixel_bytes > 0,
        shrinks=not frames,
    )


def _webp_size(body: bytes, kind: bytes, start: int) -> tuple[int, int]:
    """Canvas or frame in pixels: libwebp allocates it as soon as it opens a file, so it is read before."""
    if kind == b"VP8X":
        canvas = int.from_bytes(body[start + 4 : start + 10], "little")
        return (canvas & 0xFFFFFF) + 1, (canvas >> 24) + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[start + 1 : start + 5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, start + 6)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _read_gif(body: bytes) -> Container:
    """Blocks up to the trailer (GIF89a, appendix B). A frame may reach over the edge of the screen."""
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    position, frames, parts = 13 + gif_table_bytes(flags), 0, 0
    while (block := body[position]) != GIF_TRAILER:
        parts = _count(parts)
        if block == GIF_EXTENSION:
            position, parts = _skip_gif_extension(body, position + 2, parts)
        elif block == GIF_IMAGE:
            left, top, wide, high, flags = struct.unpack_from("<4HB", body, position + 1)
            width, height, frames = max(width, left + wide), max(height, top + high), frames + 1
            position = skip_gif_data(body, position + 11 + gif_table_bytes(flags))
        elif block == 0:
            # Old encoders pad blocks with zeros, and every viewer skips them.
            position += 1
        else:
            raise PictureError(Reason.CORRUPT, f"unknown GIF block {block:#04x}")
    if frames == 0:
        raise PictureError(Reason.CORRUPT, "a GIF without a frame")
    _check_tail(body, position + 1)
    pixel_bytes = ANIMATION_BYTES if frames > 1 else GIF_BYTES
    return Container(ImageFormat.GIF, width, height, frames, width * height * pixel_bytes)


def gif_table_bytes(flags: int) -> int:
    """Bytes of the colour table that the flags of a screen or a frame announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def skip_gif_data(body: bytes, position: int) -> int:
    """Position behind a chain of sub-blocks, which an empty one ends."""
    while length := body[position]:
        position += length + 1
    return position + 1


def _skip_gif_extension(body: bytes, position: int, parts: int) -> tuple[int, int]:
    """Skip the same chain where each sub-block counts as a part: Pillow keeps what it has of comments."""
    while length := body[position]:
        position += length + 1
        parts = _count(parts)
    return position + 1, parts


def _read_avif(body: bytes) -> Container:
    """Top-level boxes of length, kind and data (ISO/IEC 14496-12, 4.2) must fill the file exactly."""
    position, width, height, parts = 0, 0, 0, 0
    while position < len(body):
        parts = _count(parts)
        length, kind = struct.unpack_from(">I4s", body, position)
        if length == 1:
            length = struct.unpack_from(">Q", body, position + 8)[0]
        elif length == 0:
            # A last box that reaches to the end of the file, or zeros after the image.
            if kind != b"mdat" and body.count(0, position) != len(body) - position:
                raise PictureError(Reason.CORRUPT, "an AVIF box without a length")
            break
        if length < 8:
            raise PictureError(Reason.CORRUPT, "an AVIF box with an impossible length")
        if kind == b"meta":
            width, height = _avif_size(body, position, position + length)
        position += length
    if position > len(body):
        raise _cut()
    _check_tail(body, position)
    pixel_bytes = AVIF_ANIMATION_BYTES if b"avis" in _brands(body) else AVIF_BYTES
    return Container(ImageFormat.AVIF, width, height, 0, width * height * pixel_bytes, may_lie=True)


def _avif_size(body: bytes, start: int, end: int) -> tuple[int, int]:
    """Pixels of the largest image that the metadata describes: a grid has one entry and each tile another."""
    largest = (0, 0)
    while (start := body.find(b"ispe", start, end) + 4) > 4:
        width, height = struct.unpack_from(">II", body, start + 4)
        largest = max(largest, (width, height), key=lambda size: size[0] * size[1])
    return largest


def _brands(body: bytes) -> set[bytes]:
    """Major and compatible brands: HEIC and plain video share AVIF's container but not its brands."""
    length = min(int.from_bytes(body[:4], "big"), 256)
    return {body[8:12], *(body[start : start + 4] for start in range(16, length, 4))}


def _check_tail(body: bytes, end: int) -> None:
    """Find a web page behind the image, or in place of its second half (lossy WebP decodes any bytes)."""
    if MARKUP.search(body, end, end + MARKUP_BYTES) or b"</html>" in body[-64:].lower():
        raise PictureError(Reason.CORRUPT, "the image breaks off or ends, and a web page follows")


def _count(parts: int) -> int:
    """One part more, unless that is too many."""
    if parts >= PARTS_MAX:
        raise PictureError(Reason.CORRUPT, f"a file of more than {PARTS_MAX} parts")
    return parts + 1


def _cut() -> PictureError:
    return PictureError(Reason.CORRUPT, "the file ends before the image does")


def _describe(body: bytes) -> str:
    """Say in a few words what came instead of an image."""
    if not body:
        return "the body is empty"
    text = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return "an SVG drawing, which is not stored" if b"<svg" in text else WEB_PAGE
    for prefix, kind in OTHER_KINDS:
        if body.startswith(prefix):
            return kind
    if body[4:8] == b"ftyp":
        return f"a file of brand {body[8:12].decode('ascii', 'replace')!r}, a format that is not stored"
    return "the first bytes are of no known image format"


READERS: dict[ImageFormat, Callable[[bytes], Container]] = {
    ImageFormat.JPEG: _read_jpeg,
    ImageFormat.PNG: _read_png,
    ImageFormat.WEBP: _read_webp,
    ImageFormat.GIF: _read_gif,
    ImageFormat.AVIF: _read_avif,
}
