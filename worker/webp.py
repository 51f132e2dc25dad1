"""Still WebP pictures, decoded whole and shrunk row by row by libwebp's advanced decoder, through ctypes.

Pillow's way to libwebp keeps a picture in sixteen bytes a pixel, and takes half as long again.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from PIL import Image, _webp

# A module answers for the names of what it was linked to: this is the library that came with Pillow.
_LIBWEBP = ctypes.CDLL(_webp.__file__)

# From webp/decode.h.
_ABI_VERSION = 0x0209
_MODE_YUVA = 12
_OUT_OF_MEMORY = 1
_STATUS = (
    "no error",
    "out of memory",
    "an invalid parameter",
    "a broken bitstream",
    "an unsupported feature",
    "suspended",
    "given up",
    "the file ends before the image does",
)

# Luma goes from 16 to 235.
_BLACK, _SHADES = 16, 219
_FULL_RANGE = [min(255, max(0, round((luma - _BLACK) * 255 / _SHADES))) for luma in range(256)]
_OPAQUE = 255


class _Features(ctypes.Structure):
    """WebPBitstreamFeatures."""

    _fields_ = (("width", ctypes.c_int), ("height", ctypes.c_int), ("_others", ctypes.c_int * 8))


class _Planes(ctypes.Structure):
    """WebPYUVABuffer: luma, two of chroma, alpha."""

    _fields_ = (
        ("addresses", ctypes.c_void_p * 4),
        ("strides", ctypes.c_int * 4),
        ("sizes", ctypes.c_size_t * 4),
    )


class _Output(ctypes.Structure):
    """WebPDecBuffer."""

    _fields_ = (
        ("colorspace", ctypes.c_int),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("is_external_memory", ctypes.c_int),
        ("planes", _Planes),
        ("_pad", ctypes.c_uint32 * 4),
        ("_private_memory", ctypes.c_void_p),
    )


class _Options(ctypes.Structure):
    """WebPDecoderOptions."""

    _fields_ = (
        ("bypass_filtering", ctypes.c_int),
        ("no_fancy_upsampling", ctypes.c_int),
        ("_cropping", ctypes.c_int * 5),
        ("use_scaling", ctypes.c_int),
        ("scaled_width", ctypes.c_int),
        ("scaled_height", ctypes.c_int),
        ("_others", ctypes.c_int * 9),
    )


class _Config(ctypes.Structure):
    """WebPDecoderConfig."""

    _fields_ = (("features", _Features), ("output", _Output), ("options", _Options))


def _function(name: str, *arguments: Any) -> Any:
    function = getattr(_LIBWEBP, name)
    function.argtypes = arguments
    return function


_init = _function("WebPInitDecoderConfigInternal", ctypes.POINTER(_Config), ctypes.c_int)
_read_features = _function(
    "WebPGetFeaturesInternal", ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_Features), ctypes.c_int
)
_decode = _function("WebPDecode", ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_Config))


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A picture made small: L, or LA where it is not opaque; and how many pixels it had before."""

    image: Image.Image
    width: int
    height: int


def decode_shrunk(body: bytes, largest: tuple[int, int]) -> Shrunk:
    """Decode a still picture and shrink it to ``largest`` (width, height; pixels), if it is larger.

    Every pixel is decoded; each of the result is the mean of its area, weighted by opacity. Only the filter that
    smooths the edges of blocks is left out: no pixel is made from what it changes. Raises OSError for a picture
    that is broken or moves, MemoryError when the system gives too little.
    """
    config = _Config()
    if not _init(config, _ABI_VERSION):
        raise OSError("libwebp has other structures than worker/webp.py")
    _check(_read_features(body, len(body), config.features, _ABI_VERSION))
    width = min(config.features.width, largest[0])
    height = min(config.features.height, largest[1])
    planes = _give_planes(config, width, height)
    config.options.bypass_filtering = 1
    config.options.use_scaling = 1
    config.options.scaled_width, config.options.scaled_height = width, height
    _check(_decode(body, len(body), config))
    shades = Image.frombytes("L", (width, height), planes[0].raw).point(_FULL_RANGE)
    alpha = Image.frombytes("L", (width, height), planes[3].raw)
    image = shades if alpha.getextrema()[0] == _OPAQUE else Image.merge("LA", (shades, alpha))
    return Shrunk(image, config.features.width, config.features.height)


def _give_planes(config: _Config, width: int, height: int) -> list[ctypes.Array[ctypes.c_char]]:
    """Let ``config`` write into planes of this process, which the caller keeps until it has."""
    chroma = ((width + 1) // 2, (height + 1) // 2)
    sides = ((width, height), chroma, chroma, (width, height))
    planes = [ctypes.create_string_buffer(wide * high) for wide, high in sides]
    config.output.colorspace = _MODE_YUVA
    config.output.is_external_memory = 1
    config.output.planes.addresses[:] = [ctypes.addressof(plane) for plane in planes]
    config.output.planes.strides[:] = [wide for wide, _ in sides]
    config.output.planes.sizes[:] = [len(plane) for plane in planes]
    return planes


def _check(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError(_STATUS[status])
    if status:
        raise OSError(_STATUS[status])
