"""Small files that want much: pixels, scans, parts, memory. Each is made in a moment."""

import io
import struct
import zlib

from PIL import Image

MANY = 1_000_000


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def small(name: str, **options: object) -> bytes:
    """A good picture of 64 by 64 pixels."""
    return encode(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), name, **options)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(side: int, *, colours: int = 2, bytes_per_pixel: int = 3) -> bytes:
    """A real PNG of side by side black pixels, made line by line."""
    packer = zlib.compressobj(1)
    line = bytes(1 + side * bytes_per_pixel)
    data = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND")


def flat(name: str, side: int, **options: object) -> bytes:
    """A picture of side by side pixels in one colour."""
    return encode(Image.new("RGB", (side, side), (90, 100, 80)), name, **options)


def riff(*chunks: bytes) -> bytes:
    """A WebP file of these chunks."""
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def scan_of(component: int, tables: int = 0) -> bytes:
    """The header of a sequential scan of one component, with no data behind it."""
    return b"\xff\xda\0\x08\x01" + bytes([component, tables]) + b"\0\x3f\0"


def baseline_of_scans(side: int, scans: int) -> bytes:
    """A JPEG that is not progressive and walks its image again and again, ten bytes a time."""
    body = flat("JPEG", 64, subsampling=0)
    head = body[: body.index(b"\xff\xda")]
    size = head.index(b"\xff\xc0") + 5
    head = head[:size] + struct.pack(">HH", side, side) + head[size + 4 :]
    return head + scan_of(1) + scan_of(2, 0x11) + scan_of(3, 0x11) + scan_of(1) * (scans - 3) + b"\xff\xd9"


def lying_avif(side: int) -> bytes:
    """An AVIF of side by side pixels that says in its own boxes to have 16 by 16."""
    body = flat("AVIF", side, speed=10)
    size = body.index(b"ispe") + 8
    return body[:size] + struct.pack(">II", 16, 16) + body[size + 8 :]


def code_tables_webp(side: int) -> bytes:
    """A lossless WebP of side by side pixels, up to 1024, with code tables of its own for each block of 4 by 4.

    It takes two and a half bytes for what its decoder keeps in 5 kB (WebP lossless bitstream specification, 6.2).
    """
    blocks = (side // 4) ** 2
    bits = [_bits(0x2F, 8), _bits(side - 1, 14), _bits(side - 1, 14), _bits(0, 1), _bits(0, 3)]
    # No transform and no colour cache; one set of tables for each block, numbered by an image of its own.
    bits += ["0", "0", "1", "000", "0", _eight_bits_each(280), _eight_bits_each(256), *[_only_zero()] * 3]
    bits += [f"{block & 255:08b}{block >> 8:08b}" for block in range(blocks)]
    bits += [_only_zero() * 5] * blocks
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 16)
    data = int(stream[::-1], 2).to_bytes(len(stream) // 8, "little")
    return riff(b"VP8L" + struct.pack("<I", len(data)) + data)


def _bits(number: int, count: int) -> str:
    """A number as a stream of bits, the lowest first."""
    return f"{number:0{count}b}"[::-1]


def _only_zero() -> str:
    """A code of one symbol, 0, which takes no bits."""
    return "1000"


def _eight_bits_each(symbols: int) -> str:
    """A code in which each of the first 256 symbols has eight bits, and the others have none."""
    # Lengths are coded, too: 0 is a length of eight, 1 and seven bits are a run of none. The code for that has its
    # own lengths in this order: of 17, 18 (a run), 0 to 5, 16, 6, 7, 8.
    lengths = "".join(_bits(place in {1, 11}, 3) for place in range(12))
    rest = "1" + _bits(symbols - 256 - 11, 7) if symbols > 256 else ""
    return "0" + _bits(12 - 4, 4) + lengths + "0" + "0" * 256 + rest


def crowds(many: int = MANY) -> dict[str, bytes]:
    """Good pictures with very many empty parts in them, by what the parts are."""
    jpeg, png, gif, avif = small("JPEG"), small("PNG"), small("GIF"), small("AVIF")
    tables = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x0c\0\0\0" + (63).to_bytes(3, "little") * 2
    frames = b"".join(png_chunk(b"fcTL", struct.pack(">I", number) + bytes(22)) for number in range(1000))
    found = {
        "jpeg app": (jpeg, 2, b"\xff\xe5\0\x02"),
        "jpeg exif": (jpeg, 2, b"\xff\xe1\0\x08Exif\0\0"),
        "jpeg icc": (jpeg, 2, b"\xff\xe2\0\x10ICC_PROFILE\0\1\1"),
        "jpeg comments": (jpeg, 2, b"\xff\xfe\0\x02"),
        "jpeg fill": (jpeg, 2, b"\xff"),
        "jpeg junk": (jpeg, 20, b"\0"),
        "jpeg tables": (jpeg, 2, b"\xff\xdb\0\x02"),
        "gif comments": (gif, tables, b"\x21\xfe\1x\0"),
        "gif extensions": (gif, tables, b"\x21\x01\1x\0"),
        "gif zeros": (gif, tables, b"\0"),
        "png private": (png, 33, png_chunk(b"prVt")),
        "png text": (png, 33, png_chunk(b"iTXt", b"k\0\0\0\0\0x")),
        "png data": (png, png.index(b"IDAT") - 4, png_chunk(b"IDAT")),
        "avif boxes": (avif, len(avif), b"\0\0\0\x08free"),
    }
    made = {name: body[:place] + part * many + body[place:] for name, (body, place, part) in found.items()}
    made["png frames"] = png[:33] + frames * (many // 1000) + png[33:]
    made["webp chunks"] = riff(canvas, small("WEBP")[12:], b"XYZW\0\0\0\0" * many)
    made["gif sub-blocks"] = gif[:tables] + b"\x21\xfe" + b"\1x" * many + b"\0" + gif[tables:]
    return made
