"""The image set of the benchmark: made once, the same everywhere, kept in the cache folder. It never downloads."""

import io
import os
import random
import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin

VERSION = 1
"""Part of the folder's name: count it up when the pictures change."""
SEED = 20_000
SOURCES_MAX = 400
"""Pictures that are drawn and encoded; the others differ from them in their comment only."""
COMMENT = b"pixtrawl benchmark %08d"
UNNUMBERED = COMMENT % 0

WIDTHS = (240, 1024)
PNG_WIDTHS = (240, 480)
SHAPES = (0.6, 1.1)
# Edge length of a spot in pixels, and its weight: a photograph has most of its contrast in large shapes. The
# finest grain, in grey, sets the size of the file.
COLOURED_SPOTS = ((160, 0.9), (60, 0.45), (20, 0.3))
GREY_SPOTS = ((7, 0.15), (3, 0.065), (1, 0.044))


def make_pictures(cache: Path, count: int) -> Path:
    """Return the folder with ``count`` pictures of distinct bytes: 85 % JPEG, 10 % WebP, 5 % PNG, 75 kB each on
    average. A folder that is there already is reused.
    """
    folder = cache / f"pictures-{VERSION}-{count}"
    if folder.is_dir():
        return folder
    unfinished = folder.with_suffix(f".{os.getpid()}")
    unfinished.mkdir(parents=True)
    sources = min(SOURCES_MAX, count)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write_variants, unfinished, sources, count), range(sources), chunksize=4))
    unfinished.rename(folder)
    return folder


def write_variants(folder: Path, sources: int, count: int, source: int) -> None:
    """Draw one picture and write it under every number that falls to it."""
    extension, body = encode(source)
    for number in range(source, count, sources):
        (folder / f"{number:06d}.{extension}").write_bytes(renumber(body, extension, number))


def encode(source: int) -> tuple[str, bytes]:
    """One picture as a file: its extension and its bytes. Every twentieth is a PNG, two of twenty are WebP."""
    chance = random.Random(SEED + source)
    kind = source % 20
    width = chance.randint(*(PNG_WIDTHS if kind == 0 else WIDTHS))
    image = photograph(chance, width, int(width * chance.uniform(*SHAPES)))
    buffer = io.BytesIO()
    if kind == 0:
        comments = PngImagePlugin.PngInfo()
        comments.add_text("Comment", UNNUMBERED.decode())
        image.quantize(64).save(buffer, "PNG", pnginfo=comments)
        return "png", buffer.getvalue()
    if kind in {7, 14}:
        image.save(buffer, "WEBP", quality=chance.choice((80, 85, 90)), method=2, xmp=UNNUMBERED)
        return "webp", buffer.getvalue()
    quality = chance.choice((82, 86, 90, 92))
    image.save(buffer, "JPEG", quality=quality, comment=UNNUMBERED, progressive=chance.random() < 0.1)
    return "jpg", buffer.getvalue()


def photograph(chance: random.Random, width: int, height: int) -> Image.Image:
    """Spots of many sizes over one another: to an encoder this is much like a photograph."""
    image = Image.new("RGB", (width, height), "grey")
    for mode, spots in (("RGB", COLOURED_SPOTS), ("L", GREY_SPOTS)):
        for edge, weight in spots:
            size = (width // edge + 2, height // edge + 2)
            noise = Image.frombytes(mode, size, chance.randbytes(size[0] * size[1] * len(mode)))
            layer = noise.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
            image = Image.blend(image, layer, weight)
    return image


def renumber(body: bytes, extension: str, number: int) -> bytes:
    """The same picture with another number in its comment, so that its sha256 is another one."""
    start = body.index(UNNUMBERED)
    end = start + len(UNNUMBERED)
    numbered = body[:start] + COMMENT % number + body[end:]
    if extension != "png":
        return numbered
    # A PNG chunk ends with a checksum over its kind, four bytes, and its content.
    chunk = numbered.rindex(b"tEXt", 0, start)
    return numbered[:end] + struct.pack(">I", zlib.crc32(numbered[chunk:end])) + numbered[end + 4 :]
