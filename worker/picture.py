"""One body becomes a verified Picture: every frame decoded within bounds, sha256, perceptual hash, orientation;
or less of it, where its job asks for less.

Must never open a format outside ImageFormat, nor allocate pixels before their number was checked.
Thread-safe; Pillow and hashlib release the interpreter lock while they work.
"""

import contextlib
import hashlib
import io
import operator
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from models.outcomes import ImageFormat, Reason, Verification
from models.settings import Settings
from worker.container import JPEG_SCANS_MAX, Container, read_container, tell_format
from worker.errors import PictureError
from worker.header import exif_orientation, read_header
from worker.memory import bounded_memory
from worker.png import PngChunks
from worker.webp import decode_shrunk

# The allow-list is a class per format rather than Image.open(formats=…): the same decoders, without the step
# that turns a JPEG into an MPO and refuses good pictures whose list of further pictures is out of date.
DECODERS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    ImageFormat.JPEG: JpegImagePlugin.JpegImageFile,
    ImageFormat.PNG: PngImagePlugin.PngImageFile,
    ImageFormat.WEBP: WebPImagePlugin.WebPImageFile,
    ImageFormat.GIF: GifImagePlugin.GifImageFile,
    ImageFormat.AVIF: AvifImagePlugin.AvifImageFile,
}

# What Pillow's decoders were seen to raise for broken files; a cut AVIF is a SyntaxError, for example.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)

# The decoder shrinks a JPEG by 1, 2, 4 or 8, and leaves at least four pixels for each pixel of the hash.
DRAFT_SIZE = (36, 32)
HASH_SIZE = (9, 8)
_DIGITS = bytes.maketrans(b"\0\1", b"01")

