"""Pictures are verified to the last frame, within bounds, and nothing else is let in."""

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageStat

from models.outcomes import ImageFormat, Reason
from models.settings import Settings
from worker.errors import PictureError
from worker.picture import inspect
from worker.webp import decode_shrunk

# Pillow warns about odd metadata in broken files; worker.picture ignores that, pytest's own filter comes first.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = Settings()
ORIENTATION = 0x0112


def draw(width: int = 96, height: int = 72, mode: str = "RGB", shift: int = 0) -> Image.Image:
    """Draw a small picture that compresses neither to nothing nor badly."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    pencil = ImageDraw.Draw(image)
    for step in range(6):
        left, top = (step * 17 + shift) % width, step * 11 % height
        pencil.ellipse(
            [left, top, left + 30, top + 22], fill=(40 * step, 250 - 30 * step, 90), outline="white"
        )
    return image.convert(mode)


def encode(image: Image.Image, name: str, frames: int = 1, **options: object) -> bytes:
    """Encode a picture, or an animation of so many frames."""
    buffer = io.BytesIO()
    if frames > 1:
        more = [draw(*image.size, image.mode, shift=7 * number) for number in range(1, frames)]
        image.save(buffer, name, save_all=True, append_images=more, **options)
    else:
        image.save(buffer, name, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Build one chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(side: int) -> bytes:
    """Build a one-bit PNG of side by side pixels whose data is never looked at: its header is enough."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(side * (1 + side // 8) // 10))
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", data), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def different_bits(left: int, right: int) -> int:
    """Count the bits in which two signed 64-bit numbers differ."""
    return ((left ^ right) & (2**64 - 1)).bit_count()


def refusal(body: bytes, settings: Settings = SETTINGS) -> Reason | None:
    """Say why the body is refused, or None when it is a picture."""
    try:
        inspect(body, settings)
    except PictureError as error:
        return error.reason
    return None


def reason_of(body: bytes, settings: Settings = SETTINGS) -> Reason:
    """Say why the body is refused, which it must be, with words for the user."""
    with pytest.raises(PictureError) as caught:
        inspect(body, settings)
    assert caught.value.detail
    return caught.value.reason


BODIES = {
    "jpeg": encode(draw(), "JPEG"),
    "jpeg-progressive": encode(draw(), "JPEG", progressive=True),
    "jpeg-grey": encode(draw(mode="L"), "JPEG"),
    "jpeg-cmyk": encode(draw(mode="CMYK"), "JPEG"),
    "jpeg-many-pictures": encode(draw(), "MPO", frames=2),
    "png": encode(draw(), "PNG"),
    "png-alpha": encode(draw(mode="RGBA"), "PNG"),
    "png-palette": encode(draw().quantize(16), "PNG"),
    "png-one-bit": encode(draw(mode="1"), "PNG"),
    "png-16-bit": encode(draw(mode="L").convert("I;16").point(lambda shade: shade * 256), "PNG"),
    "png-animated": encode(draw(), "PNG", frames=3),
    "webp": encode(draw(), "WEBP"),
    "webp-alpha": encode(draw(mode="RGBA"), "WEBP"),
    "webp-lossless": encode(draw(), "WEBP", lossless=True),
    "webp-animated": encode(draw(), "WEBP", frames=3),
    "gif": encode(draw(), "GIF"),
    "gif-animated": encode(draw(), "GIF", frames=3),
    "avif": encode(draw(), "AVIF"),
    "avif-animated": encode(draw(), "AVIF", frames=3),
}
every_body = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())


@pytest.mark.parametrize("name", BODIES)
def test_every_kind_is_described(name):
    """Format, size, digest and length come back for each stored format, animated or not, in any colours."""
    picture = inspect(BODIES[name], SETTINGS)
    assert picture.format == ImageFormat(name.partition("-")[0])
    assert (picture.width, picture.height, picture.orientation) == (96, 72, 1)
    assert picture.sha256 == hashlib.sha256(BODIES[name]).digest()
    assert picture.file_size == len(BODIES[name])
    assert -(2**63) <= picture.perceptual_hash < 2**63


def test_similar_pictures_have_similar_hashes():
    """One picture in every format and colour depth differs in few bits; another one in many."""
    hashes = {name: inspect(body, SETTINGS).perceptual_hash for name, body in BODIES.items()}
    # Dithering to one bit is a different picture at this size.
    del hashes["png-one-bit"]
    distances = {name: different_bits(value, hashes["png"]) for name, value in hashes.items()}
    assert max(distances.values()) <= 5, distances
    other = inspect(encode(draw().rotate(90, expand=True), "PNG"), SETTINGS).perceptual_hash
    assert different_bits(other, hashes["png"]) > 12


