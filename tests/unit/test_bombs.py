"""Bombs are refused from the header: pixels, scans, memory, parts. And nothing but PictureError ever comes out."""

import contextlib
import functools
import random
import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image

from models.outcomes import Reason
from models.settings import Settings
from tests.support.bombs import (
    baseline_of_scans,
    code_tables_webp,
    crowds,
    encode,
    flat,
    flat_png,
    lying_avif,
    png_chunk,
    small,
)
from tests.unit.test_picture import BODIES, png_of_zeros, reason_of
from worker.container import JPEG_SCANS_MAX, PARTS_MAX, read_container
from worker.errors import PictureError
from worker.picture import HASH_SIZE, JPEG_PASSES_MAX, difference_hash, inspect

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = Settings()
MEGABYTE = 1024 * 1024
MUTATIONS = 6000
# Half transparent.
BLURRED = Image.merge("LA", [Image.linear_gradient("L").resize((64, 64))] * 2).convert("RGBA")

crowd = functools.cache(crowds)


@pytest.mark.parametrize("name", crowds(1))
def test_a_crowd_of_parts_is_refused_at_once(name):
    """A file of a million empty parts is corrupt before the decoder makes objects of them; of a few it is good."""
    assert inspect(crowds(2)[name], SETTINGS).width == 64
    started = time.process_time()
    assert reason_of(crowd()[name]) is Reason.CORRUPT
    assert time.process_time() - started < 1
    with pytest.raises(PictureError, match=f"more than {PARTS_MAX} parts"):
        inspect(crowd()[name], SETTINGS)


def test_scans_are_counted_in_every_jpeg():
    """Sequential scans count like progressive ones: by themselves, and together with the pixels they walk."""
    assert reason_of(baseline_of_scans(64, JPEG_SCANS_MAX + 1)) is Reason.TOO_MANY_PIXELS
    assert inspect(baseline_of_scans(64, JPEG_SCANS_MAX), SETTINGS).width == 64
    pixels = Settings(image_pixels_max=10_000)
    assert inspect(baseline_of_scans(96, JPEG_PASSES_MAX), pixels).width == 96
    assert reason_of(baseline_of_scans(96, JPEG_PASSES_MAX + 2), pixels) is Reason.TOO_MANY_PIXELS
    started = time.process_time()
    assert reason_of(baseline_of_scans(7000, 2_000_000)) is Reason.TOO_MANY_PIXELS
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("body", "scans", "decoding_bytes"),
    [
        (small("JPEG"), 1, 0),
        (small("JPEG", progressive=True, subsampling=0), 10, 64 * 64 * 3 * 2),
        (small("JPEG", progressive=True, subsampling=2), 10, 64 * 64 * 3 // 2 * 2),
        (encode(Image.new("L", (65, 63)), "JPEG", progressive=True), 6, 72 * 64 * 2),
        (encode(Image.new("CMYK", (64, 64)), "JPEG"), 1, 0),
        (flat_png(64), 1, 64 * (64 * 5 + 16 + 20)),
        (small("WEBP"), 1, 64 * 96),
        (small("WEBP", lossless=True), 1, 64 * (64 * 5 + 96)),
        (encode(BLURRED, "WEBP"), 1, 64 * (64 * 3 + 96)),
        (encode(BLURRED, "WEBP", save_all=True, append_images=[BLURRED.rotate(90)]), 1, 64 * (64 * 20 + 96)),
        (small("AVIF"), 1, 64 * 64 * 16),
    ],
)
def test_the_cost_is_read_from_the_header(body, scans, decoding_bytes):
    """Scans and memory are known before a pixel is decoded."""
    container = read_container(body)
    assert (container.scans, container.decoding_bytes) == (scans, decoding_bytes)
    assert (container.width, container.height) in {(64, 64), (65, 63)}


