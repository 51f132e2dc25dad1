"""What is read from a header alone equals what decoding finds, and a broken file does not pass for a whole one."""

import hashlib
import io
import struct
import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from models.outcomes import ImageFormat, Reason, Verification
from models.settings import Settings
from tests.unit.test_picture import BODIES, ORIENTATION, SETTINGS, draw, encode, liar, png_chunk, reason_of
from worker.container import read_container
from worker.errors import PictureError
from worker.header import read_header
from worker.picture import Picture, inspect

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "RGBA", "L", "1"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["RGB", "L"],
    "AVIF": ["RGB", "RGBA"],
}
OPTIONS = {"JPEG": ["progressive", "optimize"], "WEBP": ["lossless"], "PNG": ["default_image"]}


def read(body: bytes, settings: Settings = SETTINGS) -> Picture:
    """What the header level says."""
    return inspect(body, settings, Verification.HEADER)


def refusal(body: bytes, settings: Settings = SETTINGS) -> Reason | None:
    """Why the header level refuses a body, or None."""
    try:
        read(body, settings)
    except PictureError as error:
        return error.reason
    return None


def described(picture: Picture) -> tuple[object, ...]:
    """All that both levels know."""
    return (
        picture.format,
        picture.width,
        picture.height,
        picture.orientation,
        picture.sha256,
        picture.file_size,
    )


def frames_of(body: bytes) -> int:
    """Frames that the decoder counts."""
    with Image.open(io.BytesIO(body)) as image:
        return getattr(image, "n_frames", 1)


@hypothesis_settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_header_says_what_decoding_finds(data):
    """Format, size, orientation, digest and frames are equal for pictures of every format, however encoded."""
    name = data.draw(st.sampled_from(sorted(MODES)))
    side = st.integers(1, 90)
    image = draw(data.draw(side), data.draw(side), data.draw(st.sampled_from(MODES[name])))
    frames = 1 if name == "JPEG" else data.draw(st.integers(1, 3))
    options: dict[str, object] = {
        option: True for option in OPTIONS.get(name, []) if data.draw(st.booleans(), label=option)
    }
    if frames == 1 or name != "PNG":
        options.pop("default_image", None)
    orientation = data.draw(st.integers(0, 8), label="orientation")
    # Pillow's encoder of animated AVIF dies of an orientation.
    if orientation and name != "GIF" and (name, frames > 1) != ("AVIF", True):
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    body = encode(image, name, frames, **options)
    assert described(read(body)) == described(inspect(body, SETTINGS))
    if name != "JPEG":
        assert read_header(body, read_container(body)).frames == frames_of(body)


@pytest.mark.parametrize("name", BODIES)
def test_every_kind_is_read(name):
    """Each kind of file is described without a pixel: there is no perceptual hash."""
    assert described(read(BODIES[name])) == described(inspect(BODIES[name], SETTINGS))
    assert read(BODIES[name]).perceptual_hash is None


@pytest.mark.parametrize("name", BODIES)
def test_every_cut_is_found(name):
    """A file cut at any point is refused, unless only pictures after a complete JPEG are missing."""
    body = BODIES[name]
    for end in range(len(body)):
        if refusal(body[:end]) is None:
            assert name == "jpeg-many-pictures", f"cut at {end} of {len(body)} went unseen"
            assert end >= body.index(b"\xff\xd9") + 2


def test_a_thumbnail_does_not_end_its_picture():
    """A JPEG that breaks off behind the end of its own thumbnail is corrupt."""
    thumbnail = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + encode(draw(16, 12), "JPEG")
    body = BODIES["jpeg"]
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    whole = body[:2] + segment + body[2:]
    assert described(read(whole)) == described(inspect(whole, SETTINGS))
    assert refusal(whole[:-40]) is Reason.CORRUPT


def test_an_open_ended_avif_is_held_to_its_items():
    """An AVIF whose last box has no length is whole, and corrupt as soon as one byte of it is missing."""
    body = bytearray(BODIES["avif"])
    start = body.index(b"mdat")
    body[start - 4 : start] = bytes(4)
    assert described(read(bytes(body))) == described(inspect(bytes(body), SETTINGS))
    assert refusal(bytes(body[:-1])) is Reason.CORRUPT


def test_a_gif_frame_over_the_edge_counts():
    """A first frame that is larger than its screen gives the picture its size, as in the decoder."""
    body = bytearray(BODIES["gif"])
    struct.pack_into("<HH", body, 6, 10, 10)
    picture = read(bytes(body))
    assert (picture.width, picture.height) == (96, 72)
    assert described(picture) == described(inspect(bytes(body), SETTINGS))


def _with_chunks(*chunks: bytes) -> bytes:
    """A still PNG with chunks behind its header."""
    body = encode(draw(20, 10), "PNG")
    return body[:33] + b"".join(chunks) + body[33:]