@pytest.mark.parametrize("size", [(9, 8), (5, 3), (97, 75), (300, 1)])
@pytest.mark.parametrize(
    ("mode", "lossless"), [("RGB", False), ("RGB", True), ("RGBA", False), ("RGBA", True)]
)
def test_a_shrunk_webp_is_the_whole_one_made_small(mode, lossless, size):
    """libwebp's way to a small picture leads where Pillow's leads by the whole one; alpha weighs as there."""
    drawing = draw(mode=mode)
    if mode == "RGBA":
        drawing.putalpha(draw(mode="L", shift=40))
    body = encode(drawing, "WEBP", lossless=lossless, quality=100)
    shrunk = decode_shrunk(body, size)
    assert (shrunk.width, shrunk.height) == (96, 72)
    whole = Image.open(io.BytesIO(body)).convert(mode)
    expected = whole.resize((min(96, size[0]), min(72, size[1])), Image.Resampling.BOX).convert(
        shrunk.image.mode
    )
    assert shrunk.image.size == expected.size
    assert shrunk.image.mode == ("LA" if mode == "RGBA" else "L")
    far = ImageStat.Stat(ImageChops.difference(shrunk.image.convert("RGBA"), expected.convert("RGBA"))).mean
    assert max(far) < 4, far


def test_transparency_counts_in_the_hash():
    """Two drawings that differ in their alpha channel alone have different hashes."""
    black = Image.new("RGB", (96, 72))
    hashes = set()
    for shift in (0, 40):
        drawing = black.copy()
        drawing.putalpha(draw(mode="L", shift=shift))
        hashes.add(inspect(encode(drawing, "PNG"), SETTINGS).perceptual_hash)
    assert len(hashes) == 2


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_recorded(name):
    """The EXIF orientation is kept and the size stays that of the stored pixels."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = inspect(encode(draw(), name, exif=exif), SETTINGS)
    assert (picture.width, picture.height, picture.orientation) == (96, 72, 6)


def test_broken_exif_means_orientation_one():
    """Metadata that is cut or nonsense does not make a picture corrupt."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for block in (exif.tobytes()[:12], b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"):
        assert inspect(encode(draw(), "JPEG", exif=block), SETTINGS).orientation == 1
    exif[ORIENTATION] = 77
    assert inspect(encode(draw(), "JPEG", exif=exif), SETTINGS).orientation == 1


@every_body
def test_every_cut_is_found(body):
    """A file cut at any point is refused, unless only pictures after a complete JPEG are missing."""
    step = 1 if len(body) < 3000 else 7
    ends = {*range(0, len(body), step), *range(max(0, len(body) - 64), len(body))}
    for end in sorted(ends):
        reason = refusal(body[:end])
        if reason is None:
            assert body is BODIES["jpeg-many-pictures"], f"cut at {end} of {len(body)} went unseen"
            assert end >= body.index(b"\xff\xd9") + 2
        else:
            assert reason in {Reason.CORRUPT, Reason.NOT_AN_IMAGE}


@hypothesis_settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_never_crashes(data):
    """Random bytes written anywhere give a picture or a PictureError, never another exception."""
    body = bytearray(BODIES[data.draw(st.sampled_from(sorted(BODIES)))])
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert refusal(bytes(body)) in {None, Reason.CORRUPT, Reason.NOT_AN_IMAGE, Reason.TOO_MANY_PIXELS}


@hypothesis_settings(max_examples=200, deadline=None)
@given(prefix=st.sampled_from([body[:12] for body in BODIES.values()]), rest=st.binary(max_size=200))
def test_noise_never_crashes(prefix, rest):
    """The first bytes of an image followed by noise are refused."""
    assert reason_of(prefix + rest) in {Reason.CORRUPT, Reason.NOT_AN_IMAGE, Reason.TOO_MANY_PIXELS}


@pytest.mark.parametrize("tail", [bytes(16), b"\0", b"MotionPhoto_Data" + bytes(range(256)) * 4])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "gif-animated"])
def test_harmless_tails_are_accepted(name, tail):
    """Padding or a phone's video behind a complete image does not spoil it."""
    assert inspect(BODIES[name] + tail, SETTINGS).file_size == len(BODIES[name]) + len(tail)


@pytest.mark.parametrize("tail", [b"\n<html><body>502</body></html>", b"<br />\n<b>Warning</b>: include()"])
@every_body
def test_web_page_behind_an_image_is_found(body, tail):
    """A server's error page behind a picture makes the body corrupt, whatever the format."""
    assert reason_of(body + tail) is Reason.CORRUPT


def test_cut_image_followed_by_page_is_found():
    """An image that breaks off and goes on as a web page is corrupt, however long the page is."""
    for body in BODIES.values():
        assert (
            reason_of(body[: len(body) // 2] + b"<html>" + b"sorry " * 4000 + b"</html>\n") is Reason.CORRUPT
        )


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "no such image"}', "JSON"),
        (encode(draw(), "TIFF"), "TIFF"),
        (encode(draw(), "BMP"), "BMP"),
        (encode(draw(), "ICO"), "icon"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\xff\xd8", "no known"),
        (b"hello", "no known"),
    ],
)
def test_other_things_are_not_an_image(body, word):
    """Whatever is none of the five formats is refused, and the detail says what it was."""
    with pytest.raises(PictureError, match=word) as caught:
        inspect(body, SETTINGS)
    assert caught.value.reason is Reason.NOT_AN_IMAGE


