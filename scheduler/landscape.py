"""Draws landscapes that look like photographs, each from one number, for demos and tests without a network.

Must never use randomness other than its seed: the same number gives the same pixels.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one time of day: the sky from top to horizon, the light, and the nearest ridge."""

    sky: tuple[Colour, ...]
    light: Colour
    near: Colour
    stars: bool = False


PALETTES = (
    Palette(((38, 46, 92), (120, 84, 132), (232, 142, 110), (255, 212, 150)), (255, 236, 190), (24, 22, 40)),
    Palette(((58, 120, 190), (120, 175, 222), (196, 222, 238)), (255, 252, 235), (30, 58, 46)),
    Palette(((24, 30, 66), (86, 58, 110), (205, 82, 86), (250, 160, 84)), (255, 190, 110), (20, 12, 28)),
    Palette(((6, 10, 28), (14, 28, 62), (38, 66, 104)), (226, 234, 250), (4, 8, 18), stars=True),
    Palette(((92, 108, 122), (142, 156, 166), (198, 206, 208)), (236, 240, 240), (34, 46, 48)),
    Palette(((88, 142, 186), (216, 196, 164), (244, 214, 160)), (255, 240, 200), (112, 52, 28)),
    Palette(((124, 168, 204), (186, 212, 230), (236, 240, 244)), (255, 255, 255), (44, 74, 104)),
    Palette(((70, 104, 140), (170, 170, 160), (240, 206, 150)), (255, 226, 160), (74, 38, 18)),
    Palette(((16, 52, 72), (40, 122, 128), (170, 204, 170), (246, 232, 176)), (255, 246, 200), (8, 36, 42)),
    Palette(((70, 40, 92), (176, 92, 140), (250, 170, 170)), (255, 224, 214), (42, 18, 58)),
)