@pytest.mark.parametrize(
    "body",
    [
        flat_png(1900),
        flat("WEBP", 1900, lossless=True),
        flat("AVIF", 1100, speed=10),
        flat("JPEG", 2400, progressive=True, subsampling=2),
        baseline_of_scans(1700, 3),
    ],
    ids=["png", "webp", "avif", "progressive", "scans"],
)
def test_what_would_take_too_much_memory_is_refused(body):
    """Decoding that would take more than decode_bytes_max does not begin, and the detail says so."""
    tight = Settings(decode_bytes_max=16 * MEGABYTE)
    with pytest.raises(PictureError, match=r"takes \d+ bytes; at most 16777216 are given") as caught:
        inspect(body, tight)
    assert caught.value.reason is Reason.TOO_MANY_PIXELS
    assert inspect(body, SETTINGS).width > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel bounds what is asked for")
@pytest.mark.parametrize("name", ["AVIF", "WEBP"])
def test_what_takes_more_than_it_says_gets_no_memory(name, tmp_path):
    """An AVIF's decoder goes by other boxes, a WebP may have 65,536 code tables: the kernel bounds what they take,
    and lets go again.
    """
    (tmp_path / "lying").write_bytes(lying_avif(4500) if name == "AVIF" else code_tables_webp(1024))
    (tmp_path / "good").write_bytes(encode(BLURRED, name))
    program = """
import pathlib, sys
from models.settings import Settings
from worker.errors import PictureError
from worker.picture import inspect
settings = Settings(decode_bytes_max=16 * 1024 * 1024)
for path in sys.argv[1:]:
    try:
        print(inspect(pathlib.Path(path).read_bytes(), settings).width)
    except PictureError as error:
        print(error.reason)
    bytearray(200_000_000)
"""
    command = [sys.executable, "-c", program, tmp_path / "lying", tmp_path / "good"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["corrupt", "64"]


def test_compressed_text_is_bounded():
    """A gigabyte of text or of colour profile in a PNG is refused, and a little of it is not."""
    body = small("PNG")
    for size, reason in ((1000, None), (50_000_000, Reason.CORRUPT)):
        data = zlib.compress(bytes(size), 9)
        for chunk in (b"zTXt", b"iCCP"):
            bomb = body[:33] + png_chunk(chunk, b"k\0\0" + data) + body[33:]
            assert (reason_of(bomb) if reason else inspect(bomb, SETTINGS).width) == (reason or 64)
    many = b"".join(png_chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(900_000))) for n in range(30))
    assert reason_of(body[:33] + many + body[33:]) is Reason.CORRUPT


@pytest.mark.parametrize(
    ("width", "height"), [(1, 50_000_000), (50_000_000, 1), (25_000_000, 2), (4, 12_500_000)]
)
@pytest.mark.parametrize(("depth", "colours"), [(1, 0), (8, 0), (8, 2), (8, 6), (16, 0)])
def test_thin_pictures_cost_more_than_their_pixels(width, height, depth, colours):
    """A PNG of a single row or column within the bound of pixels is refused: its rows took 850 MB."""
    body = bytearray(small("PNG"))
    body[8:33] = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    with pytest.raises(PictureError, match=r"takes \d+ bytes") as caught:
        inspect(bytes(body), SETTINGS)
    assert caught.value.reason is Reason.TOO_MANY_PIXELS


def test_a_png_has_one_header():
    """A second header, which Pillow would believe, makes it corrupt."""
    body = BODIES["png"]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 6, 0, 0, 0))
    with pytest.raises(PictureError, match="a PNG with two headers"):
        inspect(body[:33] + header + body[33:], SETTINGS)


@pytest.mark.parametrize("kind", [b"\xff\xc3", b"\xff\xc5", b"\xff\xcb", b"\xff\xcf"])
def test_rare_kinds_of_jpeg_are_no_picture(kind):
    """Lossless and hierarchical JPEGs, which no browser shows, are corrupt."""
    assert reason_of(BODIES["jpeg"].replace(b"\xff\xc0", kind, 1)) is Reason.CORRUPT


