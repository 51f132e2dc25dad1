"""One body becomes a verified Picture: every frame decoded within bounds, sha256, perceptual hash, orientation;
or less of it, where its job asks for less.

Must never open a format outside ImageFormat, nor allocate pixels before their number was checked.
Thread-safe; Pillow and hashlib release the interpreter lock while they work.
"""

import hashlib
import io
import struct
import warnings
import zlib
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
from worker.container import Container, read_container, tell_format
from worker.errors import PictureError
from worker.header import exif_orientation, read_header

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

# A progressive JPEG is walked once per scan, and a scan can cost four bytes. Cameras and encoders use ten.
JPEG_SCANS_MAX = 500

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


def inspect(body: bytes, settings: Settings, verification: Verification = Verification.FULL) -> Picture:
    """Look at ``body`` as closely as ``verification`` says, and describe it.

    Raises PictureError: NOT_AN_IMAGE, CORRUPT, or TOO_MANY_PIXELS by ``image_pixels_max`` (all frames
    together) and ``image_frames_max``, which are checked before anything is decoded.
    """
    if verification is Verification.NONE:
        digest = hashlib.sha256(body).digest()
        return Picture(tell_format(body), None, None, None, digest, None, len(body))
    container = read_container(body)
    _check_bounds(container.width, container.height, container.frames, settings)
    if verification is Verification.HEADER:
        return _read(body, container, settings)
    Image.MAX_IMAGE_PIXELS = settings.image_pixels_max
    try:
        return _decode(body, container, settings)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(Reason.TOO_MANY_PIXELS, str(error)) from None
    except DECODER_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise PictureError(Reason.CORRUPT, f"{container.format} cannot be decoded: {detail}") from None


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


def _decode(body: bytes, container: Container, settings: Settings) -> Picture:
    with DECODERS[container.format](io.BytesIO(body)) as image:
        frames = container.frames or int(getattr(image, "n_frames", 1))
        _check_bounds(image.width, image.height, frames, settings)
        width, height = image.size
        if container.format is ImageFormat.JPEG:
            _check_scans(image, body)
            # Every coefficient is still read, so that a cut file is found; only the inverse transform shrinks.
            image.draft("L", DRAFT_SIZE)
        image.load()
        if container.format is not ImageFormat.JPEG:
            # A GIF's first frame may be larger than its screen.
            width, height = image.size
        perceptual_hash = difference_hash(image)
        orientation = exif_orientation(image.info.get("exif", b""))
        for frame in range(1, frames):
            image.seek(frame)
            image.load()
    digest = hashlib.sha256(body).digest()
    return Picture(container.format, width, height, orientation, digest, perceptual_hash, len(body))


def _check_scans(image: ImageFile.ImageFile, body: bytes) -> None:
    if "progressive" in image.info and (scans := body.count(b"\xff\xda")) > JPEG_SCANS_MAX:
        detail = f"a progressive JPEG of {scans} scans; at most {JPEG_SCANS_MAX} are accepted"
        raise PictureError(Reason.TOO_MANY_PIXELS, detail)


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash, signed: one bit for each pair of neighbours in 9 by 8 shades of grey, row by row.

    Transparent parts count as white, as on a page: logos differ in their alpha channel only.
    """
    if image.mode.startswith("I"):
        # Pillow clips 16-bit shades when it converts them; the high byte is the shade.
        image = image.point(lambda shade: shade / 256)
    if image.has_transparency_data:
        small = image.convert("RGBA").resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=2.0)
        shades = Image.alpha_composite(Image.new("RGBA", HASH_SIZE, "white"), small).convert("L")
    else:
        if image.mode in {"1", "P", "CMYK", "I;16", "I"}:
            image = image.convert("L")
        shades = image.resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    pixels = shades.tobytes()
    bits = 0
    for start in range(0, 72, 9):
        for left in range(start, start + 8):
            bits = bits << 1 | (pixels[left] < pixels[left + 1])
    return bits - (1 << 64) if bits >> 63 else bits
