"""A contact sheet is written whole, bounded, and in spite of images that cannot be shown."""

import io
from pathlib import Path

import pytest
from PIL import Image

from scheduler.contact_sheet import CELL, HEADER, IMAGES_MAX, MARGIN, make_contact_sheet
from scheduler.landscape import draw_landscape


def encode(colour: str, name: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """Encode a picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (80, 60), colour).save(buffer, name, **options)
    return buffer.getvalue()


def middle_of(sheet: Image.Image, column: int = 0) -> tuple[int, ...]:
    """Return the colour in the middle of a cell of the first row."""
    return sheet.getpixel((MARGIN + CELL[0] // 2 + column * (CELL[0] + 14), HEADER + CELL[1] // 2))


def test_sheet_shows_bytes_and_paths(tmp_path):
    """Contents and paths both become thumbnails, in the order given."""
    (tmp_path / "blue.png").write_bytes(encode("blue", "PNG"))
    make_contact_sheet([encode("red"), tmp_path / "blue.png"], tmp_path / "deep" / "sheet.png", title="Two")
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert middle_of(sheet)[0] > 240
        assert middle_of(sheet, 1) == (0, 0, 255)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]


def test_broken_images_leave_an_empty_cell(tmp_path):
    """What cannot be decoded, or is gone, does not spoil the sheet."""
    images = [b"<html>", encode("red")[:300], tmp_path / "none.jpg", encode("lime", "PNG")]
    make_contact_sheet(images, tmp_path / "sheet.png", title="x")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert middle_of(sheet) == (30, 32, 40)


def test_colours_without_alpha_are_kept(tmp_path):
    """Palette, grey, CMYK and transparent pictures all find their way onto the sheet."""
    images = [
        encode("white", "JPEG", "CMYK"),
        encode("white", "PNG", "L"),
        encode("white", "GIF", "P"),
        encode("#ffffff00", "PNG", "RGBA"),
    ]
    make_contact_sheet(images, tmp_path / "sheet.png", title="x")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert middle_of(sheet, 1) == (255, 255, 255)


@pytest.mark.parametrize("count", [0, 1, IMAGES_MAX + 30])
def test_number_of_images_is_bounded(tmp_path, count):
    """Nothing and too much both give a sheet, and no more images are read than are shown."""
    body, read = encode("red"), []

    def images():
        for number in range(count):
            read.append(number)
            yield body

    make_contact_sheet(images(), tmp_path / "sheet.png", title="A title that is far too long " * 20)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width <= 3000
        assert sheet.height <= 3000
    assert len(read) == min(count, IMAGES_MAX)


def test_failed_write_leaves_the_old_sheet(tmp_path):
    """A destination that cannot be replaced is an OSError, and no temporary file stays."""
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OSError, match="directory"):
        make_contact_sheet([encode("red")], tmp_path / "sheet.png", title="x")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["sheet.png"]


def test_landscapes_differ_and_repeat():
    """One seed gives one picture, of the size asked for; two seeds give two."""
    first, again, other = (draw_landscape(seed, 240, 160) for seed in ("a", "a", "b"))
    assert first.size == (240, 160)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_landscapes_of_any_shape_can_be_drawn():
    """Tiny, narrow and wide pictures are drawn for many seeds."""
    for number in range(40):
        for size in ((16, 16), (24, 90), (120, 20)):
            assert draw_landscape(str(number), *size).size == size