def test_polyglots_are_pictures_or_nothing():
    """What is a picture and something else is described as the picture, or refused; its bytes stay as they are."""
    archive = b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18)
    for name in ("jpeg", "png", "gif", "webp"):
        assert inspect(BODIES[name] + archive, SETTINGS).format.value == name
    script = b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)"
    for body in (archive + BODIES["jpeg"], b"%PDF-1.7\n" + BODIES["jpeg"], script, b"<svg>" + BODIES["png"]):
        assert reason_of(body) in {Reason.NOT_AN_IMAGE, Reason.CORRUPT}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_strips_change_no_hash(mode):
    """The hash of a large picture, made strip by strip, is what the whole at once would give."""
    chance = random.Random(5)
    for width, height in ((1, 1), (7, 300), (300, 7), (157, 211), (64, 64), (500, 333)):
        whole = Image.frombytes("RGBA", (width, height), chance.randbytes(width * height * 4))
        image = whole.convert("RGB").quantize(16) if mode == "P" else whole
        if mode == "I;16":
            image = Image.frombytes("I;16", (width, height), chance.randbytes(width * height * 2))
        elif mode != "P":
            image = whole.convert(mode)
        for transparent in (False, True):
            if transparent and mode == "P":
                image.info["transparency"] = bytes(range(0, 256, 16))
            assert difference_hash(image) == hash_at_once(image)


def hash_at_once(image: Image.Image) -> int:
    """The definition: grey or composed on white, shrunk to 9 by 8, neighbours compared."""
    if image.mode.startswith("I"):
        image = image.point(lambda shade: shade / 256)
    if image.has_transparency_data:
        shrunk = image.convert("RGBA").resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=2.0)
        image = Image.alpha_composite(Image.new("RGBA", HASH_SIZE, "white"), shrunk)
    elif image.mode in {"1", "P", "I;16", "I"}:
        image = image.convert("L")
    pixels = image.resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=2.0).convert("L").tobytes()
    bits = [pixels[row * 9 + left] < pixels[row * 9 + left + 1] for row in range(8) for left in range(8)]
    number = int("".join(str(int(bit)) for bit in bits), 2)
    return number - (1 << 64) if number >> 63 else number


def mutated(body: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """A picture with some bytes changed, repeated, left out or taken from another one, mostly in its header."""
    changed = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(changed) if chance.random() < 0.5 else min(len(changed), 400))
        size = chance.randrange(64)
        match chance.randrange(5):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                changed[place] ^= 1 << chance.randrange(8)
            case 2:
                extreme = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
                changed[place : place + 4] = extreme
            case 3:
                del changed[place : place + size]
            case 4:
                other = chance.choice(others)
                start = chance.randrange(len(other))
                changed[place : place + chance.choice((0, size))] = other[start : start + size]
        changed = changed or bytearray(b"x")
    return bytes(changed)


def with_checksums(body: bytes) -> bytes:
    """A PNG whose checksums fit whatever it is now, so that damage reaches the decoder."""
    changed, position = bytearray(body), 8
    while position + 8 <= len(changed):
        end = position + 8 + int.from_bytes(changed[position : position + 4], "big")
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[position + 4 : end]))
        position = end + 4
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_gets_past_the_door(seed):
    """Thousands of broken pictures of all formats are described or refused: no other exception, none slowly."""
    chance, names, bodies = random.Random(seed), sorted(BODIES), list(BODIES.values())
    modest = Settings(image_pixels_max=4_000_000)
    for _ in range(MUTATIONS // 3):
        name = chance.choice(names)
        body = mutated(BODIES[name], chance, bodies)
        if name.startswith("png") and chance.random() < 0.8 and len(body) < 100_000:
            body = with_checksums(body)
        started = time.process_time()
        with contextlib.suppress(PictureError):
            assert inspect(body, modest).file_size == len(body)
        assert time.process_time() - started < 2


def test_no_cut_of_a_bomb_gets_past_the_door():
    """Bombs that are cut as well are refused the same way."""
    bombs = [png_of_zeros(20_000), baseline_of_scans(7000, 600), lying_avif(2000), *crowds(200).values()]
    for bomb in bombs:
        for end in (len(bomb) // 4, len(bomb) // 2, len(bomb) - 1):
            with pytest.raises(PictureError):
                inspect(bomb[:end], SETTINGS)