ONE_FRAME = png_chunk(b"acTL", struct.pack(">II", 1, 0))
SPOILT = {
    "wrong checksum": (ONE_FRAME[:-1] + b"\0", Reason.CORRUPT),
    "short": (png_chunk(b"acTL", b"\0\0\0\1"), Reason.CORRUPT),
    "short frame header": (ONE_FRAME + png_chunk(b"fcTL", bytes(25)), Reason.CORRUPT),
    "frame header with a wrong checksum": (
        ONE_FRAME + png_chunk(b"fcTL", bytes(26))[:-1] + b"\1",
        Reason.CORRUPT,
    ),
    "no frames": (png_chunk(b"acTL", bytes(8)), None),
    "more frames than there can be": (png_chunk(b"acTL", b"\xff" * 8), None),
    "twice": (ONE_FRAME + png_chunk(b"acTL", struct.pack(">II", 9000, 0)), None),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_png_that_miscounts_its_frames_is_the_same_for_both_levels(name):
    """Both refuse a broken count, and both take one that counts nothing, or comes twice, for none."""
    spoilt, reason = SPOILT[name]
    body = _with_chunks(spoilt)
    assert refusal(body) is reason
    if reason is None:
        assert described(read(body)) == described(inspect(body, SETTINGS))
    else:
        assert reason_of(body) is reason


def test_a_picture_that_only_decoding_refuses_passes():
    """Whole chunks with right checksums around nonsense: full says corrupt, header cannot know."""
    body = BODIES["png"]
    start = body.index(b"IDAT") - 4
    length = int.from_bytes(body[start : start + 4], "big")
    garbled = body[:start] + png_chunk(b"IDAT", bytes(length)) + body[start + 12 + length :]
    with pytest.raises(PictureError):
        inspect(garbled, SETTINGS)
    assert (read(garbled).width, read(garbled).height) == (96, 72)


@pytest.mark.parametrize("name", ["jpeg", "gif", "webp", "webp-animated", "avif"])
def test_bounds_hold(name):
    """A header that claims a gigapixel is refused, and so is one frame too many."""
    assert refusal(liar(name, 30_000)) is Reason.TOO_MANY_PIXELS
    for kind in ("png-animated", "webp-animated", "gif-animated", "avif-animated"):
        assert refusal(BODIES[kind], Settings(image_frames_max=2)) is Reason.TOO_MANY_PIXELS


@hypothesis_settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_damage_never_crashes(data):
    """Random bytes written anywhere give a picture or a PictureError, never another exception."""
    body = bytearray(BODIES[data.draw(st.sampled_from(sorted(BODIES)))])
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert refusal(bytes(body)) in {None, Reason.CORRUPT, Reason.NOT_AN_IMAGE, Reason.TOO_MANY_PIXELS}


def iloc(version: int, items: int, extents: int) -> bytes:
    """An AVIF's own places of its items, replaced by so many that take no room in the file."""
    places = bytes([version, 0, 0, 0, 0, 0]) + items.to_bytes(4 if version == 2 else 2, "big")
    places += b"".join(
        number.to_bytes(4, "big") + bytes(4) + extents.to_bytes(2, "big") for number in range(3000)
    )
    body = BODIES["avif"]
    start = body.index(b"iloc")
    length = int.from_bytes(body[start - 4 : start], "big")
    grown = len(places) + 8 - length
    meta = body.index(b"meta") - 4
    size = (int.from_bytes(body[meta : meta + 4], "big") + grown).to_bytes(4, "big")
    box = (len(places) + 8).to_bytes(4, "big") + b"iloc" + places
    return body[:meta] + size + body[meta + 4 : start - 4] + box + body[start - 4 + length :]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8\xff" + b"\0" * 20_000_000 + b"\xff\xd9",
        b"\xff\xd8" + b"\xff" * 20_000_000 + b"\xd9",
        b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000 + b"\xff\xd9",
        iloc(2, 2**32 - 1, 2**16 - 1),
        BODIES["avif"][:40] + b"\0\0\0\x08free" * 1_000_000,
    ],
    ids=["zeros", "padding", "segments", "places", "boxes"],
)
def test_no_header_costs_time(body):
    """Twenty megabytes that are all header, or that claim billions of entries, are refused in a moment."""
    started = time.process_time()
    assert refusal(body) is not None
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", BODIES)
def test_none_goes_by_the_first_bytes(name):
    """Without verification a cut file passes: what is known of it is its format, its digest and its length."""
    cut = BODIES[name][:40]
    picture = inspect(cut, SETTINGS, Verification.NONE)
    kind = ImageFormat(name.partition("-")[0])
    digest = hashlib.sha256(cut).digest()
    assert picture == Picture(kind, None, None, None, digest, None, 40)


@pytest.mark.parametrize("level", Verification)
def test_a_page_is_never_an_image(level):
    """No level takes what does not even begin as an image."""
    with pytest.raises(PictureError) as caught:
        inspect(b"<html>404</html>", SETTINGS, level)
    assert caught.value.reason is Reason.NOT_AN_IMAGE