@every_body
def test_pixels_of_all_frames_count(body):
    """The bound is on the pixels of all frames together, and it is exact."""
    names = {"jpeg-many-pictures": 1}
    name = next(key for key, value in BODIES.items() if value is body)
    pixels = 96 * 72 * (3 if name.endswith("animated") else names.get(name, 1))
    assert inspect(body, Settings(image_pixels_max=pixels)).width == 96
    assert reason_of(body, Settings(image_pixels_max=pixels - 1)) is Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", [name for name in BODIES if name.endswith("animated")])
def test_frames_are_bounded(name):
    """An animation with more frames than allowed is refused."""
    assert inspect(BODIES[name], Settings(image_frames_max=3)).width == 96
    assert reason_of(BODIES[name], Settings(image_frames_max=2)) is Reason.TOO_MANY_PIXELS


def test_wrong_png_checksum_is_found():
    """Pixels that do not match their checksum are found even where they decode."""
    body = bytearray(BODIES["png"])
    start = body.index(b"IDAT")
    length = int.from_bytes(body[start - 4 : start], "big")
    body[start + 4 + length] ^= 1
    assert reason_of(bytes(body)) is Reason.CORRUPT


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iCCP", b"gAMA", b"pHYs", b"sRGB", b"eXIf", b"prVt"])
def test_what_makes_no_pixels_spoils_no_picture(kind):
    """A PNG with an ancillary chunk that is cut, odd or has a wrong checksum is shown by every viewer."""
    body = BODIES["png"]
    wrong_checksum = png_chunk(kind, b"k\0" + bytes(30))[:-4] + bytes(4)
    for chunk in (wrong_checksum, png_chunk(kind, b""), png_chunk(kind, b"k\0\x09x")):
        for place in (33, len(body) - 12):
            assert inspect(body[:place] + chunk + body[place:], SETTINGS).width == 96


def test_long_words_spoil_no_picture():
    """A colour profile or a history of edits of three megabytes is honest."""
    for kind in (b"iCCP", b"zTXt"):
        chunk = png_chunk(kind, b"k\0\0" + zlib.compress(bytes(3_000_000)))
        assert inspect(BODIES["png"][:33] + chunk + BODIES["png"][33:], SETTINGS).width == 96


def test_broken_later_frame_is_found():
    """An animation whose first frame is fine and whose last one cannot be decoded is corrupt."""
    body = BODIES["png-animated"]
    start = body.rindex(b"fdAT")
    length = int.from_bytes(body[start - 4 : start], "big")
    broken = png_chunk(b"fdAT", body[start + 4 : start + 8] + bytes(length - 4))
    assert reason_of(body[: start - 4] + broken + body[start + 8 + length :]) is Reason.CORRUPT


def test_endless_progressive_jpeg_is_refused():
    """A progressive JPEG with thousands of scans is refused before it costs minutes."""
    body = BODIES["jpeg-progressive"]
    scan = body.rindex(b"\xff\xda")
    assert reason_of(body[:scan] + body[scan:-2] * 600 + body[-2:]) is Reason.TOO_MANY_PIXELS


def liar(name: str, side: int) -> bytes:
    """Return a body whose header claims side by side pixels."""
    body = bytearray(BODIES[name])
    if name == "jpeg":
        struct.pack_into(">HH", body, body.index(b"\xff\xc0") + 5, side, side)
    elif name == "gif":
        struct.pack_into("<HH", body, 6, side, side)
    elif name == "webp":
        struct.pack_into("<HH", body, 26, 16383, 16383)
    elif name == "webp-animated":
        body[24:30] = (16383).to_bytes(3, "little") * 2
    else:
        struct.pack_into(">II", body, body.index(b"ispe") + 8, side, side)
    return bytes(body)


@pytest.mark.parametrize("name", ["jpeg", "gif", "webp", "webp-animated", "avif"])
def test_claimed_size_is_refused_from_the_header(name):
    """A header that claims a gigapixel is refused in every format."""
    assert reason_of(liar(name, 30_000)) is Reason.TOO_MANY_PIXELS


def test_bombs_cost_little_memory(tmp_path):
    """A process that may use 60 MB more than at its start refuses every bomb, and does not run out."""
    paths = []
    for name in ("jpeg", "gif", "webp", "webp-animated", "avif"):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(liar(name, 30_000))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of_zeros(30_000))
    assert bomb.stat().st_size < 200_000
    program = """
import pathlib, resource, sys
from models.settings import Settings
from worker.errors import PictureError
from worker.picture import inspect
from worker.webp import decode_shrunk
settings = Settings()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        inspect(pathlib.Path(path).read_bytes(), settings)
    except PictureError as error:
        print(error.reason)
scale = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale // 2**20)
"""
    command = [sys.executable, "-c", program, str(bomb), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *reasons, megabytes = result.stdout.split()
    assert reasons == [Reason.TOO_MANY_PIXELS] * 6
    assert int(megabytes) < 60


def test_threads_agree():
    """Many threads at once give what one thread gives."""
    bodies = list(BODIES.values()) * 3
    alone = [inspect(body, SETTINGS) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda body: inspect(body, SETTINGS), bodies)) == alone