# Shades that every picture shares: the light's two halos and its disc, thinner clouds towards the top, patches
# on a slope, the dark corners of a lens, and the grain of film.
_RADIAL = Image.radial_gradient("L")
GLOWS = (
    _RADIAL.point([max(0, 180 - shade) ** 2 // 270 for shade in range(256)]),
    _RADIAL.point([max(0, 180 - shade) ** 2 // 230 for shade in range(256)]),
    _RADIAL.point([max(0, min(255, (112 - shade) * 14)) for shade in range(256)]),
)
CLOUD_FADE = Image.linear_gradient("L").point([min(255, 90 + shade) for shade in range(256)])
PATCHES = [70 + shade * 2 // 3 for shade in range(256)]
CORNERS = _RADIAL.point([255 - max(0, shade - 120) // 2 for shade in range(256)])
GRAIN = [255 - shade // 12 for shade in range(256)]


def draw_landscape(seed: str, width: int, height: int) -> Image.Image:
    """Return an RGB picture: sky, sun or moon, clouds, ridges in haze, and water or a wood in front."""
    chance = random.Random(seed)
    palette = chance.choice(PALETTES)
    horizon = round(height * chance.uniform(0.48, 0.68))
    image = _gradient(palette.sky, width, height, horizon)
    if palette.stars:
        _draw_stars(image, chance, horizon)
    _draw_light(image, chance, palette, horizon)
    if not palette.stars or chance.random() < 0.4:
        _draw_clouds(image, chance, palette, horizon)
    _draw_ridges(image, chance, palette, horizon)
    if chance.random() < 0.5:
        _draw_water(image, chance, palette, round(height * chance.uniform(0.7, 0.8)))
    else:
        _draw_wood(image, chance, palette.near)
    return _develop(image, chance)


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _gradient(colours: Sequence[Colour], width: int, height: int, end: int) -> Image.Image:
    """Blend colours from the top down to the line ``end``, and keep the last one below it."""
    stops = Image.frombytes("RGB", (1, len(colours)), bytes(part for colour in colours for part in colour))
    column = Image.new("RGB", (1, height), colours[-1])
    column.paste(stops.resize((1, end), Image.Resampling.BICUBIC))
    return column.resize((width, height), Image.Resampling.NEAREST)


def _noise(chance: random.Random, width: int, height: int, columns: int, rows: int) -> Image.Image:
    """Draw cloudy shades of grey: three octaves of random dots, smoothed."""
    finest = (columns * 4, rows * 4)
    image = Image.new("L", finest, 128)
    for octave, weight in ((1, 0.55), (2, 0.35), (4, 0.25)):
        size = (columns * octave, rows * octave)
        dots = Image.frombytes("L", size, chance.randbytes(size[0] * size[1]))
        image = Image.blend(image, dots.resize(finest, Image.Resampling.BICUBIC), weight)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _draw_stars(image: Image.Image, chance: random.Random, horizon: int) -> None:
    for _ in range(image.width * horizon // 1400):
        place = (chance.randrange(image.width), int(horizon * chance.random() ** 1.3))
        sky = image.getpixel(place)
        image.putpixel(place, _mix(sky, (255, 255, 250), chance.random()))  # type: ignore[arg-type]


def _draw_light(image: Image.Image, chance: random.Random, palette: Palette, horizon: int) -> None:
    """Draw the sun or the moon: a wide glow and a soft-edged disc."""
    x = image.width * chance.uniform(0.15, 0.85)
    y = horizon * chance.uniform(0.25, 0.95)
    radius = image.height * chance.uniform(0.025, 0.06)
    for glow, size in zip(GLOWS, (radius * 18, radius * 6, radius * 2.4), strict=True):
        side = max(4, round(size))
        mask = glow.resize((side, side), Image.Resampling.BILINEAR)
        image.paste(palette.light, (round(x - side / 2), round(y - side / 2)), mask)


def _draw_clouds(image: Image.Image, chance: random.Random, palette: Palette, horizon: int) -> None:
    threshold, strength = chance.uniform(110, 160), chance.uniform(1.5, 3.5)
    shades = _noise(chance, image.width, horizon, chance.randint(3, 5), chance.randint(6, 12))
    mask = shades.point(lambda shade: max(0, min(190, (shade - threshold) * strength)))
    mask = ImageChops.multiply(mask, CLOUD_FADE.resize(mask.size, Image.Resampling.BILINEAR))
    image.paste(_mix(palette.sky[-1], palette.light, 0.6), (0, 0), mask)


def _ridge(chance: random.Random, width: int, base: float, rise: float, roughness: float) -> list[Point]:
    """Outline of a mountain range by midpoint displacement, left to right."""
    heights = [chance.uniform(-0.3, 1) * rise for _ in range(3)]
    spread = rise
    while len(heights) < 256:
        spread *= roughness
        finer = [heights[0]]
        for left, right in itertools.pairwise(heights):
            finer += [(left + right) / 2 + chance.uniform(-spread, spread), right]
        heights = finer
    step = width / (len(heights) - 1)
    return [(index * step, base - value) for index, value in enumerate(heights)]


def _draw_ridges(image: Image.Image, chance: random.Random, palette: Palette, horizon: int) -> None:
    """Draw mountains from far to near: each is darker, lower, rougher, and stands in haze at its foot."""
    width, height = image.size
    count = chance.randint(3, 6)
    haze = _mix(palette.sky[-1], palette.light, 0.25)
    outlines = []
    for number in range(1, count + 1):
        share = number / count
        base = horizon + (height * 0.92 - horizon) * (share - 0.5 / count) * 0.9
        rise = height * chance.uniform(0.1, 0.2) * (1.15 - share * 0.6)
        outlines.append(_ridge(chance, width, base, rise, 0.52))
    for number, outline in enumerate(outlines, start=1):
        share = number / count
        colour = _mix(haze, palette.near, 0.18 + 0.74 * share**1.2)
        # What the next ridge hides is not drawn.
        end = height if number == count else min(height, int(max(y for _, y in outlines[number])) + 2)
        _fill(image, outline, end, (colour, _mix(colour, haze, 0.45 * (1.2 - share))), chance)


def _fill(
    image: Image.Image, outline: list[Point], end: int, colours: tuple[Colour, Colour], chance: random.Random
) -> None:
    """Fill from an outline down to the line ``end``, smooth at its edge, from one colour to another."""
    width, height = image.size
    highest = max(0, int(min(y for _, y in outline)) - 1)
    if highest >= end:
        return
    size = (width, end - highest)
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    corners = [(x * 2, (y - highest) * 2) for x, y in outline]
    ImageDraw.Draw(mask).polygon([(0, height * 2), *corners, (width * 2, height * 2)], fill=255)
    solid = mask.reduce(2)
    image.paste(colours[0], (0, highest), solid)
    # The colour of the foot is laid over it through a veil that thickens downwards, in patches.
    veil = Image.new("L", size, 255)
    reach = (width, max(1, round(height * 0.3)))
    veil.paste(Image.linear_gradient("L").resize(reach, Image.Resampling.BILINEAR))
    patches = _noise(chance, *size, 24, 10).point(PATCHES)
    veil = ImageChops.multiply(ImageChops.multiply(veil, patches), solid)
    image.paste(colours[1], (0, highest), veil)


def _draw_water(image: Image.Image, chance: random.Random, palette: Palette, shore: int) -> None:
    """Mirror the scene below the shore, smeared and rippled, a little darker than above."""
    width, height = image.size
    depth = height - shore
    above = image.crop((0, max(0, shore - 2 * depth), width, shore)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    mirror = above.resize((width, depth)).filter(ImageFilter.BoxBlur((max(1, width // 90), 1)))
    ripples = _noise(chance, width, depth, 6, max(8, depth // 4)).point(lambda shade: 64 + shade // 2)
    mirror = ImageChops.overlay(mirror, Image.merge("RGB", (ripples, ripples, ripples)))
    tint = Image.new("RGB", (width, depth), _mix(palette.near, palette.sky[0], 0.5))
    image.paste(Image.blend(mirror, tint, 0.22), (0, shore))
    line = Image.new("RGB", (width, max(1, height // 240)), _mix(palette.sky[-1], palette.light, 0.5))
    image.paste(Image.blend(image.crop((0, shore, width, shore + line.height)), line, 0.35), (0, shore))


def _draw_wood(image: Image.Image, chance: random.Random, colour: Colour) -> None:
    """Draw conifers along the lower edge as a dark silhouette."""
    width, height = image.size
    mask = Image.new("L", (width * 2, height))
    pencil = ImageDraw.Draw(mask)
    ground = _ridge(chance, width * 2, height * 0.94, height * 0.05, 0.5)
    pencil.polygon([(0, height), *ground, (width * 2, height)], fill=255)
    for _ in range(chance.randint(24, 60)):
        x, y = chance.choice(ground)
        tall = height * chance.uniform(0.06, 0.19)
        for tier in range(6):
            top = y - tall * (1 - tier / 6.5)
            half = tall * (0.05 + 0.045 * tier)
            pencil.polygon([(x, top), (x - half, top + tall / 3.6), (x + half, top + tall / 3.6)], fill=255)
    dark = _mix(colour, (0, 0, 0), 0.45)
    image.paste(dark, (0, 0), mask.resize(image.size, Image.Resampling.BOX))


def _develop(image: Image.Image, chance: random.Random) -> Image.Image:
    """Darken the corners and add the grain of film."""
    grain = Image.frombytes("L", image.size, chance.randbytes(image.width * image.height)).point(GRAIN)
    shades = ImageChops.multiply(CORNERS.resize(image.size, Image.Resampling.BILINEAR), grain)
    return ImageChops.multiply(image, Image.merge("RGB", (shades, shades, shades)))
