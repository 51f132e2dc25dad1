"""One picture that shows many: thumbnails in a grid under a title, to be looked at after a crawl.

Must never keep more than one full-size image in memory, nor fail because one of them cannot be shown.
"""

import io
import math
import os
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
IMAGES_MAX = 120
CELL = (216, 162)
GAP = 14
MARGIN = 56
HEADER = 132
FOOTER = 58
CORNER = 10
BACKGROUND = (17, 18, 23)
SURFACE = (30, 32, 40)
TITLE = (242, 242, 246)
CAPTION = (142, 146, 160)
ACCENT = (255, 176, 84)


def make_contact_sheet(images: Iterable[bytes | Path], destination: Path, *, title: str) -> None:
    """Write a PNG of up to 120 thumbnails to ``destination``, as a whole or not at all.

    ``images`` are file contents or paths, and are read one at a time; one that cannot be decoded leaves an
    empty cell. Raises OSError if ``destination`` cannot be written.
    """
    thumbnails = [_thumbnail(image) for image in islice(images, IMAGES_MAX)]
    columns = _columns(len(thumbnails))
    rows = max(1, math.ceil(len(thumbnails) / columns))
    width = 2 * MARGIN + columns * (CELL[0] + GAP) - GAP
    height = HEADER + rows * (CELL[1] + GAP) - GAP + FOOTER
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    shown = sum(thumbnail is not None for thumbnail in thumbnails)
    _write_header(sheet, title, f"{shown} shown")
    mask = _rounded(CELL)
    empty = Image.new("RGB", CELL, SURFACE)
    for index, thumbnail in enumerate(thumbnails):
        row, column = divmod(index, columns)
        place = (MARGIN + column * (CELL[0] + GAP), HEADER + row * (CELL[1] + GAP))
        sheet.paste(thumbnail or empty, place, mask)
    _save(sheet, destination)


def _columns(count: int) -> int:
    """Return the columns that make a sheet about half as wide again as high, from three to twelve."""
    return max(3, min(12, math.ceil(math.sqrt(max(1, count) * 1.5 * CELL[1] / CELL[0]))))


def _thumbnail(image: bytes | Path) -> Image.Image | None:
    """Upright, cropped to the cell around the middle, transparent parts on the sheet's surface."""
    try:
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(source, formats=FORMATS) as opened:
            opened.draft("RGB", (CELL[0] * 2, CELL[1] * 2))
            upright = ImageOps.exif_transpose(opened)
            colours = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
            fitted = ImageOps.fit(colours, CELL, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if fitted.mode == "RGB":
        return fitted
    return Image.alpha_composite(Image.new("RGBA", CELL, SURFACE), fitted).convert("RGB")


def _rounded(size: tuple[int, int]) -> Image.Image:
    """Return a mask with smooth round corners."""
    mask = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), CORNER * 4, fill=255)
    return mask.reduce(4)


def _write_header(sheet: Image.Image, title: str, caption: str) -> None:
    pencil = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * MARGIN
    large, small = ImageFont.load_default(size=38), ImageFont.load_default(size=19)
    pencil.rounded_rectangle((MARGIN, 34, MARGIN + 5, 100), 2, fill=ACCENT)
    pencil.text((MARGIN + 22, 28), _shortened(title, large, room - 22), TITLE, large)
    pencil.text((MARGIN + 22, 79), _shortened(caption, small, room - 22), CAPTION, small)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Cut a text so that it fits into so many pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _save(sheet: Image.Image, destination: Path) -> None:
    """Write beside the destination and rename, so that nobody ever sees half a sheet."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            sheet.save(file, "PNG")
        Path(name).chmod(0o644)
        Path(name).replace(destination)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