# A JPEG of several scans may be walked so often as is twenty times for the largest picture accepted: three seconds.
JPEG_PASSES_MAX = 20
# What an event loop may stand still for: a JPEG or a lossy WebP of so many bytes that walks over so many pixels
# takes 35 milliseconds at most, one of 75 kB one or five, and a tenth of a second if it is nothing but segments.
QUICK_BYTES_MAX = 256 * 1024
QUICK_PIXELS_MAX = 8_000_000
# Pictures are converted for the hash in strips of so many rows: a copy of the whole would double the memory.
STRIP_ROWS = 64
# While an AVIF is decoded under a limit, the other threads of a child may take this much: all that transfers may.
OTHERS_BYTES = 48 * 1024 * 1024
# Pillow's PNG decoder has no other way in.
PngImagePlugin.PngStream = PngChunks  # type: ignore[misc]
# The children of a worker fill the cores already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Pillow's own guard against bombs stays on as the second one, and must not end as a line in a log.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Pillow warns about odd metadata that has no part in what is stored.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A verified image. Sizes are stored pixels, before ``orientation`` (EXIF, 1 to 8) is applied, and bytes.

    ``sha256`` has 32 bytes. ``perceptual_hash`` is a dHash, signed: similar pictures differ in few bits. None: not
    looked at.
    """

    format: ImageFormat
    width: int | None
    height: int | None
    orientation: int | None
    sha256: bytes
    perceptual_hash: int | None
    file_size: int


class ElsewhereError(Exception):
    """Must be decoded elsewhere: it takes more memory or time than it is given here, or failed where that says
    nothing. ``decoding_bytes`` is the memory that it takes, as the header tells.
    """

    def __init__(self, decoding_bytes: int) -> None:
        super().__init__(f"decoding takes {decoding_bytes} bytes")
        self.decoding_bytes = decoding_bytes


def inspect(
    body: bytes,
    settings: Settings,
    verification: Verification = Verification.FULL,
    *,
    here_bytes_max: int | None = None,
    quickly: bool = False,
) -> Picture:
    """Look at ``body`` as closely as ``verification`` says, and describe it.

    Raises PictureError: NOT_AN_IMAGE, CORRUPT, or TOO_MANY_PIXELS by ``image_pixels_max`` (all frames
    together), ``image_frames_max`` and ``decode_bytes_max``, which are checked before anything is decoded.
    ElsewhereError when that passes and decoding would take more than ``here_bytes_max``; with ``quickly`` also when
    it may take longer than an event loop may stand still, or fails.
    """
    if quickly and len(body) > QUICK_BYTES_MAX:
        raise ElsewhereError(0)
    if verification is Verification.NONE:
        digest = hashlib.sha256(body).digest()
        return Picture(tell_format(body), None, None, None, digest, None, len(body))
    container = read_container(body)
    _check_bounds(container.width, container.height, container.frames, settings)
    if verification is Verification.HEADER:
        return _read(body, container, settings)
    _check_cost(container, settings)
    if here_bytes_max is not None and container.decoding_bytes > here_bytes_max:
        raise ElsewhereError(container.decoding_bytes)
    if quickly and (container.may_lie or not container.shrinks or _walked(container) > QUICK_PIXELS_MAX):
        raise ElsewhereError(container.decoding_bytes)
    Image.MAX_IMAGE_PIXELS = settings.image_pixels_max
    limit_bytes = settings.decode_bytes_max if here_bytes_max is None else here_bytes_max + OTHERS_BYTES
    try:
        with bounded_memory(limit_bytes) if container.may_lie else contextlib.nullcontext():
            return _decode(body, container, settings)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(Reason.TOO_MANY_PIXELS, str(error)) from None
    except DECODER_ERRORS as error:
        if quickly or (container.may_lie and here_bytes_max is not None):
            # It may be broken, larger than it says, or have met a limit of memory meant for another thread.
            raise ElsewhereError(settings.decode_bytes_max) from None
        detail = str(error) or type(error).__name__
        raise PictureError(Reason.CORRUPT, f"{container.format} cannot be decoded: {detail}") from None


def decoding_bytes(body: bytes, verification: Verification) -> int:
    """How much memory a look at ``body`` takes, as its header tells; 0 for what is no picture."""
    if verification is not Verification.FULL:
        return 0
    try:
        return read_container(body).decoding_bytes
    except PictureError:
        return 0


def _read(body: bytes, container: Container, settings: Settings) -> Picture:
    header = read_header(body, container)
    _check_bounds(header.width, header.height, header.frames, settings)
    digest = hashlib.sha256(body).digest()
    return Picture(container.format, header.width, header.height, header.orientation, digest, None, len(body))


def _check_bounds(width: int, height: int, frames: int, settings: Settings) -> None:
    if frames > settings.image_frames_max:
        detail = f"{frames} frames; at most {settings.image_frames_max} are accepted"
        raise PictureError(Reason.TOO_MANY_PIXELS, detail)
    if width * height * max(1, frames) > settings.image_pixels_max:
        detail = (
            f"{width} by {height} pixels in {max(1, frames)} frame(s); at most {settings.image_pixels_max}"
        )
        raise PictureError(Reason.TOO_MANY_PIXELS, detail)


def _check_cost(container: Container, settings: Settings) -> None:
    """Refuse from the header what would take too much memory or time, though its pixels are few enough."""
    if container.decoding_bytes > settings.decode_bytes_max:
        detail = (
            f"decoding {container.width} by {container.height} pixels of {container.format} takes "
            f"{container.decoding_bytes} bytes; at most {settings.decode_bytes_max} are given"
        )
        raise PictureError(Reason.TOO_MANY_PIXELS, detail)
    if container.scans > JPEG_SCANS_MAX or _walked(container) > JPEG_PASSES_MAX * settings.image_pixels_max:
        detail = f"a JPEG of {container.scans} scans of {container.width} by {container.height} pixels"
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{detail}; so many are not accepted")


def _walked(container: Container) -> int:
    """Pixels that the decoder walks over, as often as it does."""
    return container.scans * container.width * container.height


def _decode(body: bytes, container: Container, settings: Settings) -> Picture:
    if container.format is ImageFormat.WEBP and container.shrinks:
        shrunk = decode_shrunk(body, HASH_SIZE)
        width, height, perceptual_hash = shrunk.width, shrunk.height, difference_hash(shrunk.image)
        orientation = read_header(body, container).orientation
    else:
        width, height, perceptual_hash, orientation = _decode_by_pillow(body, container, settings)
    digest = hashlib.sha256(body).digest()
    return Picture(container.format, width, height, orientation, digest, perceptual_hash, len(body))


def _decode_by_pillow(body: bytes, container: Container, settings: Settings) -> tuple[int, int, int, int]:
    """Decode every frame. Width, height, perceptual hash, orientation."""
    with DECODERS[container.format](io.BytesIO(body)) as image:
        frames = container.frames or int(getattr(image, "n_frames", 1))
        _check_bounds(image.width, image.height, frames, settings)
        width, height = image.size
        if container.shrinks:
            # Every coefficient is still read, so that a cut file is found; only the inverse transform shrinks.
            image.draft("L", DRAFT_SIZE)
            # In one piece: where a piece ends libjpeg steps back, and goes on with its slower half.
            image.decodermaxblock = len(body)
        image.load()
        if not container.shrinks:
            # A GIF's first frame may be larger than its screen.
            width, height = image.size
        perceptual_hash = difference_hash(image)
        orientation = exif_orientation(image.info.get("exif", b""))
        for frame in range(1, frames):
            image.seek(frame)
            image.load()
    return width, height, perceptual_hash, orientation


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash, signed: one bit for each pair of neighbours in 9 by 8 shades of grey, row by row.

    Transparent parts count as white, as on a page: logos differ in their alpha channel only.
    """
    if image.has_transparency_data:
        small = _shrink_with_alpha(image).convert("RGBA")
        shades = Image.alpha_composite(Image.new("RGBA", HASH_SIZE, "white"), small)
    else:
        if image.mode in {"1", "P", "CMYK", "I;16", "I"}:
            image = _grey(image)
        shades = image.resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=2.0)
    if shades.mode != "L":
        shades = shades.convert("L")
    pixels = shades.tobytes()
    brighter = bytearray(map(operator.lt, pixels, pixels[1:]))
    # The last of a row and the first of the next are no neighbours.
    del brighter[8::9]
    bits = int(brighter.translate(_DIGITS), 2)
    return bits - (1 << 64) if bits >> 63 else bits


def _shrink_with_alpha(image: Image.Image) -> Image.Image:
    """What ``image.convert("RGBA").resize(HASH_SIZE, BOX, reducing_gap=2)`` gives, colours weighted by opacity, in
    strips: the same to the last bit, without three copies of the whole.
    """
    across, down = (max(1, side // (2 * hashed)) for side, hashed in zip(image.size, HASH_SIZE, strict=True))
    reduced = Image.new("RGBa", (-(-image.width // across), -(-image.height // down)))
    for top, strip in _strips(image, down * max(1, STRIP_ROWS // down)):
        reduced.paste(strip.convert("RGBA").convert("RGBa").reduce((across, down)), (0, top // down))
    box = (0, 0, image.width / across, image.height / down)
    return reduced.resize(HASH_SIZE, Image.Resampling.BOX, box)


def _grey(image: Image.Image) -> Image.Image:
    shades = Image.new("L", image.size)
    for top, strip in _strips(image, STRIP_ROWS):
        shades.paste(strip.convert("L"), (0, top))
    return shades


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        # Pillow clips 16-bit shades when it converts them; the high byte is the shade.
        yield top, strip.point(lambda shade: shade / 256) if strip.mode.startswith("I") else strip
